"""Tiles of the tokens of a chunk in Triton: loads, stores, decays, and the triangular inverse.

Letters as in linear_attention; row: where a token's values start; inside: which tokens are valid.
The decay between two tokens is a sum over those after the one and up to the other, never a
difference of two cumulative sums, of which a single large decay would leave no digits.
"""

import triton
import triton.language as tl


@triton.jit
def take(rows, inside, first, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Return BLOCK of SIZE values of each row from `first` on; zeros outside."""
    column = first + tl.arange(0, BLOCK)
    mask = inside[:, None] & (column < SIZE)[None, :]
    return tl.load(rows[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def put(rows, tile, inside, first, SIZE: tl.constexpr):
    """Store what `take` would return."""
    column = first + tl.arange(0, tile.shape[1])
    mask = inside[:, None] & (column < SIZE)[None, :]
    tl.store(rows[:, None] + column[None, :], tile.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def directions(rows, inside, EPS: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr):
    """Return queries or keys in fp32, divided by their length unless EPS is None."""
    tile = take(rows, inside, 0, K, WIDE).to(tl.float32)
    if EPS is not None:
        tile *= tl.rsqrt(tl.sum(tile * tile, 1) + EPS)[:, None]
    return tile


@triton.jit
def decays(rows, inside, CHANNELS: tl.constexpr, WIDE: tl.constexpr):
    """Return the decays of tokens in fp32, tokens,1, or tokens,WIDE where CHANNELS is not 1."""
    if CHANNELS == 1:
        return tl.load(rows, mask=inside, other=0.0).to(tl.float32)[:, None]
    else:
        return take(rows, inside, 0, CHANNELS, WIDE).to(tl.float32)


@triton.jit
def pairs(decay, C: tl.constexpr):
    """Return the decay from token j to token i, C,C, from decays C,1; 0 if j > i."""
    row = tl.arange(0, C)
    after = tl.where(row[:, None] > row[None, :], decay, 0.0)
    left = tl.exp(tl.cumsum(after, 0))
    return tl.where(row[:, None] >= row[None, :], left, 0.0)


@triton.jit
def inverse(told, C: tl.constexpr, PRECISION: tl.constexpr):
    """Return the inverse of 1 + told, where told C,C is strictly lower triangular, C a multiple of
    16.

    Blocks of 16 are inverted row by row; then, of two neighbours along the diagonal, the block
    below it is `- inverse told inverse`. Powers of told, which could be huge, are not used.
    """
    PARTS: tl.constexpr = C // 16
    LEVELS: tl.constexpr = (PARTS > 1) + (PARTS > 2)
    tl.static_assert(PARTS <= 4)
    row = tl.arange(0, C)
    part = row // 16
    same = part[:, None] == part[None, :]
    own = tl.sum(tl.reshape(tl.where(same, told, 0.0), [PARTS, 16, PARTS, 16]), 2)
    inner = tl.arange(0, 16)
    found = -own  # the inverse less 1; the first two rows are done
    for i in range(2, 16):
        is_row = (inner == i)[None, :, None]
        line = tl.sum(tl.where(is_row, own, 0.0), 1)
        line += tl.sum(line[:, :, None] * found, 1)
        found = tl.where(is_row, -line[:, None, :], found)
    each = tl.broadcast_to(found[:, :, None, :], [PARTS, 16, PARTS, 16])
    whole = tl.where(same, tl.reshape(each, [C, C]), 0.0)
    whole += (row[:, None] == row[None, :]).to(tl.float32)
    for level in tl.static_range(LEVELS):
        side = row // (16 << level)
        below = (side[:, None] == side[None, :] + 1) & (side % 2 == 1)[:, None]
        right = tl.dot(tl.where(below, told, 0.0), whole, input_precision=PRECISION)
        whole -= tl.dot(whole, right, input_precision=PRECISION)
    return whole
