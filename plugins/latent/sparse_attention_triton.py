"""sparse_attention in Triton: as mla_attention, but each token attends to its own rows.

The cache `past` is updated in place and returned.
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
def attend_chosen(
    folded,  # B,T,H,L
    rotated,  # B,T,H,R
    cache,  # B,C,L+R, with the new rows
    cache_lengths,  # B
    chosen,  # B,T,K
    taken,  # B,T,H,L
    partial,  # B,T,H,splits,L or None
    peaks,  # B,T,H,splits or None
    splits,
    scale,
    T,
    C,
    K,
    H: tl.constexpr,
    L: tl.constexpr,
    R: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of the heads of one token, and a split of the positions chosen for it."""
    # Programs side by side gather the same rows: all but one of them from the L2 cache.
    program = tl.program_id(0)
    tiles: tl.constexpr = (H + ROWS - 1) // ROWS
    tile, split = program % tiles, program // tiles % splits
    place = program // tiles // splits
    head = tile * ROWS + tl.arange(0, ROWS)
    real = head < H
    query = place * H + head
    last = tl.load(cache_lengths + place // T).to(tl.int32) + place % T
    own_slots = chosen + place.to(tl.int64) * K
    size = tl.cdiv(tl.cdiv(K, splits), BLOCK) * BLOCK
    start = split * size
    end = tl.minimum(start + size, K)
    # The seen ones come first, since all ascend; the first split has one.
    if start > 0 and start < end:
        end = tl.where(tl.load(own_slots + start) <= last, end, start)
    if start >= end:
        skip(peaks, query, real, split, splits)
        return
    row = query.to(tl.int64)
    position = tl.full([ROWS], 0, tl.int32) + last
    rows = cache + (place // T).to(tl.int64) * C * (L + R)
    own, own_rotated = folded + row * L, rotated + row * R
    mean, weight = attend(
        own, own_rotated, real, position, rows, own_slots, start, end, last, scale, L, R, BLOCK
    )
    keep(mean, weight, taken, partial, peaks, query, real, split, splits, L)


def steps(
    query: Tensor,
    rotated: Tensor,
    latent: Tensor,
    past: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    chosen: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    scale: float,
) -> tuple[list[Step], tuple[Tensor, Tensor]]:
    """Return the launches for sparse_attention's arguments, and the output and the cache."""
    batch, tokens, heads, rotated_width = rotated.shape
    if not batch * tokens:
        return [], (query.new_empty(*query.shape[:3], value_up.shape[1]), past)
    fold, folded = by_head(query, key_up.mT)
    sweep = sweep_for(query.dtype, heads)
    tiles = batch * tokens * -(-heads // sweep.rows)
    found = results(folded, split_count(tiles, chosen.shape[2]))
    unfold, out = by_head(found["taken"], value_up)
    arguments = found | {"folded": folded, "rotated": rotated.contiguous(), "cache": past}
    arguments |= {"cache_lengths": cache_lengths, "chosen": chosen.contiguous()}
    arguments |= {"scale": scale * math.log2(math.e), "T": tokens, "C": past.shape[1]}
    arguments |= {"K": chosen.shape[2], "H": heads, "L": key_up.shape[2], "R": rotated_width}
    arguments |= {"ROWS": sweep.rows, "BLOCK": sweep.block}
    programs = tiles * found["splits"]
    todo = [writing(latent, past, cache_lengths), fold]
    todo.append(Step(attend_chosen, programs, arguments, sweep.warps, sweep.stages))
    return [*todo, *combining(found), unfold], (out, past)


launch = launcher(steps)
