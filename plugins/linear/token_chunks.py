"""Chunked linear attention in Triton, three kernels: `prepare` computes the update of the state of
each chunk, `carry` scans the states over the chunks, `read` computes the output.

Letters as in linear_attention, N chunks. The delta rule within a chunk is a triangular system,
solved once for each chunk (arXiv 2406.06484). Matrix products have inputs in the dtype of values
and fp32 accumulators; decays, states and the triangular system are fp32.
"""

import triton
import triton.language as tl

from lmcast.plugins.linear.token_tiles import decays, directions, inverse, pairs, put, take


@triton.jit
def alike(key, decay, inside, short: tl.constexpr, EPS, K: tl.constexpr, C, WIDE):
    """Return the Gram matrix of the keys of a chunk, C,C, with the decay between the two tokens."""
    k = directions(key, inside, EPS, K, WIDE).to(short)
    left = pairs(decays(decay, inside, 1, WIDE), C)
    return tl.dot(k, tl.trans(k), input_precision="ieee") * left


@triton.jit
def tell(key, value, decay, strength, told, news, inside, EPS, K: tl.constexpr, V, C, WIDE, BLOCK):
    """Return the inverse, C,C, of the triangular system of a chunk; write its product with values.

    told: decayed products of keys, B,T,H,C, where decay is per channel; None: computed here.
    """
    short: tl.constexpr = value.dtype.element_ty
    # For short dtypes, fp32 in three products of tensor cores.
    PRECISION: tl.constexpr = "ieee" if short == tl.float32 else "tf32x3"
    if told is None:
        products = alike(key, decay, inside, short, EPS, K, C, WIDE)
    else:
        products = take(told, inside, 0, C, C)
    row = tl.arange(0, C)
    lower = tl.where(row[:, None] > row[None, :], products, 0.0) * strength
    whole = inverse(lower, C, PRECISION).to(short)
    for first in range(0, V, BLOCK):
        v = take(value, inside, first, V, BLOCK).to(tl.float32)
        new = tl.dot(whole, (v * strength).to(short), input_precision="ieee")
        put(news, new, inside, first, V)
    return whole


@triton.jit
def prepare(
    key,  # B,T,G,K
    value,  # B,T,H,V
    decay,  # B,T,H or B,T,H,K
    token_counts,  # B
    beta,  # B,T,H or None
    told,  # B,T,H,C: products of keys where decay is per channel and beta is given, or None
    behind,  # B,T,H,K: keys, decayed to the end of their chunk
    kept,  # B,H,N or B,H,N,K: decay of the state over a chunk
    known,  # B,T,H,K: times the state before a chunk, subtracted from new values (beta)
    news,  # B,T,H,V: new values before that
    T,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHANNELS: tl.constexpr,
    EPS: tl.constexpr,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one head per program; chunks without valid tokens are skipped."""
    program = tl.program_id(0)
    start, h = program % tl.cdiv(T, C) * C, program // tl.cdiv(T, C) % H
    b = program // tl.cdiv(T, C) // H
    token = tl.arange(0, C)
    count = tl.load(token_counts + b).to(tl.int32) - start
    if count <= 0:
        return
    inside = token < count
    place = b.to(tl.int64) * T + start + token
    head = place * H + h
    key += (place * G + h // (H // G)) * K
    decay += head * CHANNELS
    if beta is not None:
        strength = tl.load(beta + head, mask=inside, other=0.0).to(tl.float32)[:, None]
        rows = None if told is None else told + head * C
        v, new = value + head * V, news + head * V
        whole = tell(key, v, decay, strength, rows, new, inside, EPS, K, V, C, WIDE, BLOCK)
    k = directions(key, inside, EPS, K, WIDE)  # read again: registers are short above
    later = decays(decay + H * CHANNELS, (token + 1 < count) & (token < C - 1), CHANNELS, WIDE)
    put(behind + head * K, k * tl.exp(tl.cumsum(later, 0, reverse=True)), inside, 0, K)
    own = decays(decay, inside, CHANNELS, WIDE)
    channel = tl.arange(0, own.shape[1])
    at = kept + program.to(tl.int64) * CHANNELS + channel
    tl.store(at, tl.exp(tl.sum(own, 0)), mask=channel < CHANNELS)
    if beta is not None:
        lost = (k * strength * tl.exp(tl.cumsum(own, 0))).to(whole.dtype)
        put(known + head * K, tl.dot(whole, lost, input_precision="ieee"), inside, 0, K)


@triton.jit
def carry(
    behind,  # B,T,H,K
    kept,  # B,H,N or B,H,N,K
    known,  # B,T,H,K or None
    news,  # B,T,H,V
    token_counts,  # B
    past,  # B,H,K,V
    state,  # B,H,K,V: may be past
    states,  # B,H,N,K,V: the state before each chunk
    added,  # B,T,H,V: new values, where the state corrects them (beta)
    T,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scan the state of one head over its chunks, BLOCK of its V columns per program."""
    program = tl.program_id(0)
    first = program % tl.cdiv(V, BLOCK) * BLOCK
    row = (program // tl.cdiv(V, BLOCK)).to(tl.int64)  # b * H + h
    b, h = row // H, row % H
    count = tl.load(token_counts + b).to(tl.int32)
    token, channel = tl.arange(0, C), tl.arange(0, WIDE)
    real = channel < K
    factor = tl.arange(0, WIDE if CHANNELS > 1 else 1)
    chunks = tl.cdiv(T, C)
    short: tl.constexpr = states.dtype.element_ty
    matrix = take(past + (row * K + channel) * V, real, first, V, BLOCK).to(tl.float32)
    for n in range(chunks):
        put(states + ((row * chunks + n) * K + channel) * V, matrix, real, first, V)
        inside = n * C + token < count
        head = (b * T + n * C + token) * H + h
        new = take(news + head * V, inside, first, V, BLOCK)
        if known is not None:
            lost = take(known + head * K, inside, 0, K, WIDE)
            new = (new - tl.dot(lost, matrix.to(short), input_precision="ieee")).to(short)
            put(added + head * V, new, inside, first, V)
        at = kept + (row * chunks + n) * CHANNELS + factor
        here = factor < tl.where(n * C < count, CHANNELS, 0)
        left = tl.load(at, mask=here, other=1.0)
        keys = tl.trans(take(behind + head * K, inside, 0, K, WIDE))
        matrix = tl.dot(keys, new, matrix * left[:, None], input_precision="ieee")
    put(state + (row * K + channel) * V, matrix, real, first, V)


@triton.jit
def read(
    query,  # B,T,G,K
    key,  # B,T,G,K
    decay,  # B,T,H or B,T,H,K
    token_counts,  # B
    seen,  # B,T,H,C: products with keys where decay is per channel, or None
    states,  # B,H,N,K,V
    added,  # B,T,H,V
    out,  # B,T,H,V
    scale,
    T,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHANNELS: tl.constexpr,
    EPS: tl.constexpr,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Output of one chunk: its queries times the state before it, and times its own tokens."""
    program = tl.program_id(0)
    chunks = tl.cdiv(T, C)
    n, row = program % chunks, (program // chunks).to(tl.int64)  # b * H + h
    b, h = row // H, row % H
    token, channel = tl.arange(0, C), tl.arange(0, WIDE)
    real, inside = n * C + token < T, n * C + token < tl.load(token_counts + b)
    place = b * T + n * C + token
    head = place * H + h
    group = place * G + h // (H // G)
    q = directions(query + group * K, real, EPS, K, WIDE)
    own = decays(decay + head * CHANNELS, inside, CHANNELS, WIDE)
    short: tl.constexpr = out.dtype.element_ty
    if seen is None:
        keys = tl.trans(directions(key + group * K, inside, EPS, K, WIDE).to(short))
        look = tl.dot(q.to(short), keys, input_precision="ieee") * pairs(own, C)
    else:
        visible = real[:, None] & (token[:, None] >= token[None, :])
        look = tl.load((seen + head * C)[:, None] + token[None, :], mask=visible, other=0.0)
    look = look.to(short)
    q_left = (q * tl.exp(tl.cumsum(own, 0))).to(short)
    before = states + (program.to(tl.int64) * K + channel) * V
    for first in range(0, V, BLOCK):
        matrix = take(before, channel < K, first, V, BLOCK)
        total = tl.dot(q_left, matrix, input_precision="ieee")
        new = take(added + head * V, inside, first, V, BLOCK)
        total = tl.dot(look, new, total, input_precision="ieee")
        put(out + head * V, total * scale, real, first, V)
