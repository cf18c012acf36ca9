"""gated_activation in Triton: each program takes a run of one place's columns.

Letters: N places, I inner width.
"""

import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.experts.moe_experts_triton import activated
from lmcast.plugins.launch.step import Step, launcher

MOST = 1024  # columns of a program: 4 warps with 8 numbers a thread


@triton.jit
def gated(both, out, I: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):  # noqa: E741
    """both: N,2I; out: N,I."""
    RUNS: tl.constexpr = (I + BLOCK - 1) // BLOCK
    place = (tl.program_id(0) // RUNS).to(tl.int64)
    column = (tl.program_id(0) % RUNS) * BLOCK + tl.arange(0, BLOCK)
    inside = column < I
    gates = tl.load(both + place * 2 * I + column, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(both + place * 2 * I + I + column, mask=inside, other=0.0).to(tl.float32)
    product = activated(gates, ups, 0.0, 0.0, ACTIVATION)
    tl.store(out + place * I + column, product.to(out.dtype.element_ty), mask=inside)


def steps(both: Tensor, activation: str) -> tuple[list[Step], Tensor]:
    """Return the one launch for gated_activation's arguments, and the output that it fills."""
    inner = both.shape[-1] // 2
    out = both.new_empty((*both.shape[:-1], inner))
    block = min(MOST, triton.next_power_of_2(inner))
    runs = -(-inner // block)
    arguments = {
        "both": both.contiguous(), "out": out, "I": inner, "BLOCK": block, "ACTIVATION": activation,
    }  # fmt: skip
    step = Step(gated, out.numel() // inner * runs, arguments)
    return [step] if step.programs else [], out


launch = launcher(steps)
