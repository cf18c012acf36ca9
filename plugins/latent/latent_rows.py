"""Latents in the cache in Triton: appending rows, split attention to them, combining the splits.

Letters as in mla_attention; W = L + R is the width of a row. A tile is up to ROWS queries, of the
heads of one token or of several, that attend to the same rows of a cache; a split is a range of
those rows (flash decoding). Scores are base-2 logarithms: log2(e) is in their scale.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.errors import InputError
from lmcast.plugins.launch.sizes import Count, usual
from lmcast.plugins.launch.step import Step


@triton.jit
def write(new, cache, cache_lengths, T, C, W: tl.constexpr):
    """Append new rows B,T,W to the cache B,C,W; a row without room is dropped."""
    program = tl.program_id(0)
    b = program // T
    slot = tl.load(cache_lengths + b) + program % T
    column = tl.arange(0, triton.next_power_of_2(W))
    inside = column < tl.where(slot < C, W, 0)
    row = tl.load(new + program.to(tl.int64) * W + column, mask=inside)
    tl.store(cache + (b.to(tl.int64) * C + slot) * W + column, row, mask=inside)


@triton.jit
def part(rows, inside, SIZE: tl.constexpr):
    """Load the first SIZE values of each row, padded to a size that tl.dot takes; zeros outside."""
    PADDED: tl.constexpr = triton.next_power_of_2(SIZE) if SIZE > 16 else 16
    column = tl.arange(0, PADDED)
    mask = inside[:, None] if SIZE == PADDED else inside[:, None] & (column < SIZE)[None, :]
    return tl.load(rows[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def attend(
    folded,  # ROWS of width L
    rotated,  # ROWS of width R
    real,  # ROWS
    position,  # ROWS: the last slot that each sees
    cache,  # C,W
    chosen,  # the slots to attend to, or None: all
    start,
    end,
    last,  # the last slot that any of the ROWS sees
    scale,
    L: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Online softmax over rows start to end: return the mean row, and the log of the weights' sum.

    A row of the cache is read once, for score and value; rows that no query sees are not read: they
    may be NaN.
    """
    # Below any score, and finite: a power of a difference with -inf is 0, never NaN.
    LEAST: tl.constexpr = -3.4e38
    own = part(folded, real, L)
    own_rotated = part(rotated, real, R)
    best = tl.full([real.shape[0]], LEAST, tl.float32)
    total = tl.zeros([real.shape[0]], tl.float32)
    taken = tl.zeros([real.shape[0], own.shape[1]], tl.float32)
    for at in range(start, end, BLOCK):
        slot = at + tl.arange(0, BLOCK)
        inside = slot < end
        if chosen is not None:
            slot = tl.load(chosen + slot, mask=inside, other=0).to(tl.int32)
            inside = inside & (slot <= last)
        row = cache + slot.to(tl.int64) * (L + R)
        latent = part(row, inside, L)
        score = tl.dot(own, tl.trans(latent), input_precision="ieee")
        shared = part(row + L, inside, R)
        score = tl.dot(own_rotated, tl.trans(shared), score, input_precision="ieee")
        seen = inside[None, :] & (slot[None, :] <= position[:, None])
        score = tl.where(seen, score * scale, float("-inf"))
        highest = tl.maximum(best, tl.max(score, 1))
        power = tl.exp2(score - highest[:, None])
        fade = tl.exp2(best - highest)
        total = total * fade + tl.sum(power, 1)
        taken = tl.dot(
            power.to(latent.dtype), latent, taken * fade[:, None], input_precision="ieee"
        )
        best = highest
    total = tl.where(total > 0, total, 1.0)  # of a row that sees none of these, which weighs LEAST
    return taken / total[:, None], best + tl.log2(total)


@triton.jit
def skip(peaks, query, real, split, splits):
    """Store that a split has no rows for these queries; with one split, it always has some."""
    if peaks is not None:
        tl.store(peaks + query.to(tl.int64) * splits + split, float("-inf"), mask=real)


@triton.jit
def keep(mean, weight, taken, partial, peaks, query, real, split, splits, L: tl.constexpr):
    """Store the result of a split: as the final one where partial is None, else to be combined."""
    column = tl.arange(0, mean.shape[1])
    inside = real[:, None] & (column < L)[None, :]
    if partial is None:
        at = taken + query.to(tl.int64)[:, None] * L + column[None, :]
        tl.store(at, mean.to(taken.dtype.element_ty), mask=inside)
    else:
        place = query.to(tl.int64) * splits + split
        tl.store(partial + place[:, None] * L + column[None, :], mean, mask=inside)
        tl.store(peaks + place, weight, mask=real)


@triton.jit
def combine_splits(
    partial,  # queries,splits,L
    peaks,  # queries,splits: logarithms of weights, -inf where nothing was stored in partial
    taken,  # queries,L
    splits,
    L: tl.constexpr,
    MOST: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """taken = the mean of the splits by their weights; of each query, at least one has a weight."""
    program = tl.program_id(0)
    query = (program // tl.cdiv(L, COLUMNS)).to(tl.int64)
    column = program % tl.cdiv(L, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    every = tl.arange(0, MOST)
    best = tl.max(tl.load(peaks + query * splits + every, mask=every < splits, other=float("-inf")))
    total = 0.0
    mean = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, splits, BLOCK):
        split = start + tl.arange(0, BLOCK)
        peak = tl.load(peaks + query * splits + split, mask=split < splits, other=float("-inf"))
        weight = tl.exp2(peak - best)
        at = partial + (query * splits + split)[:, None] * L + column[None, :]
        inside = (weight > 0)[:, None] & (column < L)[None, :]
        mean += tl.sum(tl.load(at, mask=inside, other=0.0) * weight[:, None], 0)
        total += tl.sum(weight)
    at = taken + query * L + column
    tl.store(at, (mean / total).to(taken.dtype.element_ty), mask=column < L)


class Sweep(NamedTuple):
    """Queries in a tile, slots in a step over the cache, warps, and stages of loads."""

    rows: int
    block: int
    warps: int
    stages: int


# What queries take, ROWS x 512 in fp32, stays in registers, 64 or 128 a thread of 4 warps; more
# warps would each read all queries again, for 8 or fewer of 32 slots. Queries, 37 KB if there are
# 32, and a block of as many bytes are in shared memory: other programs of an SM multiply while one
# loads. 16 queries leave room to load two blocks ahead. More queries read the cache less often, but
# exceed the 99 KB a program that SM89 and SM120 have.
FEW, MANY = Sweep(16, 32, 4, 3), Sweep(32, 32, 4, 2)
WIDE = Sweep(16, 16, 4, 1)  # fp32 in full precision has no tensor cores, and twice the bytes
PROGRAMS = 256  # that are enough: about two for each of the 108 to 148 SMs of a data-centre GPU
LEAST_SLOTS = 64  # of a split: it reads as many bytes of the cache as it writes of partial results
MOST_SPLITS = 256


def sweep_for(dtype: torch.dtype, queries: Count) -> Sweep:
    """Return the tile for a dtype and for this many queries that attend to the same rows."""
    if dtype == torch.float32:
        return WIDE
    return FEW if usual(queries) <= FEW.rows else MANY


def split_count(tiles: Count, slots: Count) -> int:
    """Return in how many splits the slots are attended to, for tiles that go over all of them."""
    wanted, room = -(-PROGRAMS // usual(tiles)), -(-usual(slots) // LEAST_SLOTS)
    return max(1, min(wanted, room, MOST_SPLITS))


def writing(new: Tensor, cache: Tensor, cache_lengths: Tensor) -> Step:
    """Return the launch that appends rows to a cache in place."""
    if not cache.is_contiguous():
        raise InputError(f"a cache has strides {cache.stride()}; accepted: contiguous, in place")
    batch, tokens, width = new.shape
    arguments: dict[str, Any] = {"T": tokens, "C": cache.shape[1], "W": width}
    arguments |= {"new": new.contiguous(), "cache": cache, "cache_lengths": cache_lengths}
    return Step(write, batch * tokens, arguments, warps=1 if width <= 1024 else 4)


def results(folded: Tensor, splits: int) -> dict[str, Any]:
    """Return where `keep` stores, as its arguments; folded B,T,H,L: as the result is."""
    taken = folded.new_empty(folded.shape)
    found = {"taken": taken, "splits": splits, "partial": None, "peaks": None}
    if splits > 1:
        *queries, rank = folded.shape
        found["partial"] = folded.new_empty(*queries, splits, rank, dtype=torch.float32)
        found["peaks"] = folded.new_empty(*queries, splits, dtype=torch.float32)
    return found


def combining(found: dict[str, Any]) -> list[Step]:
    """Return the launch that combines splits, if there are several."""
    if found["partial"] is None:
        return []
    taken: Tensor = found["taken"]
    rank = taken.shape[-1]
    # 128 columns of 16 splits: 16 loads of 4 bytes a thread at once, in rows of 512 bytes.
    arguments = found | {"L": rank, "MOST": MOST_SPLITS, "COLUMNS": 128, "BLOCK": 16}
    return [Step(combine_splits, taken.numel() // rank * -(-rank // 128), arguments)]
