"""mla_attention in Triton, always in the absorbed form.

Queries are multiplied with key_up first, attend to the latents in the cache without copying or
expanding them, split along the cache, and the result is multiplied with value_up.

The cache `past` is updated in place and returned, as engines bind one memory to a state before and
after. The host never waits for the GPU: the number of splits follows from the capacity, their
lengths from cache_lengths on the GPU, and a program with nothing to attend to returns. For a long
prompt this form takes more multiplications than the expanded one, which the operator's body has.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.latent.by_head import by_head
from lmcast.plugins.latent.latent_rows import (
    attend,
    combining,
    keep,
    results,
    skip,
    split_count,
    sweep_for,
    writing,
)
from lmcast.plugins.launch.step import Step, launcher


@triton.jit
def attend_all(
    folded,  # B,T,H,L
    rotated,  # B,T,H,R
    cache,  # B,C,L+R, with the new rows
    cache_lengths,  # B
    taken,  # B,T,H,L
    partial,  # B,T,H,splits,L or None
    peaks,  # B,T,H,splits or None
    splits,
    scale,
    T,
    C,
    H: tl.constexpr,
    L: tl.constexpr,
    R: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of the queries of one row of the batch, and a split of the slots that they see."""
    # Programs side by side read the same slots: all but one of them from the L2 cache.
    program = tl.program_id(0)
    tiles = tl.cdiv(T * H, ROWS)
    tile, split = program % tiles, program // tiles % splits
    b = program // tiles // splits
    length = tl.load(cache_lengths + b).to(tl.int32)
    number = tile * ROWS + tl.arange(0, ROWS)
    real = number < T * H
    query = b * T * H + number
    size = tl.cdiv(tl.cdiv(tl.minimum(length + T, C), splits), BLOCK) * BLOCK
    start = split * size
    last = tl.minimum(length + tl.minimum((tile * ROWS + ROWS - 1) // H, T - 1), C - 1)
    end = tl.minimum(start + size, last + 1)
    if start >= end:
        skip(peaks, query, real, split, splits)
        return
    row = query.to(tl.int64)
    position = length + number // H
    rows = cache + b.to(tl.int64) * C * (L + R)
    own, own_rotated = folded + row * L, rotated + row * R
    mean, weight = attend(
        own, own_rotated, real, position, rows, None, start, end, last, scale, L, R, BLOCK
    )
    keep(mean, weight, taken, partial, peaks, query, real, split, splits, L)


def steps(
    query: Tensor,
    rotated: Tensor,
    latent: Tensor,
    past: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    scale: float,
) -> tuple[list[Step], tuple[Tensor, Tensor]]:
    """Return the launches for mla_attention's arguments, and the output and the cache they fill."""
    batch, tokens, heads, rotated_width = rotated.shape
    if not batch * tokens:
        return [], (query.new_empty(*query.shape[:3], value_up.shape[1]), past)
    fold, folded = by_head(query, key_up.mT)
    sweep = sweep_for(query.dtype, tokens * heads)
    tiles = batch * -(-tokens * heads // sweep.rows)
    found = results(folded, split_count(tiles, past.shape[1]))
    unfold, out = by_head(found["taken"], value_up)
    arguments = found | {"folded": folded, "rotated": rotated.contiguous(), "cache": past}
    arguments |= {"cache_lengths": cache_lengths, "scale": scale * math.log2(math.e)}
    arguments |= {"T": tokens, "C": past.shape[1], "H": heads, "L": key_up.shape[2]}
    arguments |= {"R": rotated_width, "ROWS": sweep.rows, "BLOCK": sweep.block}
    programs = tiles * found["splits"]
    todo = [writing(latent, past, cache_lengths), fold]
    todo.append(Step(attend_all, programs, arguments, sweep.warps, sweep.stages))
    return [*todo, *combining(found), unfold], (out, past)


launch = launcher(steps)
