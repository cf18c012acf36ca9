"""Causal attention to the last W positions, kept in a ring. Letters as in cached_attention; W is
the window, which counts the token itself, and the number of slots of the ring."""

import torch
from torch import Tensor

from lmcast.plugins.cached_attention import attend, case, shapes
from lmcast.plugins.plugin import Close, Plugin


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to the last W positions, themselves included, and keep the last W in the ring.

    query B,T,H,K; key B,T,G,K; value B,T,G,V; past_key B,G,W,K; past_value B,G,W,V; position p lies
    in slot p modulo W. cache_lengths and token_counts B int64 as in cached_attention; T may exceed
    W. Only valid tokens enter the ring. -> B,T,H,V and the ring after the call.
    """
    tokens, window = query.shape[1], past_key.shape[2]
    start = cache_lengths[:, None]  # B,1
    slot = torch.arange(window, device=query.device)
    # The latest position before `end` that slot s can hold; negative: the slot is empty.
    held = start - 1 - (start - 1 - slot) % window  # B,W
    new = start + torch.arange(tokens, device=query.device)  # B,T
    at = torch.cat([held, new], 1)[:, None]  # B,1,W+T
    q_at = new[:, :, None]  # B,T,1
    mask = (at >= 0) & (at <= q_at) & (at > q_at - window)  # B,T,W+T

    end = start + token_counts[:, None]
    kept = end - 1 - (end - 1 - slot) % window - start  # B,W: index into the new tokens, if >= 0

    def extend(past: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        fresh = fresh.transpose(1, 2)  # B,G,T,K
        index = kept.clamp(min=0)[:, None, :, None].expand(-1, past.shape[1], -1, past.shape[3])
        ring = torch.where(kept[:, None, :, None] >= 0, fresh.gather(2, index), past)
        return torch.cat([past, fresh], 2), ring

    keys, ring_key = extend(past_key, key)
    values, ring_value = extend(past_value, value)
    return attend(query, keys, values, mask, scale, softcap), ring_key, ring_value


BODY = """
window_attention <scale, softcap> (
    query, key, value, past_key, past_value, cache_lengths, token_counts
) => (out, ring_key, ring_value) {
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
    edge = Sub (q_at, window)
    in_window = Greater (at, edge)
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
    fresh = Unsqueeze (is_new, ends)
    from = Max (kept, zero)
    index = Unsqueeze (from, ends)

    new_key = Transpose <perm = [0, 2, 1, 3]> (key)
    key_shape = Shape (past_key)
    key_index = Expand (index, key_shape)
    new_ring_key = GatherElements <axis = 2> (new_key, key_index)
    ring_key = Where (fresh, new_ring_key, past_key)
    new_value = Transpose <perm = [0, 2, 1, 3]> (value)
    value_shape = Shape (past_value)
    value_index = Expand (index, value_shape)
    new_ring_value = GatherElements <axis = 2> (new_value, value_index)
    ring_value = Where (fresh, new_ring_value, past_value)

    heads = Transpose <perm = [0, 2, 1, 3]> (query)
    keys = Concat <axis = 2> (past_key, new_key)
    values = Concat <axis = 2> (past_value, new_value)
    attended = Attention <
        scale: float = @scale, softcap: float = @softcap, softmax_precision = 1
    > (heads, keys, values, head_mask)
    out = Transpose <perm = [0, 2, 1, 3]> (attended)
}
"""


def cases() -> list[tuple]:
    torch.manual_seed(0)
    sizes = (4, 2, 16, 8)  # the window is the room of the cache
    return [
        case([0, 0], [9, 2], 4, sizes),  # ragged prefill past the window
        case([3, 11], [1, 1], 5, sizes, cap=2.0),  # decode before and after the ring has wrapped
        case([6], [7], 6, sizes),  # append more than the window
        case([0], [2], 8, sizes),  # window not full yet
    ]


window_attention = Plugin(
    name="window_attention",
    eager=eager,
    shapes=shapes,
    body=BODY,
    cases=cases,
    close={torch.float32: Close(2.4e-6)},  # 20 fp32 epsilons: outputs are means of values near 1
)
