"""moe_route in Triton: one program for each place.

Letters: N places, E experts, R routes of a place, M groups of experts, W = E / M experts of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.launch.step import Step, launcher


@triton.jit
def best(values, ids, END: tl.constexpr):
    """Return the id of the largest value, the lowest id where several are as large."""
    return tl.min(tl.where(values == tl.max(values), ids, END))


@triton.jit
def limited(
    wanted, ids, group, E: tl.constexpr, M: tl.constexpr, W: tl.constexpr, KEPT: tl.constexpr
):
    """Return wanted M,W with -inf outside of the KEPT groups whose two best sum up to the most."""
    NEVER: tl.constexpr = float("-inf")
    first = tl.max(wanted, 1)  # M
    worth = first
    if W > 1:
        first_at = tl.min(tl.where(wanted == first[:, None], ids, E), 1)
        worth += tl.max(tl.where(ids == first_at[:, None], NEVER, wanted), 1)
    kept = group < 0
    for _ in range(KEPT):
        at = best(worth, group, M)
        kept = kept | (group == at)
        worth = tl.where(group == at, NEVER, worth)
    return tl.where(kept[:, None], wanted, NEVER)


@triton.jit
def route(
    logits,  # N,E
    bias,  # E or None
    weights,  # N,R fp32
    chosen,  # N,R int64
    epsilon,
    scale,
    E: tl.constexpr,
    R: tl.constexpr,
    M: tl.constexpr,
    KEPT: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALIZED: tl.constexpr,
):
    """Everything stays in registers: E,R and M are constants, and R rounds of argmax are few."""
    NEVER: tl.constexpr = float("-inf")
    W: tl.constexpr = E // M
    place = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, triton.next_power_of_2(M))  # M
    member = tl.arange(0, triton.next_power_of_2(W))  # W
    real = (group < M)[:, None] & (member < W)[None, :]  # M,W
    ids = tl.where(real, group[:, None] * W + member[None, :], E)
    wide = tl.load(logits + place * E + ids, mask=real, other=NEVER).to(tl.float32)
    if SCORE == "softmax":
        powers = tl.exp(wide - tl.max(wide))
        scores = powers / tl.sum(powers)
    else:
        scores = tl.sigmoid(wide)
    wanted = scores
    if bias is not None:
        wanted += tl.load(bias + ids, mask=real, other=0.0).to(tl.float32)
    elif M == 1:
        wanted = wide
    # As torch.topk does: NaN is the largest, so that it is seen in the weights.
    wanted = tl.where(real, tl.where(wanted == wanted, wanted, float("inf")), NEVER)
    if M > 1:
        wanted = limited(wanted, ids, group, E, M, W, KEPT)
    rank = tl.arange(0, triton.next_power_of_2(R))  # R
    share = tl.zeros_like(rank).to(tl.float32)
    pick = tl.zeros_like(rank)
    for r in range(R):
        at = best(wanted, ids, E)
        share = tl.where(rank == r, tl.sum(tl.where(ids == at, scores, 0.0)), share)
        pick = tl.where(rank == r, at, pick)
        wanted = tl.where(ids == at, NEVER, wanted)
    if RENORMALIZED:
        share = share / (tl.sum(share) + epsilon)
    tl.store(weights + place * R + rank, share * scale, mask=rank < R)
    tl.store(chosen + place * R + rank, pick.to(tl.int64), mask=rank < R)


def steps(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    score: str,
    groups: int,
    kept_groups: int,
    epsilon: float,
    scale: float,
) -> tuple[list[Step], tuple[Tensor, Tensor]]:
    """Return the one launch for moe_route's arguments, and the outputs that it fills."""
    experts = logits.shape[-1]
    shape = (*logits.shape[:-1], top_k)
    weights = logits.new_empty(shape, dtype=torch.float32)
    chosen = logits.new_empty(shape, dtype=torch.int64)
    arguments = {
        "logits": logits.contiguous(),
        "bias": None if bias is None else bias.contiguous(),
        "weights": weights,
        "chosen": chosen,
        "epsilon": float(epsilon),
        "scale": float(scale),
        "E": experts,
        "R": top_k,
        "M": groups,
        "KEPT": kept_groups,
        "SCORE": score,
        "RENORMALIZED": epsilon >= 0,
    }
    # One warp holds up to 512 experts, 16 a lane, and reduces them without shared memory.
    step = Step(route, logits.numel() // experts, arguments, warps=1 if experts <= 512 else 4)
    return [step] if step.programs else [], (weights, chosen)


launch = launcher(steps)
