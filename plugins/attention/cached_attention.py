"""Causal attention over a cache that it extends. Letters: B batch, T new tokens, C capacity of the
cache, H query heads, G key heads, K width of queries and keys, V width of values."""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.attention import onnx_body
from lmcast.plugins.attention.attend import attend
from lmcast.plugins.attention.fp8_cache import codes, numbers, stored
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
    sink: Tensor | None,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    factor: Tensor | None,
    visible_ends: Tensor | None,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Append keys and values to the cache, and attend to all of it up to the token, or further.

    query: B,T,H,K.
    key, value: B,T,G,K and B,T,G,V; row b writes them at cache_lengths[b] .. + T - 1, so C must
        leave room for T.
    past_key, past_value: the caches, B,G,C,K and B,G,C,V.
    cache_lengths: B int64, tokens in the cache of each row.
    token_counts: B int64, valid tokens of each row; rows are padded on the right.
    sink, factor, scale, softcap: as in `attend`.
    key_scale, value_scale: () fp32, both or neither; with them the caches are float8_e4m3fn (see
        fp8_cache), and attention sees new tokens as they are stored.
    visible_ends: B,T int64 or None; the last position that each token sees, up to the last of this
        call (Gemma 3, whose tokens of a picture see each other). None, or an earlier one: its own.

    Returns B,T,H,V and both caches after the call. Of tokens beyond token_counts, output and cache
    are unspecified but finite.
    """
    position = cache_lengths[:, None] + torch.arange(query.shape[1], device=query.device)  # B,T

    def write(past: Tensor, new: Tensor) -> Tensor:
        index = position[:, None, :, None].expand(-1, past.shape[1], -1, past.shape[3])
        return past.scatter(2, index, new.transpose(1, 2))

    key, past_key = codes(key, past_key, key_scale)
    value, past_value = codes(value, past_value, value_scale)
    present_key, present_value = write(past_key, key), write(past_value, value)
    held = torch.arange(past_key.shape[2], device=query.device)
    last = position if visible_ends is None else torch.maximum(visible_ends, position)
    given = numbers(present_key, key_scale), numbers(present_value, value_scale)
    return (
        attend(query, *given, held <= last[:, :, None], sink, factor, scale, softcap),
        stored(present_key, key_scale),
        stored(present_value, value_scale),
    )


def shapes(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    return out, torch.empty_like(past_key), torch.empty_like(past_value)


def body(
    op: Builder,
    query: Value,
    key: Value,
    value: Value,
    past_key: Value,
    past_value: Value,
    cache_lengths: Value,
    token_counts: Value,
    sink: Value | None,
    key_scale: Value | None,
    value_scale: Value | None,
    factor: Value | None,
    visible_ends: Value | None,
    scale: Attribute,
    softcap: Attribute,
) -> tuple[Value, Value, Value]:
    position = op.Unsqueeze(cache_lengths, [1]) + op.range(op.size(query, 1))  # B,T

    def write(past: Value, new: Value, scale: Value | None) -> Value:
        rows = op.Transpose(new, perm=[0, 2, 1, 3])
        if scale is None:
            return op.TensorScatter(past, rows, cache_lengths, axis=2)
        # TensorRT for RTX 1.7 has TensorScatter for what is an input of the graph alone.
        places = op.Expand(op.Unsqueeze(position, [1, 3]), op.Shape(rows))
        return op.ScatterElements(past, places, rows, axis=2)

    key, past_key = onnx_body.codes(op, key, past_key, key_scale, query)
    value, past_value = onnx_body.codes(op, value, past_value, value_scale, query)
    present_key = write(past_key, key, key_scale)
    present_value = write(past_value, value, value_scale)
    last = position if visible_ends is None else op.Max(visible_ends, position)
    mask = op.range(op.size(past_key, 2)) <= op.Unsqueeze(last, [2])  # B,T,C
    keys = onnx_body.numbers(op, present_key, key_scale, query)
    values = onnx_body.numbers(op, present_value, value_scale, query)
    return (
        onnx_body.attend(op, query, keys, values, mask, sink, factor, scale, softcap),
        onnx_body.stored(op, present_key, key_scale, query),
        onnx_body.stored(op, present_value, value_scale, query),
    )


def case(
    lengths: list[int],
    counts: list[int],
    room: int,
    sizes: tuple[int, ...],
    cap: float = 0.0,
    sinks: bool = False,
    scales: tuple[float, float] | None = None,
    factors: bool = False,
    pictures: tuple[tuple[int, int, int], ...] = (),
) -> tuple[Any, ...]:
    """Return arguments for rows of these lengths and counts; sizes: heads, groups, widths.

    scales: of keys and values in FP8. factors: whether tokens have one behind the softcap.
    pictures: row, and the first and last of its new tokens that see each other.
    """
    heads, groups, width, value_width = sizes
    batch, tokens = len(lengths), max(counts)
    made = (
        torch.randn(batch, tokens, heads, width),
        torch.randn(batch, tokens, groups, width),
        torch.randn(batch, tokens, groups, value_width),
    )
    past = [torch.randn(batch, groups, room, n) for n in (width, value_width)]
    if scales is not None:
        past = [p.div(s).to(torch.float8_e4m3fn) for p, s in zip(past, scales, strict=True)]
    return (
        *made,
        *past,
        torch.tensor(lengths),
        torch.tensor(counts),
        2 * torch.randn(heads) if sinks else None,
        *((None, None) if scales is None else map(torch.tensor, scales)),
        1 + torch.rand(batch, tokens) if factors else None,
        _ends(lengths, tokens, pictures) if pictures else None,
        width**-0.5,
        cap,
    )


def _ends(lengths: list[int], tokens: int, pictures: tuple[tuple[int, int, int], ...]) -> Tensor:
    ends = torch.tensor(lengths)[:, None] + torch.arange(tokens)
    ends[:, -1] = 0  # as behind the end of a row, where anything may be said
    for row, first, last in pictures:
        ends[row, first : last + 1] = lengths[row] + last
    return ends


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    return [
        case([0, 0], [5, 3], 5, (4, 2, 16, 16)),  # ragged prefill
        case([7], [1], 11, (6, 2, 8, 8), cap=3.0),  # decode with a softcap
        case([2, 6], [4, 4], 12, (3, 1, 24, 16)),  # append; narrow values
        case([0, 3], [5, 2], 9, (4, 2, 16, 16), sinks=True),
        case([7, 2], [1, 1], 11, (6, 2, 24, 8), cap=3.0, sinks=True),
        case([0, 3], [5, 2], 9, (4, 2, 16, 16), scales=(0.01, 0.02)),
        # Keys above 448 times their scale saturate; values below 2^-10 times theirs are 0.
        case([7, 2], [1, 1], 11, (6, 2, 24, 8), cap=3.0, sinks=True, scales=(0.002, 400.0)),
        case([0, 0], [5, 5], 5, (4, 2, 16, 16), cap=3.0, factors=True),
        case([7], [1], 11, (6, 2, 8, 8), cap=2.0, factors=True),
        case([2, 6, 0], [4, 4, 1], 12, (3, 1, 24, 16), cap=30.0, factors=True),
        case([3], [2], 8, (4, 4, 8, 8), factors=True),
        case([7, 2], [1, 1], 11, (6, 2, 24, 8), 3.0, sinks=True, factors=True),
        case([0, 3], [5, 2], 9, (4, 2, 16, 16), 3.0, scales=(0.01, 0.02), factors=True),
        # A picture at the start, one at the end of a row that holds tokens; two in one row.
        case([0, 3], [6, 5], 12, (4, 2, 16, 16), pictures=((0, 0, 3), (1, 1, 4))),
        case([2], [9], 11, (6, 2, 24, 8), 3.0, pictures=((0, 1, 3), (0, 5, 8))),
        case([7, 2], [1, 1], 11, (6, 2, 8, 8), pictures=((0, 0, 0),)),  # a step
        case([0, 3], [5, 4], 9, (4, 2, 16, 16), sinks=True, pictures=((1, 0, 3),)),
    ]


cached_attention = Plugin(
    name="cached_attention",
    eager=eager,
    shapes=shapes,
    body=body,
    cases=cases,
    # 20 fp32 epsilons: outputs are means of values near 1. Codes are the same: a quotient that two
    # runtimes round to either side of a tie the cases do not have.
    close={torch.float32: Close(2.4e-6)},
)
