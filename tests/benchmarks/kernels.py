"""How fast the Triton kernels are on this machine's GPU: prints a table and writes RESULTS.md.

    python tests/benchmarks/kernels.py [--bandwidth 3.35e12 --flops 989e12]

Each operator runs in bf16 at the sizes of two released models, beside eager PyTorch (the
operator's definition), torch.compile of it, and vLLM's kernel where vLLM is installed and has one
for that model. The limit is the time that the bytes or the multiplications alone would take; the
share is limit / time. Exit status 2 without a CUDA device.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton import testing

from lmcast.plugins.moe_experts import moe_experts
from lmcast.plugins.moe_route import moe_route

RESULTS = Path(__file__).with_name("RESULTS.md")
PLACES = (1, 16, 64, 4096)  # decode of three batches, and a prefill
# Bytes/s of memory and dense bf16 FLOP/s with fp32 sums, from the data sheets; by torch's name.
PEAKS = {
    "NVIDIA H200": (4.8e12, 989e12),
    "NVIDIA H100 80GB HBM3": (3.35e12, 989e12),
    "NVIDIA H100 PCIe": (2.0e12, 756e12),
    "NVIDIA A100-SXM4-80GB": (2.039e12, 312e12),
    "NVIDIA L40S": (864e9, 362e12),
    "NVIDIA GeForce RTX 4090": (1008e9, 165e12),
    "NVIDIA GeForce RTX 5090": (1792e9, 209e12),
}


@dataclass(frozen=True)
class Model:
    """What the operators need to know of a model; letters as in the operators."""

    name: str
    experts: int
    routes: int
    width: int
    inner: int
    activation: str = "silu"
    biased: bool = False


MODELS = (
    Model("Qwen3-30B-A3B", 128, 8, 2048, 768),
    Model("gpt-oss-20b", 32, 4, 2880, 2880, "clipped_swish", biased=True),
)


@dataclass(frozen=True)
class Work:
    """Calls of an operator, and what one must move and multiply at least.

    Several calls choose different experts, so that no call finds its weights in the L2 cache.
    """

    operator: str
    model: str
    places: int
    calls: list[tuple]
    moved: float  # bytes
    flops: float


@dataclass(frozen=True)
class Way:
    """A way to compute an operator; graph: as one CUDA graph, so without the host's time."""

    function: Callable
    graph: bool


Timer = Callable[[Callable[[], None], bool], float]  # calls, as a graph -> seconds


def nbytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def route_work(model: Model, places: int, device: str) -> Work:
    args = (None, model.routes, "softmax", 1, 1, 0.0, 1.0)
    logits = torch.randn(places, model.experts, device=device, dtype=torch.bfloat16)
    moved = nbytes(logits) + places * model.routes * (4 + 8)  # fp32 weights, int64 experts
    return Work("moe_route", model.name, places, [(logits, *args)], moved, 0.0)


def experts_work(model: Model, places: int, device: str) -> Work:
    count, routes, width, inner = model.experts, model.routes, model.width, model.inner

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    both = random(count, 2 * inner, width).div_(width**0.5)  # one stack, as vLLM wants it
    gate, up = both[:, :inner], both[:, inner:]
    down = random(count, width, inner).div_(inner**0.5)
    sizes = (inner, inner, width)
    biases = [random(count, n) if model.biased else None for n in sizes]
    x = random(places, width)
    shares = torch.rand(places, routes, device=device)
    # Of one order of all experts for each place, every call takes the next few.
    order = torch.rand(places, count, device=device).argsort(-1)
    choices = order[:, : count // routes * routes].split(routes, -1) if places < 64 else [order]
    calls: list[tuple] = []
    moved = 0.0
    for choice in choices:
        chosen = choice[:, :routes].contiguous()
        rest = (model.activation, 1.702, 7.0, False)
        calls.append((x, shares, chosen, gate, up, down, *biases, *rest))
        active = int(chosen.unique().numel()) / count
        moved += active * nbytes(both, down, *biases) + nbytes(x, shares, chosen) + nbytes(x)
    flops = 6.0 * places * routes * width * inner
    return Work("moe_experts", model.name, places, calls, moved / len(calls), flops)


def public(work: Work) -> dict[str, Way]:
    """Return vLLM's kernel for this work, if it is installed and has one."""
    try:
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts, fused_topk
    except ImportError:
        return {}
    if work.operator == "moe_route":

        def topk(logits: Tensor, _bias: None, top_k: int, *_: Any) -> Any:
            return fused_topk(logits, logits, top_k, renormalize=True)[:2]

        return {"vLLM fused_topk": Way(topk, graph=True)}
    if work.calls[0][6] is not None:  # biases
        return {}
    _, _, _, gate, up, *_ = work.calls[0]
    both = torch.cat([gate, up], 1)

    def experts(x: Tensor, shares: Tensor, chosen: Tensor, *rest: Any) -> Any:
        return fused_experts(x, both, rest[2], shares, chosen.int())

    return {"vLLM fused_experts": Way(experts, graph=True)}


def ways(work: Work) -> dict[str, Way]:
    """Return all ways by name; eager loops over the experts it finds, which no graph can hold."""
    operator = {"moe_route": moe_route, "moe_experts": moe_experts}[work.operator]
    plain = work.operator == "moe_route"
    torch.compiler.reset()  # each work is compiled anew, for its own sizes
    return {
        "lmcast": Way(operator.kernels["triton"](), graph=True),
        "eager": Way(operator.eager, graph=plain),
        "torch.compile": Way(torch.compile(operator.eager), graph=plain),
        **public(work),
    }


def check(work: Work, name: str, way: Way, expected: list[Tensor]) -> None:
    """Speed is worth nothing unless all compute the same: 2 % of the norm, for sums in bf16."""
    for args, want in zip(work.calls, expected, strict=True):
        got = first(way.function(*args))
        error = float((got.float() - want.float()).norm() / want.float().norm())
        if not error < 0.02:
            raise RuntimeError(f"{work.operator} {work.model} {work.places}: {name} is off {error}")


def first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def measure(
    works: Iterator[Work], ways: Callable[[Work], Mapping[str, Way]], time: Timer, peaks: tuple
) -> list[list[str]]:
    """Return the rows of the table; `time` says how long a run of all calls takes."""
    rows = []
    for work in works:
        operator = {"moe_route": moe_route, "moe_experts": moe_experts}[work.operator]
        expected = [first(operator.eager(*args)) for args in work.calls]
        limits = {"bytes": work.moved / peaks[0], "FLOPs": work.flops / peaks[1]}
        by = max(limits, key=lambda name: limits[name])
        for name, way in ways(work).items():
            check(work, name, way, expected)

            def run(function: Callable = way.function, calls: list[tuple] = work.calls) -> None:
                for args in calls:
                    function(*args)

            seconds = time(run, way.graph) / len(work.calls)
            share = f"{limits[by] / seconds:.1%} of {by}"
            how = "graph" if way.graph else "launched"
            cells = [f"{seconds * 1e6:.1f}", f"{limits[by] * 1e6:.1f}", share]
            rows.append([work.operator, work.model, str(work.places), name, how, *cells])
    return rows


def text(rows: list[list[str]]) -> str:
    columns = ["operator", "model", "tokens", "way", "run", "µs", "limit µs", "share"]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def on_gpu(run: Callable[[], None], graph: bool) -> float:
    """Return the median seconds of a run, by the GPU's own clock."""
    bench = testing.do_bench_cudagraph if graph else testing.do_bench
    return bench(run, return_mode="median") / 1e3


def works(device: str, models: tuple[Model, ...] = MODELS) -> Iterator[Work]:
    for model in models:
        for make in (route_work, experts_work):
            for places in PLACES:
                torch.manual_seed(0)
                yield make(model, places, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bandwidth", type=float, help="bytes/s; default: by the GPU's name")
    parser.add_argument("--flops", type=float, help="dense bf16 FLOP/s; default: by its name")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(refusal("there is no CUDA device here; nothing was measured"))
    name = torch.cuda.get_device_name()
    given = (options.bandwidth, options.flops)
    known = PEAKS.get(name, (None, None))
    peaks = tuple(g or k for g, k in zip(given, known, strict=True))
    if None in peaks:
        sys.exit(refusal(f"the peaks of {name} are not known; give --bandwidth and --flops"))
    table = text(measure(works("cuda"), ways, on_gpu, peaks))
    print(table)
    command = shlex.join(["python", "tests/benchmarks/kernels.py", *sys.argv[1:]])
    RESULTS.write_text(
        f"# Kernels on a GPU\n\n`{command}` on {name}: {peaks[0] / 1e12:.2f} TB/s and"
        f" {peaks[1] / 1e12:.0f} TFLOP/s at most; torch {torch.__version__}, triton"
        f" {triton.__version__}, CUDA {torch.version.cuda}. bf16; medians. graph: as one CUDA"
        f" graph; launched: with the host's time where that is longer.\n\n{table}\n",
        encoding="utf-8",
    )


def refusal(why: str) -> int:
    print(f"kernels.py: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
