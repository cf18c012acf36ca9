"""How fast the Triton kernels are on this machine's GPU: prints a table and writes RESULTS.md.

    python tests/benchmarks/triton_kernels.py [--bandwidth 3.35e12 --flops 989e12]

Each operator runs in bf16 at the sizes of released models, beside eager PyTorch (the operator's
definition, or a better form in plain torch), torch.compile of it, and the kernel of vLLM,
FlashInfer or flash-linear-attention where that is installed and has one for that model. Attention
to latents and its index are decoding steps with a context of 32k; linear attention of up to 64
tokens is a decoding step of so many rows, of more, one prompt. The limit is the time that the bytes
or the multiplications alone would take; the share is limit / time. Exit status 2 without a CUDA
device.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_works import Work, absorbed, gathered, put, works
from linear_works import chunked, linear_works
from torch import Tensor
from triton import testing

from lmcast.plugins import plugin
from lmcast.plugins.experts.moe_experts import moe_experts
from lmcast.plugins.experts.moe_route import moe_route
from lmcast.plugins.latent.sparse_index import sparse_index

RESULTS = Path(__file__).with_name("RESULTS.md")
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


# What runs beside each kernel: the operator's definition, or the same in plain torch where that
# makes keys and values of all heads: 137 GB for 64 rows of 32k.
PLAIN: dict[str, tuple[str, Callable]] = {
    "moe_route": ("eager", moe_route.eager),
    "moe_experts": ("eager", moe_experts.eager),
    "mla_attention": ("plain, absorbed", absorbed),
    "sparse_index": ("eager", sparse_index.eager),
    "sparse_attention": ("plain, absorbed and gathered", gathered),
    "linear_attention": ("plain, by chunks", chunked),
}


@dataclass(frozen=True)
class Way:
    """A way to compute an operator; graph: as one CUDA graph, so without the host's time."""

    function: Callable
    graph: bool


Timer = Callable[[Callable[[], None], bool], float]  # calls, as a graph -> seconds


def public(work: Work) -> dict[str, Way]:
    """Return a public kernel for this work, where one is installed."""
    if work.operator in ("moe_route", "moe_experts"):
        return vllm(work)
    if work.operator == "linear_attention":
        return fla(work)
    return {} if work.operator == "sparse_index" else flashinfer(work)


def vllm(work: Work) -> dict[str, Way]:
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


def flashinfer(work: Work) -> dict[str, Way]:
    """FlashInfer attends to pages of latents: of 64 rows, or of one chosen row each. What is before
    and after, torch does. Its plans are made here, so their time is not counted."""
    try:
        from flashinfer.mla import BatchMLAPagedAttentionWrapper as Paged
    except ImportError:
        return {}
    plans = {}
    for query, turned, _, past, lengths, _, *chosen, key_up, _, scale in work.calls:
        batch, context, _ = past.shape
        starts = torch.arange(batch + 1, device=past.device, dtype=torch.int32)
        first = starts[:-1, None] * context
        pages = (first + chosen[0][:, 0]) if chosen else torch.arange(batch * context // 64)
        each = pages.numel() // batch
        held = torch.full_like(lengths, each) if chosen else lengths + 1
        plan = Paged(torch.empty(128 << 20, dtype=torch.int8, device=past.device))
        plan.plan(
            starts, starts * each, pages.flatten().to(starts), held.int(), query.shape[2],
            key_up.shape[2], turned.shape[3], 1 if chosen else 64, False, scale, query.dtype,
            past.dtype,
        )  # fmt: skip
        plans[past.data_ptr()] = plan

    def attention(
        query: Tensor, turned: Tensor, latent: Tensor, past: Tensor, lengths: Tensor, *rest: Any
    ) -> Any:
        _, *chosen, key_up, value_up, _ = rest
        put(latent, past, lengths)
        folded = torch.einsum("bhn,hnl->bhl", query[:, 0], key_up)
        pages = past.view(-1, 1 if chosen else 64, past.shape[2])
        halves = pages.split((key_up.shape[2], turned.shape[3]), -1)
        taken = plans[past.data_ptr()].run(folded, turned[:, 0], *halves)
        return torch.einsum("bhl,hvl->bhv", taken, value_up)[:, None]

    return {"FlashInfer MLA": Way(attention, graph=True)}


def fla(work: Work) -> dict[str, Way]:
    """flash-linear-attention, on queries and keys for every head of values: they are made here, so
    their time is not counted."""
    try:
        from fla.ops import gated_delta_rule as rule
    except ImportError:
        return {}
    several = work.calls[0][2].shape[1] > 1
    name = "chunk_gated_delta_rule" if several else "fused_recurrent_gated_delta_rule"
    each = {}
    for query, key, _, past, *_ in work.calls:
        halves = (x.unflatten(-1, (-1, past.shape[2])) for x in (query, key))
        heads = past.shape[1]
        each[past.data_ptr()] = [x.repeat_interleave(heads // x.shape[2], 2) for x in halves]

    def attention(
        _query: Tensor, _key: Tensor, value: Tensor, past: Tensor, decay: Tensor, *rest: Any
    ) -> Any:
        _, beta, normalize, _, scale = rest
        values = value.unflatten(-1, (past.shape[1], -1))
        out, state = getattr(rule, name)(
            *each[past.data_ptr()], values, decay, beta, scale=scale, initial_state=past,
            output_final_state=True, use_qk_l2norm_in_kernel=normalize,
        )  # fmt: skip
        return out.flatten(-2), state

    return {f"fla {name}": Way(attention, graph=True)}


def ways(work: Work) -> dict[str, Way]:
    """Return all ways by name; eager loops over the experts it finds, which no graph can hold."""
    name, plain = PLAIN[work.operator]
    graph = work.operator != "moe_experts"
    torch.compiler.reset()  # each work is compiled anew, for its own sizes
    return {
        "lmcast": Way(plugin.triton(work.operator)(), graph=True),
        name: Way(plain, graph=graph),
        f"torch.compile, {name}": Way(torch.compile(plain), graph=graph),
        **public(work),
    }


def check(work: Work, name: str, way: Way, expected: list[Tensor]) -> None:
    """Speed is worth nothing unless all compute the same: 2 % of the norm, for sums in bf16.

    Of positions, which are chosen by whole numbers, the same share may differ.
    """
    for args, want in zip(work.calls, expected, strict=True):
        got = first(way.function(*args))
        if want.is_floating_point():
            error = float((got.float() - want.float()).norm() / want.float().norm())
        else:
            error = float((got != want).float().mean())
        if not error < 0.02:
            raise RuntimeError(f"{work.operator} {work.model} {work.places}: {name} is off {error}")


def first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def measure(
    works: Iterable[Work], ways: Callable[[Work], Mapping[str, Way]], time: Timer, peaks: tuple
) -> list[list[str]]:
    """Return the rows of the table; `time` says how long a run of all calls takes."""
    rows = []
    for work in works:
        expected = [first(PLAIN[work.operator][1](*args)) for args in work.calls]
        limits = {"bytes": work.moved / peaks[0], "FLOPs": work.flops / peaks[1]}
        by = max(limits, key=lambda name: limits[name])
        at = work.state
        held = [] if at is None else [args[at].clone() for args in work.calls]
        for name, way in ways(work).items():
            for args, state in zip(work.calls, held, strict=at is not None):
                args[at].copy_(state)
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
    table = text(measure(chain(works("cuda"), linear_works("cuda")), ways, on_gpu, peaks))
    print(table)
    command = shlex.join(["python", "tests/benchmarks/triton_kernels.py", *sys.argv[1:]])
    RESULTS.write_text(
        f"# Kernels on a GPU\n\n`{command}` on {name}: {peaks[0] / 1e12:.2f} TB/s and"
        f" {peaks[1] / 1e12:.0f} TFLOP/s at most; torch {torch.__version__}, triton"
        f" {triton.__version__}, CUDA {torch.version.cuda}. bf16; medians. graph: as one CUDA"
        f" graph; launched: with the host's time where that is longer.\n\n{table}\n",
        encoding="utf-8",
    )


def refusal(why: str) -> int:
    print(f"triton_kernels.py: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
