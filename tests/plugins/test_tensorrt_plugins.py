"""The library of TensorRT plugins, without a GPU: what it reads, builds and asks a driver for."""

import json
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from fake_cuda import missing, on_fake_gpu
from fake_cuda.machine_code import machine_code, stand_in
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_launch_plans import (
    Case,
    Kernel,
    Launch,
    Output,
    Recipe,
    WrongError,
    evaluate,
    expected,
    layout,
)
from plugin_library import run_once, schedule, workspace

TESTS = Path(__file__).parent
SHAPES = [[2, 3], [4, 5, 6], [7]]
IMAGE_BYTES = 64
GOOD = """lmcast-recipe 2
kernels 1  route 128 0 2  80 0 16 11  89 16 48 4294967295
outputs 2  fp32 -1 2 0.0 8  bf16 1 3 1.0 5 1.2
cases 2
ranges 1  0.0 1 16  buffers 2  * 0.0 100  8  launches 1  0 / + 0.1 3 4 7
    in 0  in 1  out 0  buf 1  null  i32 % 1.2 4  fp32 1e-20
ranges 0  buffers 0  launches 0
"""


def test_what_a_recipe_does():
    assert schedule(GOOD, IMAGE_BYTES, SHAPES).splitlines() == [
        "case 0",
        "workspace 512",
        "copy 1 1 240",
        "launch route 1 128 0 in 0 out 1 out 0 buf 256 null i32 2 fp32 507307272",
    ]
    assert schedule(GOOD, IMAGE_BYTES, [[17, 3], *SHAPES[1:]]).startswith("case 1\nworkspace 0\n")


REFUSED = [  # what is in GOOD, what is there instead, what is said
    ("lmcast-recipe 2", "lmcast-recipe 3", "token 2 is '3', not '2', the version that is known"),
    ("lmcast-recipe 2", "lmcast-recipe 1", "is of an older lmcast: export again"),
    ("lmcast-recipe", "recipe", "token 1 is 'recipe', not 'lmcast-recipe'"),
    ("launches 0\n", "launches", "token 72 is the end, not an integer from 0"),
    ("launches 0\n", "launches 0 more", "is 'more', not the end"),
    ("kernels 1", "kernels 99999999999999999999", "not an integer"),
    ("kernels 1", "kernels 9223372036854775807", "token 19 is 'fp32', not an integer"),
    ("outputs 2", "outputs 0", "not an integer from 1"),
    ("128 0 2", "1025 0 2", "not an integer from 1 to 1024"),
    ("128 0 2", "128 -1 2", "not an integer from 0"),
    ("128 0 2", "128 0 0", "not an integer from 1"),
    ("89 16 48", "89 64 1", "not a byte of the kernels, of which there are 64"),
    ("89 16 48", "89 16 49", "not an integer from 1 to 48"),
    ("89 16 48", "89 -1 48", "not a byte of the kernels"),
    ("4294967295", "4294967296", "not an integer from 0 to 4294967295"),
    ("fp32 -1 2", "fp64 -1 2", "is 'fp64', not a type"),
    ("fp32 -1 2", "fp32 -1 9", "not an integer from 0 to 8"),
    ("fp32 -1 2", "fp32 1 2", "two outputs are made from input 1"),
    ("0.0 8 ", "0.8 8 ", "not a size or an axis"),
    ("0.0 8 ", "0.0 -8 ", "not a size or an axis"),
    ("0.0 1 16", "0 1 16", "not an axis"),
    ("0.0 1 16", "0.0 x 16", "not an integer"),
    ("* 0.0 100", "* 0.0", "not an expression"),
    ("* 0.0 100", "^ 0.0 100", "is '^', not an expression"),
    ("* 0.0 100", "* 0.0. 100", "not an expression"),
    ("* 0.0 100", "* 0.0 0x10", "not an expression"),
    ("launches 1  0 ", "launches 1  1 ", "not a kernel, of which there are 1"),
    ("in 0 ", "input 0 ", "is 'input', not an argument"),
    ("out 0 ", "out 2 ", "not an output, of which there are 2"),
    ("buf 1", "buf 2", "not a buffer, of which there are 2"),
    ("fp32 1e-20", "fp32 1e39", "not a number of fp32"),
    ("fp32 1e-20", "fp32 1,5", "not a number of fp32"),
    # What shows only with the shapes of inputs.
    ("in 0 ", "in 3 ", "a launch takes input 3 of 3"),
    ("0.0 1 16", "3.0 1 16", "there is no axis 3.0"),
    ("0.0 1 16", "2.1 1 16", "there is no axis 2.1"),
    ("* 0.0 100", "- 0.0 100", "a buffer of -98 bytes"),
    ("* 0.0 100", "* 0.0 9223372036854775807", "more than 64 bits"),
    ("* 0.0 100", "9223372036854775807", "more than 64 bits"),
    ("/ + 0.1 3 4", "/ 4 - 0.0 2", "a division by 0"),
    ("/ + 0.1 3 4", "- 0.1 4", "a grid is -1"),
    ("% 1.2 4", "2147483648", "an i32 argument is 2147483648"),
    ("1.0 5 1.2", "1.0 5 5", "output 1 has not the shape of input 1"),
    ("ranges 0", "ranges 1 0.0 99 100", None),
]


@pytest.mark.parametrize(("found", "instead", "said"), REFUSED)
def test_refused(found: str, instead: str, said: str | None):
    assert found in GOOD
    recipe = GOOD.replace(found, instead, 1)
    shapes = SHAPES if said is not None else [[17, 3], *SHAPES[1:]]
    with pytest.raises(ValueError, match=r".") as raised:
        schedule(recipe, IMAGE_BYTES, shapes)
    assert (said or "no case of the launch plan is for inputs of shapes [17,3] [4,5,6] [7]") in str(
        raised.value
    )


def test_every_shorter_recipe_is_refused():
    for end in range(len(GOOD.rstrip())):
        if not GOOD[end].isspace() and GOOD[end - 1].isspace():  # between two tokens
            with pytest.raises(ValueError, match="the end, not"):
                schedule(GOOD[:end], IMAGE_BYTES, SHAPES)


def test_a_deep_expression_takes_no_stack():
    deep = "+ " * 100_000 + "1 " * 100_001
    found = schedule(GOOD.replace("* 0.0 100", deep), IMAGE_BYTES, SHAPES)
    assert "buf 100096 " in found  # 100,001 bytes, aligned to 256


AXES = [f"{tensor}.{axis}" for tensor, shape in enumerate(SHAPES) for axis in range(len(shape))]
NUMBERS = st.one_of(st.integers(-9, 99), st.sampled_from([2**31, -(2**40), 2**63 - 1]))
EXPRESSIONS = st.recursive(
    st.one_of(NUMBERS, st.sampled_from(AXES)),
    lambda e: st.tuples(st.sampled_from(["+", "-", "*", "/", "%", "min", "max"]), e, e),
    max_leaves=6,
)
ARGUMENTS = st.one_of(
    st.tuples(st.just("in"), st.integers(0, 2)),
    st.tuples(st.just("out"), st.integers(0, 1)),
    st.tuples(st.just("buf"), st.just(0)),
    st.just(("null",)),
    st.tuples(st.just("i32"), EXPRESSIONS),
    st.tuples(st.just("fp32"), st.floats(width=32, allow_nan=False)),
)
RANGES = st.tuples(st.sampled_from(AXES), st.integers(0, 5), st.integers(2, 9))
CASES = st.builds(
    Case,
    st.lists(RANGES, max_size=2),
    st.lists(EXPRESSIONS, min_size=1, max_size=2),
    st.lists(
        st.builds(Launch, st.just(0), EXPRESSIONS, st.lists(ARGUMENTS, max_size=4)), max_size=2
    ),
)
KERNEL = Kernel("route", 64, 50000, [(89, 0, 8, 0)])
OUTPUTS = [Output("i64", -1, ["0.0", 3]), Output("fp16", 1, ["1.0", "1.1", "1.2"])]
SIZES = st.integers(0, 9)
ANY_SHAPES = st.tuples(*(st.lists(SIZES, min_size=len(s), max_size=len(s)) for s in SHAPES))


@settings(deadline=None, max_examples=300, database=None)
@given(st.lists(CASES, min_size=1, max_size=3), ANY_SHAPES)
def test_evaluation_is_that_of_python(cases: list[Case], shapes: Any):
    recipe = Recipe([KERNEL], OUTPUTS, cases)
    try:
        want: str | None = expected(recipe, shapes)
    except WrongError:
        want = None
    try:
        have: str | None = schedule(recipe.text(), 8, shapes)
    except ValueError:
        have = None
    assert have == want


def test_workspace_is_that_of_the_largest_case():
    few = Case([("0.0", 1, 16)], [("*", "0.0", 1000), 1], [])
    many = Case([("0.0", 17, 4096)], [("*", "0.0", 10)], [])
    text = Recipe([KERNEL], OUTPUTS, [few, many]).text()

    def rows(count: int) -> list[list[int]]:
        return [[count, 3], *SHAPES[1:]]

    ends = [(1, 8), (1, 100), (17, 100), (1, 4096), (8, 5000)]
    wanted = [(few, 8), (few, 16), (many, 100), (many, 4096), (many, 4096)]
    for (least, greatest), (case, size) in zip(ends, wanted, strict=True):
        found = workspace(text, 8, rows(least), rows(greatest))
        assert found == layout(case.buffers, rows(size))[-1]
    assert evaluate(("/", -7, 2), []) == -4  # the reference, too, rounds down


# Enqueue, on a fake GPU: launches are handed over with the bytes of their arguments.

on_a_fake_gpu = pytest.mark.skipif(bool(missing()), reason=missing())
CODES = {sm: stand_in(f"code for {sm}") for sm in (80, 89, 120)}
IMAGES = b"".join(CODES.values())
DAMAGED = IMAGES.replace(b"for 89", b"for 99")
HELD = [(sm, IMAGES.index(code), len(code), crc32(code)) for sm, code in CODES.items()]
RUN: dict[str, Any] = {"images": IMAGES.hex(), "shapes": [[2, 4], [8]]}
ARGUMENTS_OF_ALL_KINDS = [
    *(("in", 0), ("i32", "0.1"), ("in", 1), ("out", 0), ("fp32", 0.5), ("buf", 1), ("null",)),
]


def recipe_of(name: str = "route", shared: int = 0, launches: int = 1) -> str:
    launch = Launch(0, ("*", "0.0", 3), ARGUMENTS_OF_ALL_KINDS)
    empty = Launch(0, ("-", "0.0", 2), [])
    outputs = [Output("fp32", -1, ["0.0"]), Output("i32", 1, [8])]
    case = Case([], [300, 8], [*[launch] * launches, empty])
    return Recipe([Kernel(name, 96, shared, HELD)], outputs, [case]).text()


def parameters(places: list[int]) -> str:
    """Return the bytes of the arguments, laid out as a structure of C."""
    first, _, out, updated, scratch = places
    return struct.pack("@QiQQfQQ", first, 4, updated, out, 0.5, scratch + 512, 0).hex()


@on_a_fake_gpu
def test_enqueue():
    run = on_fake_gpu(run_once, RUN | {"recipe": recipe_of(launches=2)}, sm=89)
    assert run.result["done"], run.output
    launch = ["code for 89", "route", [6, 1, 1], parameters(run.result["places"])]
    assert run.result["launches"] == [launch, launch]
    (copied,) = run.log.copies("DtoD")
    assert copied.fields["bytes"] == 32
    assert [event.fields["block"] for event in run.log.launches] == [[96, 1, 1]] * 2
    assert [event.kind for event in run.log.of("module", "unload")] == ["module", "unload"]


@on_a_fake_gpu
def test_enqueue_in_place_with_much_shared_memory():
    task = RUN | {"recipe": recipe_of(shared=50000), "in_place": True}
    run = on_fake_gpu(run_once, task, sm=86)
    assert run.result["done"], run.output
    launch = ["code for 80", "route", [6, 1, 1], parameters(run.result["places"])]
    assert run.result["launches"] == [launch]
    assert not run.log.of("copy")
    (launched,) = run.log.launches
    assert launched.fields["shared"] == 50000  # a launch without leave for it is refused


UNNAMED = machine_code(89, "route", 56, 96)
FAILS: list[tuple[dict, dict, int, str]] = [  # of the recipe, of the run, the SM, what is logged
    ({}, {}, 90, "kernel route was compiled for SM80, SM89, SM120, and this GPU is SM90"),
    ({}, {"workspace": False}, 89, "768 bytes of workspace are needed, and there are none"),
    ({}, {"reserved": 512}, 89, "768 bytes of workspace are needed, and 512 were reserved"),
    ({}, {"shifted": 8}, 89, "not aligned to 16 bytes"),
    ({}, {"shapes": [[2, 4], [9]]}, 89, "output 1 has not the shape of input 1"),
    ({}, {"images": IMAGES[:-1].hex()}, 89, f"not an integer from 1 to {HELD[-1][2] - 1}"),
    ({}, {"images": DAMAGED.hex()}, 89, "kernel route for SM89: its machine code is damaged"),
]


@on_a_fake_gpu
@pytest.mark.parametrize(("recipe", "run", "sm", "said"), FAILS)
def test_enqueue_fails(recipe: dict, run: dict, sm: int, said: str):
    ran = on_fake_gpu(run_once, RUN | {"recipe": recipe_of(**recipe)} | run, sm=sm)
    assert not ran.result["done"] and not ran.log.launches
    assert ran.output.startswith("lmcast.") and said in ran.output


@on_a_fake_gpu
def test_enqueue_of_a_kernel_that_is_not_there():
    held = [(89, 0, len(UNNAMED), crc32(UNNAMED))]
    case = Case([], [8], [Launch(0, "0.0", [("in", 0)])])
    recipe = Recipe([Kernel("missing", 96, 0, held)], [Output("fp32", -1, ["0.0"])], [case])
    task = RUN | {"recipe": recipe.text(), "images": UNNAMED.hex()}
    ran = on_fake_gpu(run_once, task, sm=89)
    assert not ran.result["done"]
    assert "kernel missing for SM89: cuModuleGetFunction failed: CUDA_ERROR_NOT_FOUND" in ran.output


@on_a_fake_gpu
def test_enqueue_without_a_driver():
    task = RUN | {"recipe": recipe_of(), "driver": False}
    ran = on_fake_gpu(run_once, task, driver=None)
    assert not ran.result["done"]
    assert "no NVIDIA driver, so no GPU to run on: " in ran.output


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What TensorRT for RTX made of one node, in a process that compiles its kernel for real."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("needs tensorrt_rtx: pip install tensorrt-rtx-cu13")
    folder = tmp_path_factory.mktemp("built")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "plugin_builds.py"), str(folder)]
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout), folder


def test_every_kernel_has_a_plugin(built: tuple[dict, Path]):
    found, _ = built
    assert found["creators"] == [[name, "1"] for name in found["kernels"]]


def test_plan_holds_recipe_and_kernels(built: tuple[dict, Path]):
    found, folder = built
    plan = (folder / "plan").read_bytes()
    assert found["layers"] == ["PLUGIN_V3"]
    assert b"moe_route" in plan and found["recipe"].encode() in plan
    for sm in (89, 120):
        cubin = (folder / f"{sm}.cubin").read_bytes()
        assert cubin[:4] == b"\x7fELF" and cubin in plan
    # What the largest shape takes, 64 rows of 1000 bytes: enqueue is held to it.
    reserved = plan[plan.index(b"workspace") :][:100]
    assert struct.pack("<q", 64_000) in reserved


def test_parser_refuses_a_wrong_recipe(built: tuple[dict, Path]):
    found, _ = built
    assert found["refused"] == []
    reason = "launch plan, token 55 is 'more', not the end of the launch plan"
    assert found["reasons"][0].endswith(reason)
