"""A process of its own that compiles Triton kernels, where the tests' own process interprets them.

    python tests/plugins/compiled_kernels.py build 89       # cubins for SM89, on any machine
    python tests/plugins/compiled_kernels.py build 80,90 0 73  # of these steps alone
    python tests/plugins/compiled_kernels.py run  # all cases of every operator, on this GPU
    python tests/plugins/compiled_kernels.py recipes FOLDER 89 120  # two recipes for these SMs

Prints JSON.
"""

import gc
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from compiled_linear import linear_steps
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget

from lmcast.plugins.experts import moe_experts_triton, moe_route_triton
from lmcast.plugins.experts.moe_experts import ACTIVATIONS
from lmcast.plugins.latent import mla_attention_triton, sparse_attention_triton, sparse_index_triton
from lmcast.plugins.launch.launch_plan import Bounds, Given, MachineCode, compiled_plan
from lmcast.plugins.launch.step import Kernel, Step
from lmcast.plugins.plugin import REGISTRY

# Qwen3-30B-A3B: places N to each size of tile, for one place alone, decode and prefill.
ROUTES, EXPERTS, WIDTH, INNER = 8, 128, 2048, 768
# Of DeepSeek-V3 and GLM-5: heads, then widths of queries and values.
DEEPSEEK, GLM = (128, 128, 128), (64, 192, 256)
RANK, TURNED, CAPACITY, CHOSEN = 512, 64, 32768, 2048
CUOBJDUMP = Path(nvidia.__file__).parent / "bin/cuobjdump"
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
    gated: bool = True,
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
    matrices = (gate if gated else None, up, down)
    return moe_experts_triton.steps(x, weights, chosen, *matrices, *biases, *numbers)[0]


def attention(
    dtype: torch.dtype, batch: int, tokens: int, sizes: tuple[int, int, int], sparse: bool = False
) -> list[Step]:
    heads, width, value_width = sizes
    held = (empty(dtype, batch, n, RANK + TURNED) for n in (tokens, CAPACITY))
    counts = (empty(torch.int64, batch), empty(torch.int64, batch))
    chosen = [empty(torch.int64, batch, tokens, CHOSEN)] if sparse else []
    ups = (empty(dtype, heads, n, RANK) for n in (width, value_width))
    queries = (empty(dtype, batch, tokens, heads, n) for n in (width, TURNED))
    module = sparse_attention_triton if sparse else mla_attention_triton
    return module.steps(*queries, *held, *counts, *chosen, *ups, 0.1)[0]


def index(dtype: torch.dtype, heads: int, width: int = 128) -> list[Step]:
    query, weights = empty(dtype, 1, 1, heads, width), empty(torch.float32, 1, 1, heads)
    held = (empty(dtype, 1, n, width) for n in (1, CAPACITY))
    counts = (empty(torch.int64, 1), empty(torch.int64, 1))
    return sparse_index_triton.steps(query, weights, *held, *counts, CHOSEN)[0]


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
    for places in (1, 4096):  # their columns are twice as wide
        yield from experts(torch.bfloat16, places, "relu", gated=False)
    yield from attention(torch.bfloat16, 1, 1, DEEPSEEK)  # splits, and a tile of 32
    yield from attention(torch.bfloat16, 64, 1, GLM, sparse=True)
    yield from attention(torch.bfloat16, 1, 4096, DEEPSEEK, sparse=True)  # one split
    # The attention alone, without what is before and after: a tile of 16, and fp32 in one split.
    yield attention(torch.float16, 64, 1, (16, 192, 256))[2]
    yield attention(torch.float32, 1, 4096, DEEPSEEK)[2]
    for dtype, heads in ((torch.bfloat16, 64), (torch.float16, 32), (torch.float32, 64)):
        yield from index(dtype, heads)
    yield from linear_steps()


def stack(cubin: bytes) -> int:
    """Return how many bytes a thread keeps outside of its registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [CUOBJDUMP, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(int(found) for found in re.findall(r"STACK:(\d+)", usage))


def build(archs: str, *chosen: str) -> list[dict[str, Any]]:
    """Compile all steps for these SMs, or the chosen ones by number, and say what came out."""
    every = enumerate(steps())
    wanted = [(n, step.compiled) for n, step in every if not chosen or str(n) in chosen]
    return [built(n, kernel, int(arch)) for arch in archs.split(",") for n, kernel in wanted]


def built(number: int, kernel: Kernel, arch: int) -> dict[str, Any]:
    """Return the number of a step, and what came out of its kernel for an SM."""
    return {"sm": arch, "step": number, **facts(kernel, arch)}


@cache  # a third of the steps have the kernel of another
def facts(kernel: Kernel, arch: int) -> dict[str, Any]:
    """Compile a kernel for an SM, and say what came out."""
    target = GPUTarget("cuda", arch, 32)
    made = triton.compile(kernel.source(), target=target, options=kernel.options)
    cubin = made.asm["cubin"]
    return {
        "kernel": made.metadata.name,
        "elf": cubin[:4] == b"\x7fELF" and f".text.{made.metadata.name}".encode() in cubin,
        "arch": f"sm_{arch}".encode() in cubin,
        "shared": made.metadata.shared,
        "stack": stack(cubin),
    }


def run() -> list[dict[str, Any]]:
    """Run every case on the GPU; how far each is from exact eager, in units of its tolerance."""
    for block in ("moe", "mla", "delta"):  # operators register themselves
        import_module(f"lmcast.graphs.blocks.{block}")

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
                want = plugin.eager(*to(args, dtype=torch.float64, device="cuda"))
                got = plugin.kernels["triton"]()(*args)  # later: it writes states in place
                pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
                for have, exact in pairs:
                    error, bound = (have - exact).abs(), close.atol + close.rtol * exact.abs()
                    worst = float(torch.where(error == 0, 0.0, error / bound).max())
                    found.append({"case": f"{plugin.name} {i} {dtype}", "of_tolerance": worst})
    return found


def recipes(folder: str, *archs: str) -> list[str]:
    """Write recipes and their cubins at the sizes of Qwen3-Next; the others take minutes."""
    dtype, places = torch.bfloat16, ("B", "T")
    held, counts = Given(dtype, ("B", 3, 8192)), Given(torch.int64, ("B",))
    conv = (Given(dtype, (*places, 8192)), Given(dtype, (8192, 1, 4)), held, counts, None, True)
    route = (Given(dtype, (*places, 512)), None, 10, "softmax", 1, 1, 0.0, 1.0)
    tokens = (Bounds(1, 1, 1), Bounds(1, 4096, 512))
    cases = [{"B": Bounds(1, 8, 1), "T": bounds} for bounds in tokens]
    works = {"causal_conv": conv, "moe_route": route}
    for name, arguments in works.items():
        code = MachineCode()
        script = compiled_plan(name, arguments, cases, [int(arch) for arch in archs], code)
        Path(folder, name).write_text(script)
        Path(folder, f"{name}.cubins").write_bytes(code.blob)
    return list(works)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    gc.set_threshold(200_000, 20, 100)  # as tests/conftest.py does
    task, *rest = sys.argv[1:]
    print(json.dumps({"build": build, "run": run, "recipes": recipes}[task](*rest)))
