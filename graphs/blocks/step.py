"""One call of a model: which tokens are new, and what all layers share about their positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Device = torch.device | str


@dataclass(frozen=True)
class State:
    """One tensor that a mixer carries from call to call.

    `shape` has "B" for the batch and "C" for the capacity in tokens, numbers for the rest; a state
    without "C" does not grow. `dtype` None means the dtype the model computes in.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype | None = None


def empty(
    states: Sequence[State], batch: int, capacity: int, dtype: torch.dtype, device: Device = "cpu"
) -> tuple[Tensor, ...]:
    """Return zeroed states for `batch` rows of up to `capacity` tokens."""
    axes: dict[int | str, int] = {"B": batch, "C": capacity}

    def size(axis: int | str) -> int:
        return axis if isinstance(axis, int) else axes[axis]

    return tuple(
        torch.zeros([size(n) for n in s.shape], dtype=s.dtype or dtype, device=device)
        for s in states
    )


class Mixer(nn.Module):
    """What mixes tokens: `forward(x, step, past) -> y, present`, with the states it declares."""

    states: tuple[State, ...]


class Table(nn.Module):
    """A function of positions alone, computed once per call for all layers that share it.

    `forward(step)` returns a tuple of fp32 tensors B,T,..., one for each name in `outputs`.
    """

    outputs: tuple[str, ...]


class Step:
    """What every layer of one call may read.

    cache_lengths B int64: tokens held before the call. token_counts B int64: valid tokens of this
    call. positions B,T int64.
    """

    def __init__(
        self,
        cache_lengths: Tensor,
        token_counts: Tensor,
        tokens: int,
        tables: Mapping[int, tuple[Tensor, ...]] | None = None,
    ):
        self.cache_lengths, self.token_counts = cache_lengths, token_counts
        self.positions = cache_lengths[:, None] + torch.arange(tokens, device=cache_lengths.device)
        self._tables = dict(tables or {})

    def table(self, table: Table) -> tuple[Tensor, ...]:
        """Return the table's tensors, computing them on first use."""
        if id(table) not in self._tables:
            self._tables[id(table)] = table(self)
        return self._tables[id(table)]
