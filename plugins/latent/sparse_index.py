"""Top-k selection of the positions that each token attends to, by an indexer (DSA).

Letters: B batch, T new tokens, C capacity of the cache, I heads of the indexer, D their width, K
positions chosen.
"""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.latent.mla_attention import write
from lmcast.plugins.latent.onnx_body import PORTABLE, Style, last_seen
from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Value
from lmcast.plugins.plugin import Close, Plugin, Selection, triton

UNSEEN = torch.finfo(torch.float32).min  # below any score, above TAKEN
TAKEN = float("-inf")
MOST = 3840  # of one TopK in TensorRT


def eager(
    query: Tensor,
    weights: Tensor,
    key: Tensor,
    past_key: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    """Append keys of the indexer to its cache, and choose the K positions with the best scores.

    The score, in fp32, is `sum_i weights_i * relu(query_i . key)` (DeepSeek-V3.2, arXiv
    2512.02556).

    query: B,T,I,D.
    weights: B,T,I fp32, of any sign.
    key: B,T,D, one for all heads.
    past_key: B,C,D.
    cache_lengths, token_counts: B int64, as in mla_attention.
    top_k: K is this, but no more than C.

    Returns positions B,T,K int64, ascending, and the keys after the call. Of equal scores the
    earlier position wins. Where a token sees fewer than K positions, the first ones after it fill
    up, which attention must mask.
    """
    present, total = totals(query, weights, key, past_key, cache_lengths)
    order = total.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :top_k].sort(-1).values, present


def totals(
    query: Tensor, weights: Tensor, key: Tensor, past_key: Tensor, cache_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the keys after the call, and the score of every position, B,T,C."""
    present, mask = write(key, past_key, cache_lengths)
    wide = torch.promote_types(query.dtype, torch.float32)
    score = (query.to(wide) @ present[:, None].to(wide).mT).relu()  # B,T,I,C
    total = (weights[:, :, None].to(wide) @ score)[:, :, 0]  # B,T,C
    return present, total.masked_fill(~mask, UNSEEN)


def selections(*arguments: Any) -> list[Selection]:
    return [(totals(*arguments[:5])[1], arguments[-1])]


def shapes(
    query: Tensor, weights: Tensor, key: Tensor, past_key: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    count = torch.sym_min(rest[-1], past_key.shape[1])
    chosen = query.new_empty((*query.shape[:2], count), dtype=torch.int64)
    return chosen, torch.empty_like(past_key)


def scores(
    op: Builder, query: Value, weights: Value, keys: Value, mask: Value, style: Style
) -> Value:
    """Return the scores of keys B,S,D, fp32 B,T,S; UNSEEN where the mask B,T,S is false."""
    batch, tokens, heads, width = (op.size(query, axis) for axis in range(4))
    wide_query, wide_keys = style.widened(op, query), style.widened(op, keys)
    flat = op.reshape(wide_query, batch, -1, width)
    score = op.Relu(style.product(op, flat, wide_keys, 3))
    by_head = op.reshape(score, batch, tokens, heads, op.size(keys, 1))  # B,T,I,S
    row = op.Unsqueeze(op.Cast(weights, to=DataType.FLOAT), [2])
    return op.Where(mask, op.Squeeze(row @ by_head, [2]), UNSEEN)


def count(op: Builder, top_k: Attribute, capacity: Value) -> Value:
    """Return how many positions are chosen, [1]."""
    return op.Min(op.dims(top_k), capacity)


def without_best(op: Builder, scored: Value, count: Value, top_k: int) -> Value:
    """Return scores B,T,S with -inf in the place of the `count` [1] best, at most top_k.

    TopK in TensorRT has a limit: several are written, each of what those before have left.
    """
    left, open_places = scored, count
    for _ in range(-(-top_k // MOST)):
        # Where there are fewer than top_k, a later round finds none to take. TopK takes no 0, but
        # to take one anew changes nothing.
        taken_now = op.Max(op.Min(open_places, MOST), 1)
        _, taken = op.TopK(left, taken_now, axis=2)
        gone = op.Expand(TAKEN, op.Shape(taken))
        left = op.ScatterElements(left, taken, gone, axis=2)
        open_places = open_places - taken_now
    return left


def in_order(op: Builder, taken: Value, count: Value) -> Value:
    """Return the `count` [1] positions where `taken` B,T,S is true, ascending.

    Each is scattered to the place that its rank, a cumulative sum, gives; the others go to one more
    place, which is cut off. (A second TopK would meet TensorRT's limit again, and its scatter takes
    no target smaller than the updates.)
    """
    rank = op.CumSum(op.Cast(taken, to=DataType.INT64), 2) - 1
    place = op.Where(taken, rank, count)
    slots, shape = op.size(taken, 2), op.Shape(taken)
    blank = op.Expand(0, op.dims(op.Slice(shape, [0], [2]), slots + 1))
    positions = op.Expand(op.range(slots), shape)
    ordered = op.ScatterElements(blank, place, positions, axis=2)
    return op.slice(ordered, 2, [0], count)


def body(
    op: Builder,
    query: Value,
    weights: Value,
    key: Value,
    past_key: Value,
    cache_lengths: Value,
    token_counts: Value,
    top_k: Attribute,
) -> tuple[Value, Value]:
    until = last_seen(op, cache_lengths, op.size(query, 1))
    present, _ = PORTABLE.write(op, past_key, until, key)
    capacity = PORTABLE.capacity(op, past_key)
    mask = op.range(capacity) <= until
    scored = scores(op, query, weights, present, mask, PORTABLE)
    number = count(op, top_k, capacity)
    left = without_best(op, scored, number, top_k.value)
    return in_order(op, op.Equal(left, TAKEN), number), present


def case(
    lengths: list[int], counts: list[int], room: int, sizes: tuple[int, int], top_k: int
) -> tuple[Any, ...]:
    """Return arguments for rows of these lengths and counts; sizes: I and D. Scores are whole
    numbers: exact in any order of summation, and often equal."""
    heads, width = sizes
    batch, tokens = len(lengths), max(counts)
    return (
        torch.randint(-3, 4, (batch, tokens, heads, width)).float(),
        torch.randint(-3, 4, (batch, tokens, heads)).float(),
        torch.randint(-3, 4, (batch, tokens, width)).float(),
        torch.randint(-3, 4, (batch, room, width)).float(),
        torch.tensor(lengths),
        torch.tensor(counts),
        top_k,
    )


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    return [
        case([0, 0], [7, 3], 7, (4, 8), 3),  # ragged prefill
        case([19], [1], 33, (6, 16), 8),  # decode
        case([2, 11], [4, 4], 24, (3, 8), 6),  # append
        case([3, 0], [2, 2], 16, (5, 8), 16),  # as many as there are
        case([5], [2], 9, (5, 8), 20),  # more than there are
        case([40, 12], [1, 1], 50, (1, 8), 9),  # one head: many scores are 0, and equal
        case([8000], [1], 8100, (2, 4), 5000),  # more than one TopK of TensorRT takes
        case([10, 3], [2, 2], 600, (2, 4), 5000),  # the same, more than there are
    ]


sparse_index = Plugin(
    name="sparse_index",
    eager=eager,
    shapes=shapes,
    selections=selections,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # Positions are chosen, and keys moved, not computed; the cases' scores are whole numbers, of
    # whole numbers that are exact in every dtype.
    close={torch.float32: Close(0), torch.bfloat16: Close(0), torch.float16: Close(0)},
)
