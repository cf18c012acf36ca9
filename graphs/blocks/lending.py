"""What a layer leaves of its keys and values for later layers.

Letters: B batch, T tokens in this call, G key heads, K head width, C capacity of the cache, S
positions that a window sees in this call.
"""

import torch
from torch import Tensor

from lmcast.graphs.blocks.step import Handoff, State, Step
from lmcast.plugins.attention.cached_attention import cached_attention
from lmcast.plugins.attention.shared_attention import shared_attention
from lmcast.plugins.attention.window_keys import window_keys


def loan(kv_heads: int, head_dim: int, window: int | None) -> Handoff:
    """Return the handoff from the layer that owns keys and values to those that read them.

    keys and values B,G,S,K and mask B,T,S of a windowed layer, of any other with C in place of S.
    """
    seen = "S" if window else "C"
    shape = ("B", kv_heads, seen, head_dim)
    mask = State("mask", ("B", "T", seen), torch.bool)
    return Handoff(State("keys", shape), State("values", shape), mask)


def lend(
    loan: Handoff,
    step: Step,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: tuple[Tensor, ...],
    window: int | None,
    scale: float,
    softcap: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Attend as cached_attention and window_attention do, and leave what was seen in `loan`."""
    lengths = step.cache_lengths, step.token_counts
    if window:
        keys, values, mask, *present = window_keys(k, v, *past, *lengths)
        y = shared_attention(q, keys, values, mask, None, None, scale, softcap)
    else:
        plain = None, None, None, None  # no sinks, no scales of a cache in FP8, no factors
        y, keys, values = cached_attention(q, k, v, *past, *lengths, *plain, scale, softcap)
        held = torch.arange(keys.shape[2], device=keys.device)
        mask, present = held <= step.positions[:, :, None], [keys, values]  # B,T,C
    step.hand(loan, (keys, values, mask))
    return y, tuple(present)
