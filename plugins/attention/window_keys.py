"""What a window sees in one call, laid out for several layers, and the ring after it. Letters: B
batch, T new tokens, W window and slots of the ring, G key heads, K width of keys, V of values."""

import torch
from torch import Tensor

from lmcast.plugins.plugin import Close, Plugin


def see(
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    chunked: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `eager`; chunked: no token sees a position before the last multiple of W up to its own."""
    tokens, window = key.shape[1], past_key.shape[2]
    start = cache_lengths[:, None]  # B,1
    slot = torch.arange(window, device=key.device)
    # The latest position before `end` that slot s can hold; negative: the slot is empty.
    held = start - 1 - (start - 1 - slot) % window  # B,W
    new = start + torch.arange(tokens, device=key.device)  # B,T
    at = torch.cat([held, new], 1)[:, None]  # B,1,W+T
    q_at = new[:, :, None]  # B,T,1
    oldest = q_at - q_at % window if chunked else q_at - window + 1
    mask = (at >= 0) & (at <= q_at) & (at >= oldest)  # B,T,W+T

    end = start + token_counts[:, None]
    latest = end - 1 - (end - 1 - slot) % window  # B,W: the position that the slot holds afterwards
    kept = torch.where(latest >= start, latest - start + window, slot)  # B,W: where it lies in W+T

    def extend(past: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        whole = torch.cat([past, fresh.transpose(1, 2)], 2)  # B,G,W+T,K
        return whole, whole.gather(2, kept[:, None, :, None].expand_as(past))

    keys, ring_key = extend(past_key, key)
    values, ring_value = extend(past_value, value)
    return keys, values, mask, ring_key, ring_value


def eager(
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Put the new keys and values behind those of the ring, and say who sees which.

    key B,T,G,K; value B,T,G,V; past_key B,G,W,K; past_value B,G,W,V, a ring as in window_attention;
    cache_lengths and token_counts B int64 as there. -> keys B,G,W+T,K, values B,G,W+T,V, mask
    B,T,W+T bool: true within the window, and the two rings after the call.

    The rings come out of what was put together, so a runtime that keeps them in place has read the
    old ones before it writes the new: other layers may still need them.
    """
    return see(key, value, past_key, past_value, cache_lengths, token_counts, False)


def shapes(
    key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, groups, width = key.shape
    seen = past_key.shape[2] + tokens
    return (
        key.new_empty((batch, groups, seen, width)),
        key.new_empty((batch, groups, seen, value.shape[3])),
        key.new_empty((batch, tokens, seen), dtype=torch.bool),
        torch.empty_like(past_key),
        torch.empty_like(past_value),
    )


# From key, value, the ring and the lengths to keys, values, mask and the ring after the call.
SEE = """zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [1]> ()
    second = Constant <value_ints = [2]> ()
    ends = Constant <value_ints = [1, 3]> ()
    tokens = Shape <start = 1, end = 2> ({key})
    token_count = Squeeze (tokens)
    slots = Shape <start = 2, end = 3> ({past_key})
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

    counts = Unsqueeze (token_counts, first)
    end = Add (start, counts)
    final = Sub (end, one)
    left = Sub (final, slot)
    left_age = Mod (left, window)
    latest = Sub (final, left_age)
    is_new = GreaterOrEqual (latest, start)
    behind = Sub (latest, start)
    new_place = Add (behind, window)
    kept = Where (is_new, new_place, slot)
    index = Unsqueeze (kept, ends)

    new_key = Transpose <perm = [0, 2, 1, 3]> ({key})
    keys = Concat <axis = 2> ({past_key}, new_key)
    key_shape = Shape ({past_key})
    key_index = Expand (index, key_shape)
    ring_key = GatherElements <axis = 2> (keys, key_index)
    new_value = Transpose <perm = [0, 2, 1, 3]> ({value})
    values = Concat <axis = 2> ({past_value}, new_value)
    value_shape = Shape ({past_value})
    value_index = Expand (index, value_shape)
    ring_value = GatherElements <axis = 2> (values, value_index)"""


NAMES = "key", "value", "past_key", "past_value"


def see_body(chunked: bool, names: tuple[str, ...] = NAMES) -> str:
    """Return the ONNX text of `see`; names: of what it takes first."""
    reach = "Mod (q_at, window)" if chunked else "Sub (window, one)"
    return SEE.format(reach=reach, **dict(zip(NAMES, names, strict=True)))


BODY = f"""
window_keys (key, value, past_key, past_value, cache_lengths, token_counts) => (
    keys, values, mask, ring_key, ring_value
) {{
    {see_body(False)}
}}
"""


def case(lengths: list[int], counts: list[int], window: int, sizes: tuple[int, ...]) -> tuple:
    """Return arguments for rows of these lengths and counts; sizes: groups, widths."""
    groups, width, value_width = sizes
    batch, tokens = len(lengths), max(counts)
    return (
        torch.randn(batch, tokens, groups, width),
        torch.randn(batch, tokens, groups, value_width),
        torch.randn(batch, groups, window, width),
        torch.randn(batch, groups, window, value_width),
        torch.tensor(lengths),
        torch.tensor(counts),
    )


def cases() -> list[tuple]:
    torch.manual_seed(0)
    return [
        case([0, 0], [9, 2], 4, (2, 8, 8)),  # ragged prefill past the window
        case([3, 11], [1, 1], 5, (2, 16, 8)),  # decode: a ring not full yet, and full
        case([6], [7], 6, (3, 8, 8)),  # append more than the window
        case([0], [2], 8, (1, 8, 4)),  # window not full yet
        case([5, 0], [2, 0], 1, (2, 8, 8)),  # a window of one; a row that gets nothing
    ]


window_keys = Plugin(
    name="window_keys",
    eager=eager,
    shapes=shapes,
    body=BODY,
    cases=cases,
    close={torch.float32: Close(0)},  # values are moved, not computed
)
