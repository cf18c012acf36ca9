"""Multi-head latent attention (MLA): keys and values of all heads are projections of one latent.

Letters: B batch, T new tokens, C capacity of the cache, H heads, N width of the part of queries
without positions, R width of the part with positions (RoPE), L rank of a latent, V width of values.
"""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.latent.onnx_body import PORTABLE, Heads, Style, last_seen
from lmcast.plugins.onnx_builder import Attribute, Builder, Value
from lmcast.plugins.plugin import Close, Plugin, rounded, triton


def attend(
    query: Tensor,
    rotated: Tensor,
    held: Tensor,
    mask: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    scale: float,
) -> Tensor:
    """Attend in the expanded form where mask B,T,C is true -> B,T,H,V; the softmax is in fp32.

    Of a latent c, `key_i = key_up_i c` and `value_i = value_up_i c`; the score of head i is `scale
    * (query_i . key_i + rotated_i . k)`, k being the rotated key that all heads share.
    """
    latent, shared = held.split((key_up.shape[2], rotated.shape[3]), -1)  # B,C,L and B,C,R
    key = latent[:, None] @ key_up.mT  # B,H,C,N
    value = latent[:, None] @ value_up.mT  # B,H,C,V
    by_head, rotated_by_head = query.transpose(1, 2), rotated.transpose(1, 2)
    score = (by_head @ key.mT + rotated_by_head @ shared[:, None].mT) * scale  # B,H,T,C
    wide = torch.promote_types(score.dtype, torch.float32)
    weight = score.masked_fill(~mask[:, None], float("-inf")).softmax(-1, dtype=wide)
    return (weight.to(value.dtype) @ value).transpose(1, 2).contiguous()


def write(latent: Tensor, past: Tensor, cache_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cache with rows B,T,W appended, and the mask of what each token sees, B,T,C."""
    position = cache_lengths[:, None] + torch.arange(latent.shape[1], device=latent.device)  # B,T
    present = past.scatter(1, position[:, :, None].expand_as(latent), latent)
    slot = torch.arange(past.shape[1], device=latent.device)
    return present, slot <= position[:, :, None]


def eager(
    query: Tensor,
    rotated: Tensor,
    latent: Tensor,
    past: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Append latents to the cache, and attend causally to all of it (DeepSeek-V2, arXiv
    2405.04434).

    query: B,T,H,N, the part without positions.
    rotated: B,T,H,R, the part with positions.
    latent: B,T,L+R: the normed latent, then the rotated key that all heads share; written at
        cache_lengths[b] .. + T - 1, so C must leave room for T.
    past: the cache, B,C,L+R.
    cache_lengths: B int64, tokens in the cache of each row.
    token_counts: B int64, valid tokens of each row; rows are padded on the right.
    key_up, value_up: H,N,L and H,V,L, the projections of latents to keys and values.
    scale: multiplies the scores.

    Returns B,T,H,V and the cache after the call. Of tokens beyond token_counts, output and cache
    are unspecified but finite.

    For a paged cache, `past` would become a pool of blocks and a block table B,blocks to write
    through; nothing else here depends on rows being contiguous.
    """
    present, mask = write(latent, past, cache_lengths)
    return attend(query, rotated, present, mask, key_up, value_up, scale), present


def shapes(
    query: Tensor, rotated: Tensor, latent: Tensor, past: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    value_up: Tensor = rest[3]
    return query.new_empty((*query.shape[:3], value_up.shape[1])), torch.empty_like(past)


def body(
    op: Builder,
    query: Value,
    rotated: Value,
    latent: Value,
    past: Value,
    cache_lengths: Value,
    token_counts: Value,
    key_up: Value,
    value_up: Value,
    scale: Attribute,
    style: Style = PORTABLE,
) -> tuple[Value, Value]:
    heads, tokens = Heads(op, query, rotated, key_up, value_up, scale, style), op.size(query, 1)
    until = last_seen(op, cache_lengths, tokens)
    present, rows = style.write(op, past, until, latent)
    slots = style.slots(op, past, cache_lengths, tokens)
    mask = op.Unsqueeze(op.range(slots) <= until, [1])  # B,1,T,S
    return heads.attend(rows, slots, mask), present


def case(
    lengths: list[int], counts: list[int], room: int, sizes: tuple[int, int, int, int, int]
) -> tuple[Any, ...]:
    """Return arguments for rows of these lengths and counts; sizes: H, N, R, L, V."""
    heads, width, rotated_width, rank, value_width = sizes
    batch, tokens = len(lengths), max(counts)
    return (
        torch.randn(batch, tokens, heads, width),
        torch.randn(batch, tokens, heads, rotated_width),
        torch.randn(batch, tokens, rank + rotated_width),
        torch.randn(batch, room, rank + rotated_width),
        torch.tensor(lengths),
        torch.tensor(counts),
        torch.randn(heads, width, rank) / rank**0.5,
        torch.randn(heads, value_width, rank) / rank**0.5,
        (width + rotated_width) ** -0.5,
    )


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    return [
        case([0, 0], [7, 3], 7, (4, 16, 8, 32, 16)),  # ragged prefill: expanded
        case([19], [1], 33, (6, 16, 8, 32, 24)),  # decode: absorbed
        case([2, 11], [4, 4], 24, (3, 24, 8, 40, 16)),  # append
        case([9, 0, 30], [1, 1, 1], 40, (5, 8, 16, 24, 8)),  # decode of rows of different lengths
        case([60], [8], 70, (2, 16, 8, 16, 16)),  # append to a long row
    ]


mla_attention = Plugin(
    name="mla_attention",
    eager=eager,
    shapes=shapes,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # 40 fp32 epsilons: outputs are means of values near 1, and the two forms round two products of
    # up to 40 terms in another order. Shorter: folded queries, weights and what they take are
    # rounded.
    close={torch.float32: Close(4.8e-6), **rounded(3)},
)
