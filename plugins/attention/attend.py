"""Grouped-query attention under a mask, for the operators of this folder. Letters: B batch, T
new tokens, S positions, H query heads, G key heads, K width of queries and keys, V width of
values."""

import torch
from torch import Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    sink: Tensor | None,
    factor: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """Grouped-query attention under a mask; the softmax is in fp32.

    query: B,T,H,K.
    key, value: B,G,S,K and B,G,S,V.
    mask: B,T,S bool, true where a token sees a position.
    sink: H or None; one more score of each head, neither scaled, capped nor multiplied, that takes
        its share of the softmax and gives no value (gpt-oss).
    factor: B,T fp32 or None; multiplies the capped scores of each token (Grok 2). Before the
        softcap, or without one, it could be multiplied into the query.
    scale: multiplies the scores.
    softcap: `cap * tanh(score / cap)` before the mask where not 0 (Gemma 2).

    Returns B,T,H,V.
    """
    batch, tokens, heads, width = query.shape
    groups = key.shape[1]
    query = query.transpose(1, 2).reshape(batch, groups, -1, width)  # B,G,(H/G)T,K
    score = (query @ key.mT) * scale
    if softcap:
        score = torch.tanh(score / softcap) * softcap
    score = score.reshape(batch, heads, tokens, -1)
    wide = torch.promote_types(score.dtype, torch.float32)
    if factor is not None:
        score = score.to(wide) * factor[:, None, :, None]
    score = score.masked_fill(~mask[:, None], float("-inf"))
    if sink is not None:
        share = sink.to(score.dtype)[:, None, None].expand(batch, -1, tokens, 1)  # B,H,T,1
        score = torch.cat([score, share], -1)
    weight = score.softmax(-1, dtype=wide)[..., : key.shape[2]].to(value.dtype)
    out = weight.reshape(batch, groups, -1, key.shape[2]) @ value
    return out.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous()
