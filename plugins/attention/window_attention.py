"""Causal attention to the last W positions, kept in a ring. Letters as in cached_attention; W is
the window, which counts the token itself, and the number of slots of the ring."""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.attention import onnx_body
from lmcast.plugins.attention.attend import attend
from lmcast.plugins.attention.cached_attention import case, shapes
from lmcast.plugins.attention.fp8_cache import codes, numbers, stored
from lmcast.plugins.attention.window_keys import see, see_body
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
    chunked: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to the last W positions, whose keys and values live in a ring buffer.

    query: B,T,H,K; T may exceed W.
    key, value: B,T,G,K and B,T,G,V; only valid tokens enter the ring.
    past_key, past_value: the ring, B,G,W,K and B,G,W,V; position p is in slot p modulo W.
    chunked: a token sees no position before the last multiple of W up to its own (Llama 4).

    All other arguments are as in cached_attention; visible_ends adds what lies behind a token to
    the W positions that end with it, also where a picture is longer than W. Returns B,T,H,V and
    the ring after the call.
    """
    key, past_key = codes(key, past_key, key_scale)
    value, past_value = codes(value, past_value, value_scale)
    given = key, value, past_key, past_value, cache_lengths, token_counts
    keys, values, mask, ring_key, ring_value = see(*given, chunked, visible_ends)
    keys, values = numbers(keys, key_scale), numbers(values, value_scale)
    out = attend(query, keys, values, mask, sink, factor, scale, softcap)
    return out, stored(ring_key, key_scale), stored(ring_value, value_scale)


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
    chunked: Attribute,
    ordered: bool = False,
) -> tuple[Value, Value, Value]:
    """ordered: as of see_body."""
    key, past_key = onnx_body.codes(op, key, past_key, key_scale, query)
    value, past_value = onnx_body.codes(op, value, past_value, value_scale, query)
    given = key, value, past_key, past_value, cache_lengths, token_counts
    seen = see_body(op, *given, bool(chunked.value), visible_ends, ordered)
    keys, values, mask, ring_key, ring_value = seen
    keys = onnx_body.numbers(op, keys, key_scale, query)
    values = onnx_body.numbers(op, values, value_scale, query)
    return (
        onnx_body.attend(op, query, keys, values, mask, sink, factor, scale, softcap),
        onnx_body.stored(op, ring_key, key_scale, query),
        onnx_body.stored(op, ring_value, value_scale, query),
    )


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    sizes = (4, 2, 16, 8)  # the window is the room of the cache
    equal = (6, 3, 8, 8)
    return [
        (*case([0, 0], [9, 2], 4, sizes), False),  # ragged prefill past the window
        (*case([3, 11], [1, 1], 5, sizes, cap=2.0), False),  # decode: a ring not full yet, and full
        (*case([6], [7], 6, sizes), False),  # append more than the window
        (*case([0], [2], 8, sizes), False),  # window not full yet
        (*case([0, 0], [9, 2], 4, equal, sinks=True), False),
        (*case([3, 11], [1, 1], 5, sizes, cap=2.0, sinks=True), False),
        (*case([0, 0], [11, 2], 4, sizes), True),  # ragged prefill of several chunks
        (*case([3, 10, 14, 20], [1, 1, 1, 1], 5, sizes), True),  # last, first and between
        (*case([6, 2], [9, 3], 4, equal, sinks=True), True),  # append over the ends of chunks
        (*case([3, 11], [7, 2], 5, sizes, cap=2.0, scales=(0.01, 0.02)), False),
        # Keys above 448 times their scale saturate; values below 2^-10 times theirs are 0.
        (*case([6, 2], [9, 3], 4, equal, sinks=True, scales=(0.002, 400.0)), True),
        (*case([3, 11], [7, 2], 5, sizes, cap=2.0, factors=True), False),
        (*case([6, 2], [9, 3], 4, equal, sinks=True, scales=(0.01, 0.02), factors=True), True),
        # Pictures that are shorter and longer than the window, at the start and behind tokens.
        (*case([0, 3], [9, 5], 4, equal, pictures=((0, 1, 7), (1, 2, 3))), False),
        (*case([11], [8], 5, sizes, cap=2.0, pictures=((0, 0, 1), (0, 3, 7))), False),
        (*case([3, 11], [1, 1], 5, sizes, pictures=((0, 0, 0),)), False),
        (*case([6, 2], [9, 3], 4, equal, sinks=True, pictures=((0, 2, 8),)), False),
    ]


window_attention = Plugin(
    name="window_attention",
    eager=eager,
    shapes=shapes,
    body=body,
    cases=cases,
    close={torch.float32: Close(2.4e-6)},  # as in cached_attention
)
