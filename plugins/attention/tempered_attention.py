"""Causal attention over a cache, with a factor of each query on its capped scores (Grok 2).

Letters: B batch, T new tokens, C capacity of the cache, H query heads, G key heads, K head width.
"""

import torch
from torch import Tensor

from lmcast.plugins.attention import onnx_body
from lmcast.plugins.attention.cached_attention import shapes
from lmcast.plugins.onnx_builder import Attribute, Builder, Value
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


def body(
    op: Builder,
    query: Value,
    key: Value,
    value: Value,
    past_key: Value,
    past_value: Value,
    cache_lengths: Value,
    token_counts: Value,
    factor: Value,
    scale: Attribute,
    softcap: Attribute,
) -> tuple[Value, Value, Value]:
    def write(past: Value, new: Value) -> Value:
        return op.TensorScatter(past, op.Transpose(new, perm=[0, 2, 1, 3]), cache_lengths, axis=2)

    keys, values = write(past_key, key), write(past_value, value)
    position = op.Unsqueeze(cache_lengths, [1]) + op.range(op.size(query, 1))
    mask = op.range(op.size(past_key, 2)) <= op.Unsqueeze(position, [2])
    out = onnx_body.attend(op, query, keys, values, mask, None, factor, scale, softcap)
    return out, keys, values


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
