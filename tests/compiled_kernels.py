"""A process of its own that compiles Triton kernels, where the tests' own process interprets them.

    python tests/compiled_kernels.py build 89   # cubins for SM89, on any machine
    python tests/compiled_kernels.py run        # every case of every operator, on this GPU

Prints JSON.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from lmcast.plugins.kernels import moe_experts_triton, moe_route_triton
from lmcast.plugins.kernels.step import Step
from lmcast.plugins.moe_experts import ACTIVATIONS
from lmcast.plugins.plugin import REGISTRY

# Qwen3-30B-A3B: places N to each size of tile, for one place alone, decode and prefill.
ROUTES, EXPERTS, WIDTH, INNER = 8, 128, 2048, 768
PLACES = {torch.bfloat16: (1, 16, 1024, 4096), torch.float16: (16,), torch.float32: (4096,)}


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def route(dtype: torch.dtype, score: str, groups: int, biased: bool) -> list[Step]:
    bias = empty(torch.float32, EXPERTS) if biased else None
    scale = (0.0, 2.5) if biased else (-1.0, 1.0)
    logits = empty(dtype, 4, EXPERTS)
    return moe_route_triton.steps(logits, bias, ROUTES, score, groups, groups // 2, *scale)[0]


def experts(
    dtype: torch.dtype,
    places: int,
    activation: str = "silu",
    biased: bool = False,
    scale_input: bool = False,
    interleaved: bool = False,
) -> list[Step]:
    weights = empty(torch.float32, places, ROUTES)
    chosen = empty(torch.int64, places, ROUTES)
    gate, up = empty(dtype, EXPERTS, INNER, WIDTH), empty(dtype, EXPERTS, INNER, WIDTH)
    if interleaved:  # gpt-oss, as its checkpoint is
        both = empty(dtype, EXPERTS, WIDTH, 2 * INNER).mT
        gate, up = both[:, ::2], both[:, 1::2]
    down = empty(dtype, EXPERTS, WIDTH, INNER)
    biases = [empty(dtype, EXPERTS, n) if biased else None for n in (INNER, INNER, WIDTH)]
    numbers = (activation, 1.702, 7.0, scale_input)
    x = empty(dtype, places, WIDTH)
    return moe_experts_triton.steps(x, weights, chosen, gate, up, down, *biases, *numbers)[0]


def steps() -> Iterator[Step]:
    """Every kernel and each way to compile it that changes more than a size."""
    for dtype in PLACES:
        yield from route(dtype, "softmax", 1, False)
        yield from route(dtype, "sigmoid", 8, True)
    for dtype, several in PLACES.items():
        for places in several:
            yield from experts(dtype, places)
    for activation in ACTIVATIONS:
        yield from experts(torch.bfloat16, 1, activation, biased=True)
    yield from experts(torch.bfloat16, 1, scale_input=True)
    yield from experts(torch.bfloat16, 16, "clipped_swish", biased=True, interleaved=True)


def build(arch: str) -> list[dict[str, Any]]:
    """Compile all steps for an SM, and say what came out."""
    built = []
    for step in steps():
        target = GPUTarget("cuda", int(arch), 32)
        made = triton.compile(step.source(), target=target, options=step.options)
        cubin = made.asm["cubin"]
        built.append(
            {
                "kernel": made.metadata.name,
                "elf": cubin[:4] == b"\x7fELF" and f".text.{made.metadata.name}".encode() in cubin,
                "arch": f"sm_{arch}".encode() in cubin,
                "shared": made.metadata.shared,
            }
        )
    return built


def run() -> list[dict[str, Any]]:
    """Run every case on the GPU; how far each is from exact eager, in units of its tolerance."""
    import_module("lmcast.graphs.blocks.moe")  # operators register themselves

    def to(args: tuple, **kind: Any) -> tuple:
        wide = {k: v for k, v in kind.items() if k != "dtype"}
        return tuple(
            a.to(**(kind if a.is_floating_point() else wide)) if isinstance(a, Tensor) else a
            for a in args
        )

    found = []
    for plugin in REGISTRY.values():
        if "triton" not in plugin.kernels:
            continue
        for i, case in enumerate(plugin.cases()):
            for dtype, close in plugin.close.items():
                args = to(case, dtype=dtype, device="cuda")
                got = plugin.kernels["triton"]()(*args)
                want = plugin.eager(*to(args, dtype=torch.float64, device="cuda"))
                pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
                for have, exact in pairs:
                    bound = close.atol + close.rtol * exact.abs()
                    worst = float(((have - exact).abs() / bound).max())
                    found.append({"case": f"{plugin.name} {i} {dtype}", "of_tolerance": worst})
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    task, *rest = sys.argv[1:]
    print(json.dumps({"build": build, "run": run}[task](*rest)))
