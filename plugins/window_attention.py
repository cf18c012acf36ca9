"""Causal attention to the last W positions, kept in a ring. Letters as in cached_attention; W is
the window, which counts the token itself, and the number of slots of the ring."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.cached_attention import attend, attend_body, case, shapes
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
    scale: float,
    softcap: float,
    chunked: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to the last W positions, themselves included, and keep the last W in the ring.

    query B,T,H,K; key B,T,G,K; value B,T,G,V; past_key B,G,W,K; past_value B,G,W,V; position p lies
    in slot p modulo W. cache_lengths and token_counts B int64 as in cached_attention, sink, scale
    and softcap too; T may exceed W. chunked: a token sees no position before the last multiple of W
    up to its own (Llama 4). Only valid tokens enter the ring. -> B,T,H,V and the ring after.
    """
    tokens, window = query.shape[1], past_key.shape[2]
    start = cache_lengths[:, None]  # B,1
    slot = torch.arange(window, device=query.device)
    # The latest position before `end` that slot s can hold; negative: the slot is empty.
    held = start - 1 - (start - 1 - slot) % window  # B,W
    new = start + torch.arange(tokens, device=query.device)  # B,T
    at = torch.cat([held, new], 1)[:, None]  # B,1,W+T
    q_at = new[:, :, None]  # B,T,1
    oldest = q_at - q_at % window if chunked else q_at - window + 1
    mask = (at >= 0) & (at <= q_at) & (at >= oldest)  # B,T,W+T

    end = start + token_counts[:, None]
    kept = end - 1 - (end - 1 - slot) % window - start  # B,W: index into the new tokens, if >= 0
    index = torch.where(kept >= 0, kept + window, slot)[:, None, :, None]  # into ring and new ones

    def extend(past: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([past, fresh.transpose(1, 2)], 2)  # B,G,W+T,K
        return both, both.gather(2, index.expand_as(past))

    keys, ring_key = extend(past_key, key)
    values, ring_value = extend(past_value, value)
    return attend(query, keys, values, mask, sink, scale, softcap), ring_key, ring_value


# A runtime may write the new ring over the old one, so the old one is read once, by what all else
# depends on.
BODY = """
window_attention <scale, softcap, chunked> (
    query, key, value, past_key, past_value, cache_lengths, token_counts{sink}
) => (out, ring_key, ring_value) {{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [1]> ()
    second = Constant <value_ints = [2]> ()
    ends = Constant <value_ints = [1, 3]> ()
    tokens = Shape <start = 1, end = 2> (query)
    token_count = Squeeze (tokens)
    slots = Shape <start = 2, end = 3> (past_key)
    window = Squeeze (slots)
    slot = Range (zero, window, one)

    start = Unsqueeze (cache_lengths, first)
    last = Sub (start, one)
    before = Sub (last, slot)
    age = Mod (before, window)
    held = Sub (last, age)
    offset = Range (zero, token_count, one)
    new = Add (start, offset)
    positions = Concat <axis = 1> (held, new)
    at = Unsqueeze (positions, first)
    q_at = Unsqueeze (new, second)
    not_later = LessOrEqual (at, q_at)
    reach = {reach}
    oldest = Sub (q_at, reach)
    in_window = GreaterOrEqual (at, oldest)
    seen = And (not_later, in_window)
    filled = GreaterOrEqual (at, zero)
    mask = And (filled, seen)
    head_mask = Unsqueeze (mask, first)

    counts = Unsqueeze (token_counts, first)
    end = Add (start, counts)
    final = Sub (end, one)
    left = Sub (final, slot)
    left_age = Mod (left, window)
    latest = Sub (final, left_age)
    kept = Sub (latest, start)
    is_new = GreaterOrEqual (kept, zero)
    behind = Add (kept, window)
    from = Where (is_new, behind, slot)
    index = Unsqueeze (from, ends)

    new_key = Transpose <perm = [0, 2, 1, 3]> (key)
    keys = Concat <axis = 2> (past_key, new_key)
    key_shape = Shape (past_key)
    key_index = Expand (index, key_shape)
    ring_key = GatherElements <axis = 2> (keys, key_index)
    new_value = Transpose <perm = [0, 2, 1, 3]> (value)
    values = Concat <axis = 2> (past_value, new_value)
    value_shape = Shape (past_value)
    value_index = Expand (index, value_shape)
    ring_value = GatherElements <axis = 2> (values, value_index)

    {attend}
}}"""


def body(given: Mapping[str, Any]) -> str:
    sink = given["sink"] is not None
    return BODY.format(
        sink=", sink" if sink else "",
        reach="Mod (q_at, window)" if given["chunked"] else "Sub (window, one)",
        attend=attend_body(sink, "keys", "values"),
    )


def cases() -> list[tuple]:
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
    ]


window_attention = Plugin(
    name="window_attention",
    eager=eager,
    shapes=shapes,
    body=body,
    cases=cases,
    close={torch.float32: Close(2.4e-6)},  # 20 fp32 epsilons: outputs are means of values near 1
)
