"""Causal attention over a cache, with a factor of each query on its capped scores (Grok 2).

Letters: B batch, T new tokens, C capacity of the cache, H query heads, G key heads, K head width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.attention.cached_attention import shapes
from lmcast.plugins.plugin import Close, Plugin


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    factor: Tensor,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As cached_attention, but for `factor` B,T in fp32: it multiplies scores behind the softcap.

    Before it, or without one, a factor could go into the query; behind it, it cannot: the standard
    Attention has no place for it. The softmax is taken in fp32.
    """
    tokens, groups = query.shape[1], past_key.shape[1]
    position = cache_lengths[:, None] + torch.arange(tokens, device=query.device)  # B,T

    def write(past: Tensor, new: Tensor) -> Tensor:
        index = position[:, None, :, None].expand(-1, groups, -1, past.shape[3])
        return past.scatter(2, index, new.transpose(1, 2))

    present_key, present_value = write(past_key, key), write(past_value, value)
    grouped = query.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)  # B,G,H/G,T,K
    score = (grouped @ present_key[:, :, None].mT) * scale  # B,G,H/G,T,C
    if softcap:
        score = torch.tanh(score / softcap) * softcap
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    score = score * factor[:, None, None, :, None]
    seen = torch.arange(past_key.shape[2], device=query.device) <= position[:, :, None]  # B,T,C
    score = score.masked_fill(~seen[:, None, None], float("-inf"))
    out = score.softmax(-1).to(value.dtype) @ present_value[:, :, None]  # B,G,H/G,T,K
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3).contiguous(), present_key, present_value


WRITE = """new_key = Transpose <perm = [0, 2, 1, 3]> (key)
    present_key = TensorScatter <axis = 2> (past_key, new_key, cache_lengths)
    new_value = Transpose <perm = [0, 2, 1, 3]> (value)
    present_value = TensorScatter <axis = 2> (past_value, new_value, cache_lengths)"""

SIZES = """first = Constant <value_ints = [1]> ()
    rest = Constant <value_ints = [-1]> ()
    batch = Shape <start = 0, end = 1> (query)
    tokens = Shape <start = 1, end = 2> (query)
    heads = Shape <start = 2, end = 3> (query)
    groups = Shape <start = 1, end = 2> (past_key)
    width = Shape <start = 3> (past_key)
    capacity = Shape <start = 2, end = 3> (past_key)"""

SCORE = """turned = Transpose <perm = [0, 2, 1, 3]> (query)
    grouped_shape = Concat <axis = 0> (batch, groups, rest, width)
    grouped = Reshape (turned, grouped_shape)
    columns = Transpose <perm = [0, 1, 3, 2]> (present_key)
    product = MatMul (grouped, columns)
    wide = Cast <to = 1> (product)
    scale_value = Constant <value_float: float = @scale> ()
    scaled = Mul (wide, scale_value)"""

CAP = """cap = Constant <value_float: float = @softcap> ()
    steep = Div (scaled, cap)
    bent = Tanh (steep)
    capped = Mul (bent, cap)"""

TEMPER = """score_shape = Concat <axis = 0> (batch, heads, tokens, capacity)
    score = Reshape (capped, score_shape)
    factor_axes = Constant <value_ints = [1, 3]> ()
    factors = Unsqueeze (factor, factor_axes)
    tempered = Mul (score, factors)"""

MASK = """zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    second = Constant <value_ints = [2]> ()
    token_count = Squeeze (tokens)
    new = Range (zero, token_count, one)
    start = Unsqueeze (cache_lengths, first)
    position = Add (start, new)
    slots = Squeeze (capacity)
    held = Range (zero, slots, one)
    until = Unsqueeze (position, second)
    mask = LessOrEqual (held, until)
    head_mask = Unsqueeze (mask, first)
    never = Constant <value_float = -inf> ()
    allowed = Where (head_mask, tempered, never)"""

MIX = """share = Softmax <axis = -1> (allowed)
    weight = CastLike (share, value)
    weight_shape = Concat <axis = 0> (batch, groups, rest, capacity)
    grouped_weight = Reshape (weight, weight_shape)
    mixed = MatMul (grouped_weight, present_value)
    mixed_shape = Concat <axis = 0> (batch, heads, tokens, rest)
    by_head = Reshape (mixed, mixed_shape)
    out = Transpose <perm = [0, 2, 1, 3]> (by_head)"""

HEAD = """tempered_attention <scale, softcap> (
    query, key, value, past_key, past_value, cache_lengths, token_counts, factor
) => (out, present_key, present_value)"""


def body(given: Mapping[str, Any]) -> str:
    cap = CAP if given["softcap"] else "capped = Identity (scaled)"
    lines = "\n    ".join((WRITE, SIZES, SCORE, cap, TEMPER, MASK, MIX))
    return f"{HEAD} {{\n    {lines}\n}}"


def case(
    lengths: list[int], tokens: int, room: int, sizes: tuple[int, int, int], cap: float
) -> tuple:
    """Return arguments for rows of these lengths; sizes: heads, groups, width."""
    heads, groups, width = sizes
    batch = len(lengths)
    return (
        2 * torch.randn(batch, tokens, heads, width),
        torch.randn(batch, tokens, groups, width),
        torch.randn(batch, tokens, groups, width),
        torch.randn(batch, groups, room, width),
        torch.randn(batch, groups, room, width),
        torch.tensor(lengths),
        torch.full((batch,), tokens),
        1 + torch.rand(batch, tokens),
        width**-0.5,
        cap,
    )


def cases() -> list[tuple]:
    torch.manual_seed(0)
    return [
        case([0, 0], 5, 5, (4, 2, 16), 3.0),  # prefill
        case([7], 1, 11, (6, 2, 8), 2.0),  # decode
        case([2, 6, 0], 4, 12, (3, 1, 24), 30.0),  # append, of different lengths
        case([3], 2, 8, (4, 4, 8), 0.0),  # no cap
    ]


tempered_attention = Plugin(
    name="tempered_attention",
    eager=eager,
    shapes=shapes,
    body=body,
    cases=cases,
    close={torch.float32: Close(2.4e-6)},  # 20 fp32 epsilons: outputs are means of values near 1
)
