"""The Triton kernels of linear attention and short convolutions beyond the operators' cases."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from lmcast.plugins.errors import InputError
from lmcast.plugins.linear import causal_conv as conv
from lmcast.plugins.linear.linear_attention import case, linear_attention
from lmcast.plugins.linear.linear_attention_triton import FEW, FULL, SHORT

# The interpreter takes its time by program: there are no more heads and columns than show all.
SIZES = (2, 1, 24, 20)  # no powers of two; 20 columns are more than one program has in fp32
ALONE = (1, 1, 24, 40)  # and 40 in fp16
KINDS: dict[str, dict[str, bool]] = {
    "delta": {"normalize": True},
    "channels": {"normalize": True, "channels": True},
    "gated": {"delta": False},
    "gated channels": {"delta": False, "channels": True},
}
EACH = pytest.mark.parametrize("kind", KINDS)
STATE, DECAY, COUNTS, BETA = 3, 4, 5, 6
NAN = float("nan")


def short(args: tuple | list) -> list:
    """Return arguments as models in fp16 have them: what is new is fp16, the others are fp32."""
    stay = (STATE, DECAY)
    return [
        a.half() if isinstance(a, Tensor) and a.is_floating_point() and n not in stay else a
        for n, a in enumerate(args)
    ]


def wide(args: tuple | list) -> list:
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


def launched(args: tuple | list) -> tuple[Tensor, Tensor]:
    """Return what the kernels give, where the state must be updated in place."""
    own = [a.clone() if isinstance(a, Tensor) else a for a in args]
    out, state = linear_attention.kernels["triton"]()(*own)
    assert state is own[STATE]
    return out, state


def check(args: tuple | list) -> None:
    """Compare with the definition in fp64."""
    close = linear_attention.close[args[0].dtype]
    for got, want in zip(launched(args), linear_attention.eager(*wide(args)), strict=True):
        torch.testing.assert_close(got.double(), want, atol=close.atol, rtol=close.rtol)


# Around one chunk, and in the third.
LENGTHS = {
    torch.float32: (1, 2, 15, FULL.chunk, 17, 33),
    torch.float16: (1, 2, 15, 16, 17, 63, SHORT.chunk, 65, 129),
}


@EACH
@pytest.mark.parametrize("dtype", LENGTHS)
def test_every_length_is_the_recurrence(kind: str, dtype: torch.dtype):
    for tokens in LENGTHS[dtype]:
        torch.manual_seed(tokens)
        args = case([tokens], ALONE, scale=0.25, **KINDS[kind])
        check(args if dtype == torch.float32 else short(args))


@pytest.mark.parametrize("tokens", [FEW, FEW + 1])
def test_one_by_one_and_by_chunks(tokens: int):
    torch.manual_seed(0)
    check(case([tokens, 1], (4, 2, 8, 8), normalize=True))


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_equal_keys(channels: bool, strength: float):
    """Powers of what the tokens of a chunk tell each other would be astronomic."""
    torch.manual_seed(0)
    args = list(case([64], (1, 1, 24, 40), channels=channels, scale=0.25))
    args[1] = args[1][:, :1].expand_as(args[1])
    args[DECAY], args[BETA] = torch.zeros_like(args[DECAY]), torch.full_like(args[BETA], strength)
    check(args)
    check(short(args))


@EACH
@pytest.mark.parametrize("decay", [-1e-7, -30.0, -1e4])
def test_decays_of_any_size(kind: str, decay: float):
    """All, and one among small ones, which leaves nothing of what was before it and all behind."""
    torch.manual_seed(0)
    args = list(case([40], (1, 1, 16, 8), scale=0.25, **KINDS[kind]))
    for rest in (decay, -0.01):
        args[DECAY] = torch.full_like(args[DECAY], rest)
        args[DECAY][:, 21] = decay
        check(args)
        check(short(args))


@EACH
@pytest.mark.parametrize("counts", [[20, 0, 9], [3, 0, 1]])
def test_padding_does_not_leak(kind: str, counts: list[int]):
    """Whatever it holds, also where a row has nothing else: its own outputs alone are NaN."""
    torch.manual_seed(0)
    args = case(counts, SIZES, **KINDS[kind])
    padding = torch.arange(max(counts)) >= args[COUNTS][:, None]
    out, state = launched(args)
    spoiled = [
        a.masked_fill(padding[..., None], NAN) if isinstance(a, Tensor) and a.dim() == 3 else a
        for a in args
    ]
    again, after = launched(spoiled)
    assert torch.equal(after, state)
    assert torch.equal(again[~padding], out[~padding])
    assert torch.equal(after[1], args[STATE][1])


def test_no_tokens_leave_the_state():
    args = list(case([2, 1], SIZES))
    for n in (0, 1, 2, DECAY, BETA):
        args[n] = args[n][:, :0]
    args[COUNTS] = torch.zeros(2, dtype=torch.int64)
    out, state = launched(args)
    assert out.shape == (2, 0, 40)
    assert torch.equal(state, args[STATE])


def test_a_state_that_cannot_be_updated_in_place_is_refused():
    args = list(case([2, 1], SIZES))
    args[STATE] = args[STATE].mT.contiguous().mT
    with pytest.raises(InputError, match=r"strides .* accepted: contiguous"):
        linear_attention.kernels["triton"]()(*args)
    args = list(conv.case([2, 1], 8, 4, True, True))
    args[2] = args[2].mT.contiguous().mT
    with pytest.raises(InputError, match=r"strides .* accepted: contiguous"):
        conv.causal_conv.kernels["triton"]()(*args)


@pytest.mark.parametrize("taps", [1, 2, 4, 20])
@pytest.mark.parametrize("tokens", [1, 2, 3, 15, 16, 17, 33])
def test_convolutions_of_every_length(tokens: int, taps: int):
    """More channels than a program has; rows with fewer tokens than taps, and with none."""
    torch.manual_seed(0)
    counts = [tokens, 0, 1, (tokens + 1) // 2]
    x, weight, past, *rest = conv.case(counts, 260, taps, taps % 4 == 0, tokens % 2 == 0)
    want, present = conv.causal_conv.eager(x, weight, past, *rest)
    padding = torch.arange(tokens) >= torch.tensor(counts)[:, None]
    spoiled = x.masked_fill(padding[..., None], NAN)
    out, same = conv.causal_conv.kernels["triton"]()(spoiled, weight, past, *rest)
    assert same is past
    assert torch.equal(past, present)
    # 32 fp32 epsilons: sums of up to 21 products, of values up to 4.
    torch.testing.assert_close(out[~padding], want[~padding], atol=4e-6, rtol=0)


def test_a_convolution_of_no_tokens_leaves_the_inputs():
    x, weight, past, _, *rest = conv.case([2, 1], 8, 4, True, True)
    held, counts = past.clone(), torch.zeros(2, dtype=torch.int64)
    out, same = conv.causal_conv.kernels["triton"]()(x[:, :0], weight, past, counts, *rest)
    assert out.shape == (2, 0, 8)
    assert same is past and torch.equal(past, held)


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return import_module("linear_works")


def test_the_benchmark_compares_with_the_operator(works: ModuleType):
    scalar = [c for c in linear_attention.cases() if c[BETA] is not None and not c[8]]
    assert len(scalar) == 5
    for args in scalar:
        close = linear_attention.close[torch.float32]
        pairs = zip(works.chunked(*args), linear_attention.eager(*args), strict=True)
        for got, want in pairs:
            torch.testing.assert_close(got, want, atol=close.atol, rtol=close.rtol)


@pytest.mark.parametrize(("batch", "tokens"), [(3, 1), (1, FEW + 1)])
def test_the_benchmark_measures_the_same_states_each_way(
    works: ModuleType, batch: int, tokens: int
):
    """Its own path without the GPU; a way that changes the states comes first, and again last."""
    kernels, seen = import_module("triton_kernels"), []
    model = works.DeltaNet("small", 2, 1, 24, 8)
    # q, k of 24, v and out of 16, all of 2 bytes; decay and beta; a count; states there and back.
    moved = batch * (tokens * (2 * 80 + 6 * 2) + 8 + 2 * 4 * 2 * 24 * 8)
    work = works.linear_work(model, batch, tokens, "cpu", spread=2 * moved)
    assert (work.moved, len(work.calls)) == (moved, 2)
    assert work.flops == 6 * batch * tokens * 2 * 24 * 8
    # Half precision, as Triton's interpreter multiplies no bfloat16.
    calls = [
        tuple(a.half() if isinstance(a, Tensor) and a.dtype == torch.bfloat16 else a for a in args)
        for args in work.calls
    ]
    work = works.Work(**vars(work) | {"calls": calls})
    began = calls[0][STATE].clone()
    ways = {
        name: kernels.Way(linear_attention.kernels["triton"](), graph=False)
        for name in ("ours", "ours again")
    }

    def time(run: Callable[[], None], graph: bool) -> float:
        run()
        seen.append([args[STATE].clone() for args in calls])
        return 1.0

    rows = kernels.measure([work], lambda _: ways, time, (1e6, 1e9))
    assert [row[3] for row in rows] == list(ways)
    assert all(map(torch.equal, *seen))
    assert not torch.equal(seen[0][0], began)
