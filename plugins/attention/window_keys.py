"""Keys and values of a sliding window, concatenated once for several layers, and the ring after it.
Letters: B batch, T new tokens, W window and slots of the ring, G key heads, K width of keys, V of
    values.
"""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.onnx_builder import Builder, Value
from lmcast.plugins.plugin import Close, Plugin


def see(
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    chunked: bool,
    visible_ends: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `eager`; chunked: no token sees a position before the last multiple of W up to its own.
    visible_ends: as in cached_attention."""
    tokens, window = key.shape[1], past_key.shape[2]
    start = cache_lengths[:, None]  # B,1
    slot = torch.arange(window, device=key.device)
    # The latest position before `end` that slot s can hold; negative: the slot is empty.
    held = start - 1 - (start - 1 - slot) % window  # B,W
    new = start + torch.arange(tokens, device=key.device)  # B,T
    at = torch.cat([held, new], 1)[:, None]  # B,1,W+T
    q_at = new[:, :, None]  # B,T,1
    oldest = q_at - q_at % window if chunked else q_at - window + 1
    last = q_at if visible_ends is None else torch.maximum(visible_ends[:, :, None], q_at)
    mask = (at >= 0) & (at <= last) & (at >= oldest)  # B,T,W+T

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
    """Concatenate the ring buffer and the new keys and values, with the mask of the window.

    key, value: B,T,G,K and B,T,G,V.
    past_key, past_value: the ring, B,G,W,K and B,G,W,V, as in window_attention.
    cache_lengths, token_counts: B int64, as there.

    Returns keys B,G,W+T,K, values B,G,W+T,V, the mask B,T,W+T (bool, true within the window), and
    the ring after the call. The new ring is gathered from the concatenation: a runtime that updates
    states in place has then read the old ring, which other layers may still need, before it writes.
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


def see_body(
    op: Builder,
    key: Value,
    value: Value,
    past_key: Value,
    past_value: Value,
    cache_lengths: Value,
    token_counts: Value,
    chunked: bool,
    visible_ends: Value | None = None,
    ordered: bool = False,
) -> tuple[Value, Value, Value, Value, Value]:
    """`see` in standard operators.

    ordered: slots hold the last positions in their order, from slot 0 on, and not each where the
    ring has it.
    """
    slots = op.size(past_key, 2)
    slot, window = op.range(slots), op.Squeeze(slots)
    start = op.Unsqueeze(cache_lengths, [1])  # B,1

    def first(end: Value) -> Value:
        """The position that slot 0 holds before `end`, if slots are in order."""
        return end - op.Min(end, window)

    def latest(end: Value) -> Value:
        """The latest position before `end` B,1 that every slot can hold, B,W; below 0: none."""
        if ordered:
            at = first(end) + slot
            return op.Where(at < end, at, -1)
        return (end - 1) - ((end - 1) - slot) % window

    new = start + op.range(op.size(key, 1))  # B,T
    at = op.Unsqueeze(op.Concat(latest(start), new, axis=1), [1])  # B,1,W+T
    q_at = op.Unsqueeze(new, [2])  # B,T,1
    reach = q_at % window if chunked else window - 1
    until = q_at if visible_ends is None else op.Max(op.Unsqueeze(visible_ends, [2]), q_at)
    mask = (at >= 0) & (at <= until) & (at >= q_at - reach)  # B,T,W+T
    last = latest(start + op.Unsqueeze(token_counts, [1]))
    before = op.Max(last - first(start), 0) if ordered else slot
    kept = op.Where(last >= start, last - start + window, before)  # B,W: where it lies in W+T
    index = op.Unsqueeze(kept, [1, 3])

    def extend(past: Value, fresh: Value) -> tuple[Value, Value]:
        whole = op.Concat(past, op.Transpose(fresh, perm=[0, 2, 1, 3]), axis=2)  # B,G,W+T,K
        return whole, op.GatherElements(whole, op.Expand(index, op.Shape(past)), axis=2)

    keys, ring_key = extend(past_key, key)
    values, ring_value = extend(past_value, value)
    return keys, values, mask, ring_key, ring_value


def body(
    op: Builder,
    key: Value,
    value: Value,
    past_key: Value,
    past_value: Value,
    cache_lengths: Value,
    token_counts: Value,
) -> tuple[Value, Value, Value, Value, Value]:
    return see_body(op, key, value, past_key, past_value, cache_lengths, token_counts, False)


def case(
    lengths: list[int], counts: list[int], window: int, sizes: tuple[int, ...]
) -> tuple[Any, ...]:
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


def cases() -> list[tuple[Any, ...]]:
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
    body=body,
    cases=cases,
    close={torch.float32: Close(0)},  # values are moved, not computed
)
