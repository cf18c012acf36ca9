"""Sorting routes by expert, in Triton. Letters: S routes of all places, E experts.

A tile is up to ROWS routes of one expert.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.launch.sizes import Count, largest, usual
from lmcast.plugins.launch.step import Step


@triton.jit
def sort(chosen, order, counts, routes, E: tl.constexpr, BLOCK: tl.constexpr):
    """Counting sort by expert: chosen S int64 -> order S, stable, and counts E, the routes of each.

    Program e reads all S twice, from the cache: it counts the routes of lower experts, then places
    its own. There are no atomics, so the order is deterministic.
    """
    own = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    before = tl.zeros_like(lane)
    count = tl.zeros_like(lane)
    for start in range(0, routes, BLOCK):
        ids = start + lane
        expert = tl.load(chosen + ids, mask=ids < routes, other=E)
        before += (expert < own).to(tl.int32)
        count += (expert == own).to(tl.int32)
    tl.store(counts + own, tl.sum(count))
    place = tl.sum(before)
    for start in range(0, routes, BLOCK):
        ids = start + lane
        mine = (tl.load(chosen + ids, mask=ids < routes, other=E) == own).to(tl.int32)
        tl.store(order + place + tl.cumsum(mine) - 1, ids, mask=mine > 0)
        place += tl.sum(mine)


@triton.jit
def find(chosen, counts, tile, E: tl.constexpr, ROWS: tl.constexpr):
    """Return a tile's expert, and the first and the end of its places in the order.

    The expert is E or more where there are fewer tiles. counts None: each route is a tile.
    """
    if counts is None:
        expert = tl.load(chosen + tile).to(tl.int32)
        first = tile
        end = tile + 1
    else:
        ids = tl.arange(0, triton.next_power_of_2(E))
        count = tl.load(counts + ids, mask=ids < E, other=0)
        tiles = (count + ROWS - 1) // ROWS
        expert = tl.sum((tl.cumsum(tiles) <= tile).to(tl.int32))
        before = ids < expert
        first = tl.sum(tl.where(before, count, 0))
        end = first + tl.sum(tl.where(ids == expert, count, 0))
        first += (tile - tl.sum(tl.where(before, tiles, 0))) * ROWS
    return expert, first, end


@triton.jit
def routes_at(order, places, real):
    """Return the routes at these places of the order; order None: each route is its own place."""
    if order is None:
        return places
    else:
        return tl.load(order + places, mask=real, other=0)


@triton.jit
def weight_at(stack, expert, column, depth, STEPS: tl.constexpr):
    """Return where weights DEPTH,COLUMNS of an expert lie, in a stack of E,columns,depths.

    Depths go down and columns across: a product with the transposed matrix needs no copy.
    """
    e, across = expert.to(tl.int64), column.to(tl.int64)[None, :]
    return stack + e * STEPS[0] + across * STEPS[1] + depth[:, None] * STEPS[2]


class Tile(NamedTuple):
    """ROWS, COLUMNS and DEPTH of a product in one program, its warps and its stages of loads."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# Few rows: the time is that of reading weights, so narrow columns for many programs and long rows,
# 60 KB in flight in each. Many rows: 128 x 128 sums fill the registers of 8 warps, and 3 stages of
# 32 KB the shared memory of the smallest targets (SM89 and SM120: 99 KB a program).
TILES = (Tile(16, 64, 128, 4, 4), Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3))
# fp32 in full precision has no tensor cores: at most 32 sums a thread, or they spill.
WIDE_TILES = (Tile(16, 64, 32, 4, 3), Tile(64, 64, 32, 4, 3))


def tile_for(dtype: torch.dtype, mean_rows: Count) -> Tile:
    """Return the smallest tile that holds the routes of a mean expert, or the largest there is."""
    tiles = WIDE_TILES if dtype == torch.float32 else TILES
    return next((tile for tile in tiles if tile.rows >= usual(mean_rows)), tiles[-1])


def by_expert(chosen: Tensor, experts: int) -> tuple[list[Step], dict[str, Any]]:
    """Return the launch that sorts, and what it fills, as arguments of kernels that go by tiles.

    chosen ...,R int64. One place alone has R experts, one route each: nothing to sort.
    """
    chosen, routes = chosen.contiguous(), chosen.numel()
    if largest(routes) == chosen.shape[-1]:
        return [], {"chosen": chosen, "order": None, "counts": None, "E": experts}
    order = chosen.new_empty(routes, dtype=torch.int32)
    counts = chosen.new_empty(experts, dtype=torch.int32)
    filled = {"chosen": chosen, "order": order, "counts": counts, "E": experts}
    # 1024 routes at a time: 8 a thread, in 16-byte loads.
    return [Step(sort, experts, filled | {"routes": routes, "BLOCK": 1024})], filled
