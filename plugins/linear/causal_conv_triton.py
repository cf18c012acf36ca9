"""causal_conv in Triton; letters as there.

The inputs `past` are updated in place and returned, as engines bind one memory to a state before
and after. The program of a row's first tokens, the only one that reads them, writes them.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.errors import InputError
from lmcast.plugins.launch.sizes import largest
from lmcast.plugins.launch.step import Step, launcher


@triton.jit
def inputs(x, past, at, inside, column, D: tl.constexpr, W: tl.constexpr):
    """Return inputs of one row of the batch, counted from the oldest of `past`; zeros outside."""
    at, here = at[:, None], inside[:, None] & (column < D)[None, :]
    new = tl.load(x + (at - (W - 1)) * D + column[None, :], mask=here & (at >= W - 1), other=0.0)
    if W == 1:
        return new
    else:
        old = tl.load(past + at * D + column[None, :], mask=here & (at < W - 1), other=0.0)
        return tl.where(at < W - 1, old, new)


@triton.jit
def hold(x, past, token_counts, tile, column, D: tl.constexpr, W: tl.constexpr):
    """Write the last W - 1 valid inputs of a row where those before them lie."""
    if tile == 0:
        place = tl.arange(0, triton.next_power_of_2(W - 1))
        last = inputs(x, past, tl.load(token_counts) + place, place < W - 1, column, D, W)
        tl.debug_barrier()  # all threads have read
        inside = (place < W - 1)[:, None] & (column < D)[None, :]
        tl.store(past + place[:, None] * D + column[None, :], last, mask=inside)


@triton.jit
def convolve(
    x,  # B,T,D
    weight,  # D,W
    past,  # B,W-1,D
    token_counts,  # B
    bias,  # D or None
    out,  # B,T,D
    T,
    D: tl.constexpr,
    W: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,  # all tokens, or at least W - 1
    COLUMNS: tl.constexpr,
):
    """ROWS tokens and COLUMNS channels; the first program of each row also writes the new state."""
    program = tl.program_id(0)
    parts, tiles = tl.cdiv(D, COLUMNS), tl.cdiv(T, ROWS)
    column = program % parts * COLUMNS + tl.arange(0, COLUMNS)
    tile, b = program // parts % tiles, (program // parts // tiles).to(tl.int64)
    token = tile * ROWS + tl.arange(0, ROWS)
    x += b * T * D
    past += b * (W - 1) * D
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for w in tl.static_range(W):
        own = inputs(x, past, token.to(tl.int64) + w, token < T, column, D, W)
        tap = tl.load(weight + column * W + w, mask=column < D, other=0.0)
        total += own.to(tl.float32) * tap.to(tl.float32)[None, :]
    if bias is not None:
        total += tl.load(bias + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total *= tl.sigmoid(total)
    at = out + (b * T + token)[:, None] * D + column[None, :]
    inside = (token < T)[:, None] & (column < D)[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside)
    if W > 1:
        hold(x, past, token_counts + b, tile, column, D, W)


ROWS, COLUMNS = 16, 256  # 32 sums a thread


def steps(
    x: Tensor,
    weight: Tensor,
    past: Tensor,
    token_counts: Tensor,
    bias: Tensor | None,
    silu: bool,
) -> tuple[list[Step], tuple[Tensor, Tensor]]:
    """Return the launch for causal_conv's arguments, and the output and the inputs it fills."""
    if not past.is_contiguous():
        raise InputError(f"a state has strides {past.stride()}; accepted: contiguous, in place")
    batch, tokens, channels = x.shape
    taps = weight.shape[2]
    out = x.new_empty(x.shape)
    if not out.numel():
        return [], (out, past)
    rows = triton.next_power_of_2(min(largest(tokens), max(ROWS, taps - 1)))
    arguments: dict[str, Any] = {
        "x": x.contiguous(),
        "weight": weight.contiguous(),
        "past": past,
        "out": out,
    }
    arguments |= {"token_counts": token_counts, "T": tokens, "D": channels}
    arguments["bias"] = None if bias is None else bias.contiguous()
    arguments |= {"W": taps, "SILU": silu, "ROWS": rows, "COLUMNS": COLUMNS}
    programs = batch * -(-tokens // rows) * -(-channels // COLUMNS)
    return [Step(convolve, programs, arguments)], (out, past)


launch = launcher(steps)
