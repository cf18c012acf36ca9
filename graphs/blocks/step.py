"""One call of a model: its new tokens, and what all layers share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Device = torch.device | str
SLOTS = 2  # the axis of positions in a state with a window
# What a call takes of pictures, by axes, in the order in which a graph does; F features that it
# uses, H their width, which is that of the embedding. Features are in the dtype of the model, all
# else int64. A family takes the first two, and of the others what it asks for.
FEATURES, ROWS = "image_features", "image_rows"
ENDS, ROPE_POSITIONS = "visible_ends", "rope_positions"
IMAGE_INPUTS: Mapping[str, tuple[int | str, ...]] = {
    FEATURES: ("F", "H"),
    ROWS: ("B", "T"),
    ENDS: ("B", "T"),
    ROPE_POSITIONS: ("B", "T", 3),
}
Images = Mapping[str, Tensor]  # by these names; empty for a call without pictures


@dataclass(frozen=True)
class State:
    """A tensor that a mixer carries from call to call.

    shape: "B" for the batch and "C" for the capacity in tokens, numbers for the rest; a state
        without "C" does not grow.
    dtype: None means that of the model.
    window: how many of the last tokens it is about, the size of its axis SLOTS; None for all.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype | None = None
    window: int | None = None

    @property
    def begins_anew(self) -> bool:
        """Whether a call for a row of length 0 reads none of what the state holds."""
        return "C" in self.shape or self.window is not None


def empty(
    states: Sequence[State], batch: int, capacity: int, dtype: torch.dtype, device: Device = "cpu"
) -> tuple[Tensor, ...]:
    """Return zeroed states for `batch` rows of up to `capacity` tokens; a window has no more."""
    axes: dict[int | str, int] = {"B": batch, "C": capacity}

    def sizes(state: State) -> list[int]:
        found = [axis if isinstance(axis, int) else axes[axis] for axis in state.shape]
        if state.window is not None:
            found[SLOTS] = min(state.window, capacity)
        return found

    return tuple(torch.zeros(sizes(s), dtype=s.dtype or dtype, device=device) for s in states)


class Mixer(nn.Module):
    """A token mixer: `forward(x, step, past) -> y, present`, with the states it declares."""

    states: tuple[State, ...]

    def limit(self, context: int) -> None:
        """Carry no more than rows of up to `context` tokens need, from now on."""

    def see(self, ends: "Handoff") -> None:
        """See up to the positions that `ends` hands over, from now on; raises ValueError where a
        mixer cannot: one that carries a state computes tokens in their order."""
        raise ValueError(f"{type(self).__name__} sees no token ahead")


class Table(nn.Module):
    """A function of positions at most, computed once per call for all layers that share it.

    `forward(step)` returns a tuple of fp32 tensors, B,T,... or of fixed sizes, one for each name in
    `outputs`. Layers that differ in the numbers of their tables alone are traced once.
    """

    outputs: tuple[str, ...]

    def see(self) -> None:
        """Take `rope_positions` of a step from now on, if it turns anything."""


class Handoff(nn.Module):
    """Tensors that one part of a model leaves for later parts of the same call.

    `tensors` gives their names and axes in order; besides those of State, "T" is the tokens of the
    call, "S" the positions that a window sees in it, and "K" those chosen for each token.
    """

    def __init__(self, *tensors: State):
        super().__init__()
        self.tensors = tensors


class Step:
    """What all parts of one call share.

    cache_lengths: B int64, cached tokens before the call.
    token_counts: B int64, valid tokens of this call.
    positions: B,T int64.
    rope_positions: B,T,3 int64 or None: where the rotation takes tokens to stand in time, row and
        column; None: all three are `positions`, by which caches and masks go in any case.
    shared: tensors of tables and handoffs, by the identity of either.
    """

    def __init__(
        self,
        cache_lengths: Tensor,
        token_counts: Tensor,
        tokens: int,
        shared: Mapping[int, tuple[Tensor, ...]] | None = None,
        rope_positions: Tensor | None = None,
    ):
        self.cache_lengths, self.token_counts = cache_lengths, token_counts
        self.positions = cache_lengths[:, None] + torch.arange(tokens, device=cache_lengths.device)
        self.rope_positions = rope_positions
        self._shared = dict(shared or {})

    def table(self, table: Table) -> tuple[Tensor, ...]:
        """Return the table's tensors, computing them on first use."""
        if id(table) not in self._shared:
            self._shared[id(table)] = table(self)
        return self._shared[id(table)]

    def hand(self, handoff: Handoff, tensors: Sequence[Tensor]) -> None:
        """Leave tensors for the later parts that hold `handoff`."""
        self._shared[id(handoff)] = tuple(tensors)

    def find(self, handoff: Handoff) -> Tensor | None:
        """Return the one tensor that was left, None where nothing was."""
        (tensor,) = self._shared.get(id(handoff), (None,))
        return tensor

    def holds(self, handoff: Handoff) -> bool:
        """Tell whether an earlier part left the tensors of a handoff."""
        return id(handoff) in self._shared

    def take(self, handoff: Handoff) -> tuple[Tensor, ...]:
        """Return the tensors that an earlier part left; raises KeyError if none did."""
        return self._shared[id(handoff)]


class Spreading(nn.Module):
    """An embedding that makes more of its tokens than B,T,H: features must stand among them before.

    `forward(input_ids, *images)`, with features and rows or without, calls `placed` itself.
    """


def placed(x: Tensor, features: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
    """Return embeddings B,T,H in which features stand for tokens; without features, as they are.

    features: F,H, at least one, of which H numbers are for the embedding where there are more.
    rows: B,T int64, the feature that stands at each token, -1 for none. The scale of an embedding
    is not the features'.
    """
    if features is None or rows is None:
        return x
    if features.shape[-1] > x.shape[-1]:
        features = features[:, : x.shape[-1]]
    taken = F.embedding(rows.clamp(min=0), features.to(x.dtype))  # B,T,H
    return torch.where((rows < 0)[..., None], x, taken)


def embedded(embed: nn.Module, input_ids: Tensor, images: Images) -> Tensor:
    """Return what the layers begin with: ids B,T int64, embedded, with features in their places."""
    given = (images[FEATURES], images[ROWS]) if images else ()
    if isinstance(embed, Spreading):
        out: Tensor = embed(input_ids, *given)
        return out
    return placed(embed(input_ids), *given)


class Deepstack(nn.Module):
    """`x + features[rows]` where pictures stand, x where there is text (arXiv 2406.04334).

    images: hands over features, whose numbers from `first` on are these, and rows; a call without
    pictures hands over nothing.
    """

    def __init__(self, images: Handoff, first: int):
        super().__init__()
        self.images, self.first = images, first

    def forward(self, x: Tensor, step: Step) -> Tensor:
        if not step.holds(self.images):
            return x
        features, rows = step.take(self.images)
        own = features[:, self.first : self.first + x.shape[-1]]
        added = F.embedding(rows.clamp(min=0), own.to(x.dtype))  # B,T,H
        return torch.where((rows < 0)[..., None], x, x + added)
