"""MLA over chosen positions of the cache (DeepSeek sparse attention, DSA).

Letters as in mla_attention; K positions chosen for each token.
"""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.latent.mla_attention import attend, write
from lmcast.plugins.latent.mla_attention import case as whole_case
from lmcast.plugins.latent.onnx_body import PORTABLE, Heads, Style, last_seen
from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Value
from lmcast.plugins.plugin import Close, Plugin, rounded, triton


def eager(
    query: Tensor,
    rotated: Tensor,
    latent: Tensor,
    past: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    chosen: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Append latents to the cache, and attend to `chosen` positions of it (DeepSeek-V3.2, arXiv
    2512.02556).

    chosen: B,T,K int64, positions below C, ascending, without repeats; at least one is not after
    the token, and those after it are not seen.

    All other arguments and the results are as in mla_attention.
    """
    present, mask = write(latent, past, cache_lengths)
    mask = mask & torch.zeros_like(mask).scatter(2, chosen, True)
    return attend(query, rotated, present, mask, key_up, value_up, scale), present


def shapes(
    query: Tensor, rotated: Tensor, latent: Tensor, past: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    value_up: Tensor = rest[4]
    return query.new_empty((*query.shape[:3], value_up.shape[1])), torch.empty_like(past)


def gathers(op: Builder, tokens: Value, chosen: Value, capacity: Value) -> Value:
    """Return whether to gather the chosen rows, a bool [].

    It is done where it reads no more rows than the cache has, as in a decoding step. Otherwise
    attention is over all rows, with those not chosen masked.
    """
    return op.Squeeze(tokens * op.size(chosen, 2) <= capacity)


def gathered(heads: Heads, present: Value, chosen: Value, until: Value) -> Value:
    """Attend in the absorbed form, each token to its own gathered rows -> B,T,H,V."""
    op = heads.op
    rows = op.GatherND(present, op.Unsqueeze(chosen, [3]), batch_dims=1)  # B,T,K,L+R
    by_token = op.Transpose(heads.folded(), perm=[0, 2, 1, 3])  # B,T,H,L+R
    score = heads.style.product(op, by_token, rows, 4)  # B,T,H,K
    weight = heads.softmax(score, op.Unsqueeze(chosen <= until, [2]))
    return heads.unfolded(weight @ rows, [0, 2, 3, 1])


def marked(op: Builder, chosen: Value, capacity: Value) -> Value:
    """Return which rows are chosen for each token, B,T,C."""
    shape = op.Shape(chosen)
    none = op.Expand(0.0, op.dims(op.Slice(shape, [0], [2]), capacity))
    marks = op.ScatterElements(none, chosen, op.Expand(1.0, shape), axis=2)
    return op.Cast(marks, to=DataType.BOOL)


def body(
    op: Builder,
    query: Value,
    rotated: Value,
    latent: Value,
    past: Value,
    cache_lengths: Value,
    token_counts: Value,
    chosen: Value,
    key_up: Value,
    value_up: Value,
    scale: Attribute,
    style: Style = PORTABLE,
) -> tuple[Value, Value]:
    """One form of three. An If within an If would say it shorter, but TensorRT for RTX 1.7 builds
    none."""
    heads = Heads(op, query, rotated, key_up, value_up, scale, style)
    batch, tokens, head_count, *_, value_width = heads.sizes()
    until, capacity = last_seen(op, cache_lengths, tokens), style.capacity(op, past)
    present, held = style.write(op, past, until, latent)
    slots = style.slots(op, past, cache_lengths, tokens)
    is_chosen = style.seen(op, marked(op, chosen, capacity), slots, 2)
    mask = op.Unsqueeze((op.range(slots) <= until) & is_chosen, [1])  # B,1,T,S
    heads.by_head()  # written ahead of all branches, which share it

    def rows() -> Value:
        return style.seen(op, held, slots, 1)

    few, absorbs = gathers(op, tokens, chosen, capacity), heads.absorbs(slots)
    none = op.Expand(op.CastLike(0.0, query), op.dims(batch, tokens, head_count, value_width))
    (out,) = op.branch(few, lambda: gathered(heads, held, chosen, until), lambda: none)
    (either,) = op.branch(~few & absorbs, lambda: heads.absorbed(rows(), mask), lambda: out)
    (last,) = op.branch(few | absorbs, lambda: either, lambda: heads.expanded(rows(), mask))
    return last, present


def case(
    lengths: list[int], counts: list[int], room: int, sizes: tuple[Any, ...], kept: int
) -> tuple[Any, ...]:
    """Return arguments for rows of these lengths and counts, with as many chosen as `kept`."""
    *before, key_up, value_up, scale = whole_case(lengths, counts, room, sizes)
    batch, tokens = len(lengths), max(counts)
    score = torch.rand(batch, tokens, room)
    own = torch.tensor(lengths)[:, None] + torch.arange(tokens)
    score.scatter_(2, own[:, :, None], 2.0)  # always itself: a token must see something
    chosen = score.topk(kept, -1).indices.sort(-1).values
    return (*before, chosen, key_up, value_up, scale)


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    return [
        case([0, 0], [7, 3], 7, (4, 16, 8, 32, 16), 3),  # ragged prefill: all rows, masked
        case([19], [1], 33, (6, 16, 8, 32, 24), 8),  # decode: rows gathered
        case([2, 11], [4, 4], 24, (3, 24, 8, 40, 16), 6),  # append: gathered too
        case([9, 0, 30], [1, 1, 1], 40, (5, 8, 16, 24, 8), 7),  # rows of different lengths
        case([3, 20], [2, 2], 24, (4, 8, 8, 16, 8), 24),  # all there are
        case([60], [8], 70, (2, 16, 8, 16, 16), 30),  # append to a long row: all rows, masked
    ]


sparse_attention = Plugin(
    name="sparse_attention",
    eager=eager,
    shapes=shapes,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # 40 fp32 epsilons, or 3 roundings, as in mla_attention.
    close={torch.float32: Close(4.8e-6), **rounded(3)},
)
