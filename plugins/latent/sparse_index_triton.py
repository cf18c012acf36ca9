"""sparse_index in Triton: all scores, then a radix select of the K best of each token.

Letters as in sparse_index. Scores are stored as integers of the same order, so that their digits
can be counted, and only for slots that a token sees. The result is deterministic: equal scores are
chosen in the order of their slots. The keys `past_key` are updated in place and returned.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.latent.latent_rows import part, writing
from lmcast.plugins.launch.step import Step, launcher


@triton.jit
def ordered(score):
    """Return fp32 as int32 in the same order: -0.0 as 0.0, every NaN as the largest."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    bits = tl.where(score == score, bits, 0x7FC00000)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def score_each(
    query,  # B,T,I,D
    weights,  # B,T,I
    keys,  # B,C,D, with the new ones
    cache_lengths,  # B
    scores,  # B,T,C, as `ordered` gives them, written where a token sees them
    T,
    C,
    I: tl.constexpr,  # noqa: E741
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The scores that TOKENS of one row of the batch give to a block of its slots."""
    program = tl.program_id(0)
    blocks, groups = tl.cdiv(C, BLOCK), tl.cdiv(T, TOKENS)
    first = program // blocks % groups * TOKENS
    b = program // blocks // groups
    end = tl.minimum(first + TOKENS, T)
    length = tl.load(cache_lengths + b).to(tl.int32)
    start = program % blocks * BLOCK
    if start >= length + end:
        return
    slot = start + tl.arange(0, BLOCK)
    inside = slot < tl.minimum(length + end, C)
    key = part(keys + (b.to(tl.int64) * C + slot) * D, inside, D)
    head = tl.arange(0, triton.next_power_of_2(I) if I > 16 else 16)
    for t in range(first, end):
        place = b.to(tl.int64) * T + t
        own = part(query + (place * I + head) * D, head < I, D)
        weight = tl.load(weights + place * I + head, mask=head < I, other=0.0).to(tl.float32)
        product = tl.dot(key, tl.trans(own), input_precision="ieee")
        positive = tl.where(product < 0, 0.0, product)  # NaN stays NaN
        total = tl.sum(positive * weight[None, :], 1)
        tl.store(scores + place * C + slot, ordered(total), mask=inside & (slot <= length + t))


@triton.jit
def worst(own, seen, K, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the K-th best of the seen scores, and how many equal to it are among the K best."""
    BINS: tl.constexpr = 2**BITS
    LOWEST: tl.constexpr = -(2**31)  # flips the sign bit: digits order as the scores do
    digits = tl.arange(0, BINS)
    found = tl.full([], 0, tl.int32)
    known = tl.full([], 0, tl.int32)  # bits of `found` that are so
    need = tl.full([], 0, tl.int32) + K
    for i in range(32 // BITS):
        shift = 32 - BITS * (i + 1)
        counts = tl.zeros([BINS], tl.int32)
        for start in range(0, seen, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            score = tl.load(own + slot, mask=slot < seen, other=0) ^ LOWEST
            alike = (slot < seen) & ((score & known) == found)
            counts += tl.histogram((score >> shift) & (BINS - 1), BINS, mask=alike)
        above = tl.sum(counts) - tl.cumsum(counts)  # how many have a higher digit
        digit = tl.sum((above >= need).to(tl.int32))
        need -= tl.sum(tl.where(digits == digit, above, 0))
        found = found | (digit << shift)
        known = tl.full([], -1, tl.int32) << shift
    return found ^ LOWEST, need


@triton.jit
def select(
    scores,  # B,T,C
    cache_lengths,  # B
    chosen,  # B,T,K
    T,
    C,
    K,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the K slots with the best scores of a token, ascending; where it sees fewer, all of
    them and the next ones after it."""
    program = tl.program_id(0)
    place = program.to(tl.int64)
    seen = tl.minimum(tl.load(cache_lengths + program // T).to(tl.int32) + program % T + 1, C)
    out = chosen + place * K
    lane = tl.arange(0, BLOCK)
    if seen <= K:
        for start in range(0, K, BLOCK):
            tl.store(out + start + lane, (start + lane).to(tl.int64), mask=start + lane < K)
        return
    own = scores + place * C
    least, need = worst(own, seen, K, BITS, BLOCK)
    taken = tl.full([], 0, tl.int32)
    alike = tl.full([], 0, tl.int32)
    for start in range(0, seen, BLOCK):
        slot = start + lane
        score = tl.load(own + slot, mask=slot < seen, other=0)
        equal = ((slot < seen) & (score == least)).to(tl.int32)
        early = (equal > 0) & (alike + tl.cumsum(equal) <= need)
        take = (early | ((slot < seen) & (score > least))).to(tl.int32)
        tl.store(out + taken + tl.cumsum(take) - 1, slot.to(tl.int64), mask=take > 0)
        taken += tl.sum(take)
        alike += tl.sum(equal)


def steps(
    query: Tensor,
    weights: Tensor,
    key: Tensor,
    past_key: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    top_k: int,
) -> tuple[list[Step], tuple[Tensor, Tensor]]:
    """Return the launches for sparse_index's arguments, and the positions and keys they fill."""
    batch, tokens, heads, width = query.shape
    capacity = past_key.shape[1]
    count = min(top_k, capacity)
    chosen = query.new_empty(batch, tokens, count, dtype=torch.int64)
    if not chosen.numel():
        return [], (chosen, past_key)
    # fp32 in full precision has no tensor cores: at most 8 sums a thread, or they spill.
    block, warps = (32, 8) if query.dtype == torch.float32 else (128, 4)
    scores = query.new_empty(batch, tokens, capacity, dtype=torch.int32)
    shared: dict[str, Any] = {"cache_lengths": cache_lengths, "scores": scores}
    shared |= {"T": tokens, "C": capacity}
    # 16 tokens of a prompt share a block of keys in shared memory.
    arguments = shared | {"query": query.contiguous(), "weights": weights.contiguous()}
    arguments |= {"keys": past_key, "I": heads, "D": width, "TOKENS": 16, "BLOCK": block}
    programs = batch * -(-tokens // 16) * -(-capacity // block)
    todo = [writing(key, past_key, cache_lengths), Step(score_each, programs, arguments, warps)]
    # 8 bits at a time: scores are read 4 times, from the L1 cache after the first. One token has
    # one program, so it has many threads, with 8 loads each.
    arguments = shared | {"chosen": chosen, "K": count, "BITS": 8, "BLOCK": 4096}
    todo.append(Step(select, batch * tokens, arguments, warps=16))
    return todo, (chosen, past_key)


launch = launcher(steps)
