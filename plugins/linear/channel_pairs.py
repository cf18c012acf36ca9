"""Products of queries and keys within a chunk where decay is per channel, in Triton.

Letters as in linear_attention. A program has PART tokens of a chunk, and loops over the tokens
before them, PART at a time. The decay of a key is split at the first of the program's own tokens,
so that both factors are at most 1. Among its own tokens, every pair has its own decay.
"""

import triton
import triton.language as tl

from lmcast.plugins.linear.token_tiles import decays, directions, put

PART = tl.constexpr(16)


@triton.jit
def among(query, key, decay):
    """Return the products of PART queries, and of as many keys, with the keys of the same tokens:
    PART,PART each, right where the key is not later."""
    row = tl.arange(0, PART)
    since = tl.zeros(key.shape, tl.float32)  # the decays behind token j
    seen = tl.zeros([PART, PART], tl.float32)
    told = tl.zeros([PART, PART], tl.float32)
    for back in range(PART):
        j = PART - 1 - back
        step = tl.sum(tl.where((row == j + 1)[:, None], decay, 0.0), 0)
        since += tl.where((row > j)[:, None], step[None, :], 0.0)
        one = tl.sum(tl.where((row == j)[:, None], key, 0.0), 0)
        left = one[None, :] * tl.exp(since)
        column = (row == j)[None, :]
        seen = tl.where(column, tl.sum(query * left, 1)[:, None], seen)
        told = tl.where(column, tl.sum(key * left, 1)[:, None], told)
    return seen, told


@triton.jit
def look(
    query,  # B,T,G,K
    key,  # B,T,G,K
    decay,  # B,T,H,K
    token_counts,  # B
    seen,  # B,T,H,C: decayed products of a query with the keys of its chunk
    told,  # B,T,H,C: the same for keys, or None
    T,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    EPS: tl.constexpr,
    C: tl.constexpr,
    WIDE: tl.constexpr,
):
    """All pairs of PART tokens of a head and the tokens of their chunk that are not later."""
    program = tl.program_id(0)
    parts = tl.cdiv(T, PART)
    first, h = program % parts * PART, program // parts % H
    b = program // parts // H
    count = tl.load(token_counts + b).to(tl.int32)
    inner, column = tl.arange(0, PART), first % C  # of its own tokens within their chunk
    rows = b.to(tl.int64) * T + first + inner
    real, inside = first + inner < T, first + inner < count
    group = h // (H // G)
    q = directions(query + (rows * G + group) * K, real, EPS, K, WIDE)
    k = directions(key + (rows * G + group) * K, inside, EPS, K, WIDE)
    own = decays(decay + (rows * H + h) * K, inside, K, WIDE)
    out, alike = among(q, k, own)
    put(seen + (rows * H + h) * C + column, out, real, 0, PART)
    if told is not None:
        put(told + (rows * H + h) * C + column, alike, real, 0, PART)
    short: tl.constexpr = seen.dtype.element_ty
    left = tl.exp(tl.cumsum(own, 0))
    q_left, k_left = (q * left).to(short), (k * left).to(short)
    between = tl.zeros([WIDE], tl.float32)  # decays of the parts in between
    for at in range(column - PART, -1, -PART):
        before = rows + at - column
        valid = first + at - column + inner < count
        one = directions(key + (before * G + group) * K, valid, EPS, K, WIDE)
        follow = (first + at - column + inner + 1 < count) & (inner < PART - 1)
        later = decays(decay + ((before + 1) * H + h) * K, follow, K, WIDE)
        behind = tl.cumsum(later, 0, reverse=True) + between[None, :]
        keys = tl.trans((one * tl.exp(behind)).to(short))
        out = tl.dot(q_left, keys, input_precision="ieee")
        put(seen + (rows * H + h) * C + at, out, real, 0, PART)
        if told is not None:
            alike = tl.dot(k_left, keys, input_precision="ieee")
            put(told + (rows * H + h) * C + at, alike, real, 0, PART)
        between += tl.sum(decays(decay + (before * H + h) * K, valid, K, WIDE), 0)
