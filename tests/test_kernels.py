"""The Triton kernels beyond the operators' cases: sizes and layouts, and that they compile."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmcast.plugins.errors import InputError
from lmcast.plugins.moe_experts import moe_experts
from lmcast.plugins.moe_route import moe_route
from lmcast.plugins.plugin import Plugin

BENCHMARK = Path(__file__).parent / "benchmarks/kernels.py"
CHILD = Path(__file__).with_name("compiled_kernels.py")
ARCHS = (80, 89, 90, 120)
# Bytes that a program may have: 99 KB where it is least (SM89, SM120).
SHARED = 99 << 10
BOTH = pytest.mark.parametrize("plugin", [moe_route, moe_experts], ids=lambda p: p.name)


def compiled(folder: Path, *task: str) -> subprocess.Popen:
    """Start a process that compiles: without the interpreter, and with an empty cache."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CHILD), *task]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def answer(process: subprocess.Popen) -> list[dict]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return json.loads(out)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, subprocess.Popen]]:
    """All at once: each waits for ptxas half of the time."""
    folder = tmp_path_factory.mktemp("triton")
    started = {arch: compiled(folder / str(arch), "build", str(arch)) for arch in ARCHS}
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_compiles_without_a_gpu(arch: int, builds: dict[int, subprocess.Popen]):
    built = answer(builds[arch])
    assert {b["kernel"] for b in built} == {"route", "sort", "gate_up", "down_each", "combine"}
    assert all(b["elf"] and b["arch"] for b in built)
    assert max(b["shared"] for b in built) <= SHARED


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_gpu
def test_kernels_agree_with_eager_on_this_gpu(tmp_path: Path):
    wrong = [c for c in answer(compiled(tmp_path, "run")) if not c["of_tolerance"] <= 1]
    assert not wrong


def experts(
    places: int, top: int, width: int, inner: int, chosen: Tensor, biased: bool = False
) -> list:
    """Return arguments like those of the operator's cases, for chosen experts N,R."""
    count = int(chosen.max()) + 2  # the last has nothing to do
    shapes = [(inner, width), (inner, width), (width, inner)]
    stacks = [torch.randn(count, *shape) / shape[1] ** 0.5 for shape in shapes]
    biases = [torch.randn(count, shape[0]) if biased else None for shape in shapes]
    x, weights = torch.randn(places, width), torch.rand(places, top)
    return [x, weights, chosen, *stacks, *biases, "silu", 1.0, 1.0, False]


def check(args: list, atol: float = 5e-6) -> None:
    got = moe_experts.kernels["triton"]()(*args)
    torch.testing.assert_close(got, moe_experts.eager(*args), atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_more_routes_than_one_tile_and_one_block_of_the_sort(dtype: torch.dtype):
    """An expert of several tiles, one of a part, one of none; sizes past one block of each axis."""
    torch.manual_seed(1)
    chosen = torch.stack([torch.zeros(600), 1 + 2 * (torch.arange(600) > 570)], 1).long()
    args = experts(600, 2, 40, 136, chosen, biased=True)
    args = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    args[1] = args[1].float()
    # Sums of up to 136 products, and of a bias; in fp16 2 epsilons of values up to 8.
    check(args, 1e-5 if dtype == torch.float32 else 1.6e-2)


def test_wide_outputs_are_summed_in_several_blocks():
    torch.manual_seed(2)
    check(experts(2, 2, 1100, 8, torch.tensor([[0, 1], [2, 1]])))


def test_weights_are_read_where_they_lie():
    """gpt-oss: turned, with gate and up in turn; x is every second token."""
    torch.manual_seed(3)
    args = experts(5, 2, 40, 36, torch.rand(5, 4).argsort(-1)[:, :2])
    count = len(args[3])
    both = torch.randn(count, 40, 72) / 6
    args[0] = torch.randn(10, 40)[::2]
    args[3:6] = [both.mT[:, ::2], both.mT[:, 1::2], (torch.randn(count, 36, 40) / 6).mT]
    check(args)


def test_no_places():
    args = experts(3, 2, 16, 8, torch.tensor([[0, 1]] * 3))
    args[:3] = [a[:0] for a in args[:3]]
    check(args)
    weights, chosen = moe_route.kernels["triton"]()(
        torch.empty(0, 2, 6), None, 2, "softmax", 1, 1, 0.0, 1.0
    )
    assert weights.shape == chosen.shape == (0, 2, 2)


def test_equal_scores_go_to_the_lowest_expert():
    launch = moe_route.kernels["triton"]()
    _, chosen = launch(torch.zeros(2, 7), None, 3, "softmax", 1, 1, 0.0, 1.0)
    assert chosen.tolist() == [[0, 1, 2]] * 2
    _, chosen = launch(torch.zeros(1, 12), None, 4, "sigmoid", 4, 2, 0.0, 1.0)
    assert chosen.tolist() == [[0, 1, 2, 3]]


def test_no_expert_is_chosen_twice_where_all_are_wanted_less_than_nothing():
    launch = moe_route.kernels["triton"]()
    args = (torch.arange(5.0)[None], torch.full((5,), -9.0), 5, "sigmoid", 1, 1, 0.0, 1.0)
    assert launch(*args)[1].tolist() == [[4, 3, 2, 1, 0]]


def test_not_a_number_is_seen_in_the_weights():
    logits = torch.zeros(1, 6)
    logits[0, 4] = float("nan")
    weights, chosen = moe_route.kernels["triton"]()(logits, None, 2, "sigmoid", 1, 1, -1.0, 1.0)
    assert chosen.tolist() == [[4, 0]]
    assert weights.isnan().tolist() == [[True, False]]


@BOTH
def test_without_triton_the_extra_is_named(plugin: Plugin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InputError, match=rf"{plugin.name}: .* 'lmcast\[triton\]'"):
        plugin.kernels["triton"]()


@BOTH
def test_other_dtypes_are_refused(plugin: Plugin):
    args = list(plugin.cases()[0])
    args[0] = args[0].double()
    with pytest.raises(InputError, match="float64"):
        plugin.kernels["triton"]()(*args)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device: it would measure")
def test_the_benchmark_says_that_it_needs_a_gpu():
    done = subprocess.run([sys.executable, BENCHMARK], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kernels.py: there is no CUDA device here; nothing was measured\n"


def test_the_benchmark_counts_what_it_says(monkeypatch: pytest.MonkeyPatch):
    """Its own path without the GPU: small sizes, the interpreter, a clock that always says 1 ms."""
    spec = importlib.util.spec_from_file_location("kernels_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, bench)  # its dataclasses look themselves up
    spec.loader.exec_module(bench)
    model = bench.Model("small", 6, 2, 16, 24, "clipped_swish", biased=True)

    def ways(work: object) -> dict:
        operator = {"moe_route": moe_route, "moe_experts": moe_experts}[work.operator]
        return {"eager": bench.Way(operator.eager, graph=False)}

    def time(run: Callable[[], None], graph: bool) -> float:
        assert not graph
        run()
        return 3e-3

    works = [bench.route_work(model, 4, "cpu"), bench.experts_work(model, 1, "cpu")]
    one, three = bench.measure(iter(works), ways, time, (1e6, 1e9))
    # 4 x 6 logits of 2 bytes, 4 x 2 picks of 12: 144 bytes at 1 MB/s, in 3 ms.
    assert one == [
        "moe_route",
        "small",
        "4",
        "eager",
        "launched",
        "3000.0",
        "144.0",
        "4.8% of bytes",
    ]
    # Two experts of 3 x 16 x 24 weights and 2 x 24 + 16 biases, x and out of 16: all of 2 bytes;
    # shares and choices of 12. Three calls, each with its own two experts.
    moved = 2 * (2 * (3 * 16 * 24 + 64) + 2 * 16) + 2 * 12
    assert three[5:7] == ["1000.0", f"{moved:.1f}"]
    wrong = bench.Way(lambda *args: moe_experts.eager(*args) * 1.1, graph=False)
    with pytest.raises(RuntimeError, match="moe_experts small 1: wrong is off"):
        bench.measure(iter(works[1:]), lambda _: {"wrong": wrong}, time, (1e6, 1e9))
