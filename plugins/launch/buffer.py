"""A stand-in for a tensor, with what host code asks of one; sizes may be symbolic."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from lmcast.plugins.launch.sizes import Count


@dataclass(frozen=True, eq=False)
class Buffer:
    """A contiguous tensor without memory, or one with its last two axes swapped.

    It is itself alone: two of one shape and dtype are two places in memory.
    """

    dtype: torch.dtype
    shape: tuple[Count, ...]
    transposed_from: "Buffer | None" = None

    @property
    def memory(self) -> "Buffer":
        """The one that this is a view of, or itself."""
        return self.transposed_from or self

    @property
    def mT(self) -> "Buffer":
        """The view with the last two axes swapped; the other way round, what it was made from."""
        if self.transposed_from:
            return self.transposed_from
        *rest, rows, columns = self.shape
        return Buffer(self.dtype, (*rest, columns, rows), self)

    def numel(self) -> Count:
        return prod(self.shape)

    def is_contiguous(self) -> bool:
        return self.transposed_from is None

    def contiguous(self) -> "Buffer":
        """Return itself; TypeError for a view, which would have to be copied by a kernel."""
        if self.transposed_from:
            raise TypeError(f"a kernel would have to copy a transposed tensor of {self.shape}")
        return self

    def stride(self) -> tuple[Count, ...]:
        if self.transposed_from:
            *rest, rows, columns = self.transposed_from.stride()
            return (*rest, columns, rows)
        return tuple(prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    def new_empty(self, *shape: Any, dtype: torch.dtype | None = None) -> "Buffer":
        sizes = shape[0] if isinstance(shape[0], tuple) else shape
        return Buffer(dtype or self.dtype, sizes)
