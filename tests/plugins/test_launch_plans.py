"""Launch plans as text, and the sizes that are open in them; test_runtimes.py runs them."""

import json
import operator
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_cases import DECODE, ONE, PREFILL
from launch_plan_reader import OPERATORS, Reader, value

from lmcast.plugins.errors import InputError
from lmcast.plugins.launch import cubins
from lmcast.plugins.launch.buffer import Buffer
from lmcast.plugins.launch.launch_plan import (
    Bounds,
    Given,
    MachineCode,
    compiled_plan,
    draft,
    written,
)
from lmcast.plugins.launch.sizes import Size, bounds, least, most, text, usual

FLOAT, WHOLE = torch.float16, torch.int64
CONVOLUTION = [
    Given(FLOAT, ("B", "T", 40)),
    Given(FLOAT, (40, 1, 4)),
    Given(FLOAT, ("B", 3, 40)),
    Given(WHOLE, ("B",)),
    None,
    1,  # as ONNX has True
]
INNER, WIDTH, EXPERTS = 24, 40, 6
MIXTURE = [
    Given(FLOAT, ("B", "T", WIDTH)),
    Given(torch.float32, ("B", "T", 2)),
    Given(WHOLE, ("B", "T", 2)),
    *[Given(FLOAT, (EXPERTS, INNER, WIDTH))] * 2,
    Given(FLOAT, (EXPERTS, WIDTH, INNER)),
    *[None] * 3,
    "silu",
    *[1, 7.0, 0],
]


SCRIPT = """lmcast-recipe 2
kernels 2
convolve 128 632 2
  89 0 89 3667169528
  120 89 120 962427431
convolve 128 632 2
  89 0 89 3667169528
  120 89 120 962427431
outputs 2
fp16 -1 3 0.0 0.1 40
fp16 2 3 0.0 3 40
cases 2
ranges 2
  0.0 1 4
  0.1 1 1
buffers 0
launches 1
  0 0.0 8
    in 0
    in 1
    out 1
    in 3
    out 0
    i32 1
    null
    null
ranges 2
  0.0 1 4
  0.1 1 512
buffers 0
launches 1
  1 * 0.0 / + 0.1 15 16 8
    in 0
    in 1
    out 1
    in 3
    out 0
    i32 0.1
    null
    null
"""


def test_the_text():
    """Where this changes, the plugin in C++ must change along."""
    code = {sm: cubins.Cubin("convolve", 128, 512 + sm, bytes(sm)) for sm in (89, 120)}
    drawn = draft("causal_conv", CONVOLUTION, [DECODE, PREFILL])
    held = MachineCode()
    assert written(drawn, [code] * 2, held) == SCRIPT
    assert held.blob == bytes(89 + 120)  # what is equal is there once


def test_launch_plans_share_their_machine_code():
    """The second names cubins of the first, and its own behind them."""
    drawn, held = draft("causal_conv", CONVOLUTION, [DECODE, PREFILL]), MachineCode()
    first, second = ({90: cubins.Cubin("convolve", 128, 0, code)} for code in (b"one", b"three"))
    assert f"\n  90 0 3 {crc32(b'one')}\n" in written(drawn, [first] * 2, held)
    again = written(drawn, [second, first], held)
    assert [again.count(place) for place in ("\n  90 3 5 ", "\n  90 0 3 ")] == [1, 1]
    assert held.blob == b"onethree"


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was compiled, in a process that cannot, and may have kernels that are interpreted."""
    names: list[str] = []

    def fake(source: Any, target: Any, options: dict) -> SimpleNamespace:
        names.append(source.name)
        facts = {"num_ctas": 1, "launch_cooperative_grid": False, "global_scratch_size": 0}
        facts |= {"profile_scratch_size": 0, "shared": 100 << 10}
        facts |= {"name": source.name, "num_warps": options["num_warps"]}
        return SimpleNamespace(metadata=SimpleNamespace(**facts), asm={"cubin": b"code"})

    monkeypatch.setattr(triton, "compile", fake)
    monkeypatch.setattr(triton, "JITFunction", object)
    cubins.cubin.cache_clear()
    yield names
    cubins.cubin.cache_clear()


def test_recipes_of_released_sizes_compile(tmp_path: Path):
    """In a process without the interpreter; the machine code is where the text says."""
    child = Path(__file__).with_name("compiled_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(child), "recipes", str(tmp_path), "89", "120"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = {}
    for name in json.loads(done.stdout):
        blob = (tmp_path / f"{name}.cubins").read_bytes()
        kernels[name] = Reader((tmp_path / name).read_text()).recipe().kernels
        for entry, threads, _, codes in kernels[name]:
            assert threads % 32 == 0 and [code.sm for code in codes] == [89, 120]
            for sm, offset, size, check in codes:
                cubin = blob[offset : offset + size]
                assert crc32(cubin) == check
                assert cubin[:4] == b"\x7fELF" and f".text.{entry}".encode() in cubin
                assert sm in cubin[48:50]  # of the flags of the ELF header
                assert b"kernels" not in cubin  # no folder of the machine that it was built on
    # Steps and prompts convolve differently, and choose experts alike.
    assert {name: len(found) for name, found in kernels.items()} == {
        "causal_conv": 2,
        "moe_route": 1,
    }


def test_layers_of_one_shape_compile_once(compiles: list[str]):
    held = MachineCode()
    first = compiled_plan("moe_experts", MIXTURE, [ONE, DECODE, PREFILL], [80, 90], held)
    # One place alone needs no order, and few places have smaller tiles than many.
    names = ["combine", *["down_each", "gate_up"] * 3, "sort"]
    assert sorted(compiles) == sorted(2 * names)
    assert compiled_plan("moe_experts", MIXTURE, [ONE, DECODE, PREFILL], [80, 90], held) == first
    assert len(compiles) == 16
    compiled_plan("causal_conv", CONVOLUTION, [DECODE], [80], held)
    compiled_plan("causal_conv", [*CONVOLUTION[:5], True], [DECODE], [80], held)
    assert compiles[16:] == ["convolve"]


def test_what_does_not_fit_is_refused(compiles: list[str]):
    held = MachineCode()
    assert compiled_plan("causal_conv", CONVOLUTION, [DECODE], [80], held)
    with pytest.raises(InputError, match=r"convolve needs 102400 .* SM 89 has 101376"):
        compiled_plan("causal_conv", CONVOLUTION, [DECODE], [80, 89], held)
    with pytest.raises(InputError, match=r"SM 70 is not known; accepted: \[75, 80"):
        compiled_plan("causal_conv", CONVOLUTION, [DECODE], [70], held)


def test_what_would_bind_a_recipe_to_one_size_is_refused():
    half_open = [*CONVOLUTION[:1], Given(FLOAT, ("D", 1, 4)), *CONVOLUTION[2:]]
    half_open[0] = Given(FLOAT, ("B", "T", "D"))
    with pytest.raises(TypeError, match="open size"):  # how many channels is compiled in
        draft("causal_conv", half_open, [PREFILL | {"D": Bounds(1, 9, 5)}])
    with pytest.raises(InputError, match=r"axis D is open, but .* \['B', 'T'\]"):
        draft("causal_conv", half_open, [PREFILL])
    with pytest.raises(InputError, match="1 <= low <= usual <= high"):
        draft("causal_conv", CONVOLUTION, [PREFILL | {"T": Bounds(0, 9, 5)}])
    with pytest.raises(InputError, match="up to 2147483647"):
        draft("causal_conv", CONVOLUTION, [PREFILL | {"B": Bounds(1, 2**28, 1)}])
    with pytest.raises(InputError, match="float64"):
        draft("causal_conv", [Given(torch.float64, ("B", "T", 40)), *CONVOLUTION[1:]], [DECODE])
    with pytest.raises(InputError, match="window_keys has no kernels"):
        draft("window_keys", CONVOLUTION, [DECODE])
    turned = Buffer(FLOAT, (6, Size("0.0", 1, 4, 1), 8)).mT
    assert turned.stride()[:2] == (turned.stride()[0], 1) and turned.mT.is_contiguous()
    with pytest.raises(TypeError, match="copy"):
        turned.contiguous()


SYMBOLS: dict[str, Callable] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
    "rounded up": lambda a, b: -(-a // b),
    "min": least,
    "max": most,
}
assert {*OPERATORS} < {*SYMBOLS}


@st.composite
def sums(draw: st.DrawFn, depth: int = 3) -> Callable[[Any, Any], Any]:
    """Draw a function of two sizes; divisors are positive."""
    if not depth or draw(st.integers(0, 4)) == 0:
        number = draw(st.integers(-40, 40))
        return draw(st.sampled_from([lambda b, t: b, lambda b, t: t, lambda b, t: number]))
    name = draw(st.sampled_from([*SYMBOLS]))
    first = draw(sums(depth - 1))
    if name in ("/", "%", "rounded up"):
        number = draw(st.integers(1, 40))
        second = draw(st.sampled_from([lambda b, t: b, lambda b, t: t, lambda b, t: number]))
    else:
        second = draw(sums(depth - 1))
    return lambda b, t: SYMBOLS[name](first(b, t), second(b, t))


@settings(max_examples=100, deadline=None)
@given(sums(), sums(), st.lists(st.integers(1, 50), min_size=6, max_size=6))
def test_sizes_are_what_integers_are(first: Callable, second: Callable, numbers: list[int]):
    """For any axes within their bounds; and a comparison is that of all of them, or refused."""
    (low, b, high), (least, t, most) = sorted(numbers[:3]), sorted(numbers[3:])
    sizes = Size("0.0", low, high, b), Size("0.1", least, most, t)
    one, other = first(*sizes), second(*sizes)
    plain = first(b, t)
    assert value(Reader(text(one)).expression(), [(b, t)]) == plain == usual(one)
    assert bounds(one)[0] <= plain <= bounds(one)[1]
    for compare in (operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge):
        try:
            decided = compare(one, other)
        except TypeError:
            continue
        assert decided is compare(plain, second(b, t))


def test_what_the_bounds_do_not_decide_is_refused():
    tokens = Size("0.1", 1, 512, 128)
    assert tokens and tokens >= 1 and tokens < 513 and tokens == tokens and 3 * tokens != 0
    for undecided in (
        lambda: tokens == 1,
        lambda: tokens > 8,
        lambda: bool(tokens - 1),
        lambda: min(tokens, 16),
        lambda: range(tokens),
        lambda: triton.next_power_of_2(tokens),
        lambda: tokens / 2,
        lambda: tokens == "1",
        lambda: 16 // (tokens - 1),
    ):
        with pytest.raises(TypeError):
            undecided()


@pytest.mark.parametrize(
    ("size", "script"),
    [
        (lambda b, t: b * t * 64 * 128 // (128 * 64), "* 0.0 0.1"),
        (lambda b, t: 8 * b * -(-t // 16) * -(-40 // 16), "* * 0.0 / + 0.1 15 16 24"),
        (lambda b, t: -(-t * 32 // 16) + 3 - 3, "* 0.1 2"),
        (lambda b, t: most(least(t, 600), 1) % 1000, "0.1"),
        (lambda b, t: t // 513, "0"),
    ],
)
def test_sizes_are_simplified(size: Callable, script: str):
    assert text(size(Size("0.0", 1, 4, 1), Size("0.1", 1, 512, 128))) == script
