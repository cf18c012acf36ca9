"""What attention caches between calls, which is also what a token attends to.

Each kind declares the states of a layer, and attends: queries B,T,H,K, keys B,T,G,K and values
B,T,G,V of this call, and the states before it -> B,T,H,V and the states after it.

Letters: B batch, T tokens in this call, H query heads, G key heads, K head width, V value width, C
capacity of the cache, S positions that a window sees in this call.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.step import Handoff, State, Step
from lmcast.plugins.attention.cached_attention import cached_attention
from lmcast.plugins.attention.shared_attention import shared_attention
from lmcast.plugins.attention.window_attention import window_attention
from lmcast.plugins.attention.window_keys import window_keys

States = tuple[Tensor, ...]


class Scores(NamedTuple):
    """The last arguments of the attention operators, in order.

    sink H, factor B,T and softcap (0 for none) are as in plugins.attention.attend; key_scale and
    value_scale () are of an FP8 cache; visible_ends B,T is as in cached_attention.
    """

    sink: Tensor | None
    key_scale: Tensor | None
    value_scale: Tensor | None
    factor: Tensor | None
    visible_ends: Tensor | None
    scale: float
    softcap: float


@dataclass(frozen=True)
class All:
    """Cache of all positions: full causal attention."""

    axis: ClassVar[str] = "C"  # of the positions that are lent

    def states(self, p: Projections, dtype: torch.dtype | None = None) -> tuple[State, ...]:
        """Return the states of a layer, in the model's dtype unless another is given."""
        return _states(p, "C", None, dtype)

    def within(self, context: int) -> "All":
        return self

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, past: States, step: Step, scores: Scores
    ) -> tuple[Tensor, States]:
        lengths = step.cache_lengths, step.token_counts
        y, *present = cached_attention(q, k, v, *past, *lengths, *scores)
        return y, tuple(present)

    def lend(
        self, q: Tensor, k: Tensor, v: Tensor, past: States, step: Step, scores: Scores
    ) -> tuple[Tensor, States, States]:
        """Attend, and also return what later layers may share: keys B,G,C,K, values B,G,C,V, mask
        B,T,C."""
        y, (keys, values) = self.attend(q, k, v, past, step, scores)
        held = torch.arange(keys.shape[2], device=keys.device)
        mask = held <= step.positions[:, :, None]  # B,T,C
        return y, (keys, values), (keys, values, mask)


@dataclass(frozen=True)
class Ring:
    """Ring buffer of the last `window` positions: sliding-window attention, the token included."""

    window: int
    axis: ClassVar[str] = "S"

    def states(self, p: Projections, dtype: torch.dtype | None = None) -> tuple[State, ...]:
        return _states(p, self.window, self.window, dtype)

    def within(self, context: int) -> "All | Ring":
        """Return what keeps the same of rows of up to `context` tokens: a window of as many hides
        nothing, and its ring would be allocated whole from the first token on."""
        return self if self.window < context else All()

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, past: States, step: Step, scores: Scores
    ) -> tuple[Tensor, States]:
        return _attend_in_ring(q, k, v, past, step, scores, False)

    def lend(
        self, q: Tensor, k: Tensor, v: Tensor, past: States, step: Step, scores: Scores
    ) -> tuple[Tensor, States, States]:
        """Attend, and also return what later layers may share: keys B,G,S,K, values B,G,S,V, mask
        B,T,S."""
        lengths = step.cache_lengths, step.token_counts
        keys, values, mask, *present = window_keys(k, v, *past, *lengths)
        more = scores.sink, scores.factor, scores.scale, scores.softcap
        y = shared_attention(q, keys, values, mask, *more)
        return y, tuple(present), (keys, values, mask)


@dataclass(frozen=True)
class Chunks:
    """Ring buffer of the last `size` positions: attention within chunks (Llama 4), from the last
    multiple of `size` up to the token."""

    size: int

    def states(self, p: Projections, dtype: torch.dtype | None = None) -> tuple[State, ...]:
        return _states(p, self.size, self.size, dtype)

    def within(self, context: int) -> "All | Chunks":
        """As that of a ring: the first chunk is not left."""
        return self if self.size < context else All()

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, past: States, step: Step, scores: Scores
    ) -> tuple[Tensor, States]:
        return _attend_in_ring(q, k, v, past, step, scores, True)


class Lend(nn.Module):
    """As `keeps`; later layers of the call share its keys, values and mask through `loan`."""

    def __init__(self, keeps: All | Ring, p: Projections):
        super().__init__()
        self.keeps = keeps
        keys, values = (
            State(name, ("B", p.kv_heads, keeps.axis, width))
            for name, width in (("keys", p.head_dim), ("values", p.value_width))
        )
        self.loan = Handoff(keys, values, State("mask", ("B", "T", keeps.axis), torch.bool))

    def states(self, p: Projections, dtype: torch.dtype | None = None) -> tuple[State, ...]:
        """Raises ValueError for a dtype: layers that share keys and values read them as
        computed."""
        if dtype is not None:
            raise ValueError("a layer that lends keys and values holds them as they are computed")
        return self.keeps.states(p)

    def within(self, context: int) -> "Lend":
        """Return itself: those that it lends to know the axes of what is lent."""
        return self

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, past: States, step: Step, scores: Scores
    ) -> tuple[Tensor, States]:
        y, present, seen = self.keeps.lend(q, k, v, past, step, scores)
        step.hand(self.loan, seen)
        return y, present


Keeps = All | Ring | Chunks | Lend


def windowed(window: int | None) -> All | Ring:
    """Return the cache of a layer: a ring of `window` positions, or all where it is None or 0."""
    return Ring(window) if window else All()


def _states(
    p: Projections, room: int | str, window: int | None, dtype: torch.dtype | None
) -> tuple[State, ...]:
    return tuple(
        State(name, ("B", p.kv_heads, room, width), dtype, window)
        for name, width in (("key", p.head_dim), ("value", p.value_width))
    )


def _attend_in_ring(
    q: Tensor, k: Tensor, v: Tensor, past: States, step: Step, scores: Scores, chunked: bool
) -> tuple[Tensor, States]:
    lengths = step.cache_lengths, step.token_counts
    y, *present = window_attention(q, k, v, *past, *lengths, *scores, chunked)
    return y, tuple(present)
