"""Embeddings and heads of which memory holds a few rows: of a vocabulary of 262,144 one is larger
than all layers of a small model.

Their matrices are taken from the modules for as long as a block runs, so that what fills a part
passes over them, and the modules are given rows.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.weights.values import rows_of
from lmcast.graphs import Definition
from lmcast.graphs.weights.sources import Source, tensors_of

NEAR = 64  # rows: what lies between two that are nearer is read with them
SLAB = 8192  # rows of a head at a time: 40 MiB in fp64 at a width of 640
OF_ROWS = ("weight", "bias")  # what a head has for each token, whatever kind it is


@dataclass(frozen=True)
class _Matrix:
    """A parameter that has been taken from its module, and where its rows are read."""

    owner: nn.Module
    leaf: str
    parameter: nn.Parameter
    source: Source
    checkpoint: Checkpoint
    dtype: torch.dtype

    def read(self, begin: int, end: int) -> Tensor:
        return rows_of(self.checkpoint, self.source, begin, end).to(self.dtype)

    def give(self, rows: Tensor) -> None:
        """Let the module have these rows for its parameter."""
        setattr(self.owner, self.leaf, nn.Parameter(rows, requires_grad=False))

    @property
    def stored(self) -> list[str]:
        """The tensors that it is made of."""
        return tensors_of(self.source)


@contextmanager
def looked_up(
    found: Definition, part: nn.Module, source: Checkpoint, dtype: torch.dtype
) -> Iterator[list[str]]:
    """Have the embeddings of a part read the rows of the ids that they are called with; yield the
    tensors that are read so."""
    embeddings = [module for module in part.modules() if isinstance(module, nn.Embedding)]
    with _taken(found, embeddings, source, dtype) as matrices, ExitStack() as hooks:
        for matrix in matrices:
            hooks.enter_context(_reading(matrix))
        yield [name for matrix in matrices for name in matrix.stored]


@contextmanager
def _reading(matrix: _Matrix) -> Iterator[None]:
    def look_up(module: nn.Module, given: Any) -> tuple[Tensor]:
        (ids,) = given
        wanted, places = torch.unique(ids, return_inverse=True)
        matrix.give(torch.cat([matrix.read(a, b)[own - a] for a, b, own in _runs(wanted)]))
        return (places,)

    hook = matrix.owner.register_forward_pre_hook(look_up)
    try:
        yield
    finally:
        hook.remove()


def _runs(wanted: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield runs of rows, begin and end, and which of them are wanted: N, rising."""
    far = (wanted.diff() > NEAR).nonzero()[:, 0] + 1
    for own in wanted.tensor_split(far):
        yield int(own[0]), int(own[-1]) + 1, own


@dataclass(frozen=True)
class Head:
    """A head that has some of its rows at a time. rows: how many there are in all."""

    rows: int
    _matrices: list[_Matrix] = field(default_factory=list)

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Yield begin and end of the rows that the head has until the next."""
        for begin in range(0, self.rows, SLAB):
            end = min(begin + SLAB, self.rows)
            for matrix in self._matrices:
                matrix.give(matrix.read(begin, end))
            yield begin, end


@contextmanager
def multiplied(
    found: Definition, head: nn.Module, source: Checkpoint, dtype: torch.dtype
) -> Iterator[Head]:
    """Have a head multiply with some of its rows at a time."""
    with _taken(found, head.modules(), source, dtype) as matrices:
        (rows,) = {len(matrix.parameter) for matrix in matrices}
        yield Head(rows, matrices)


@contextmanager
def _taken(
    found: Definition, modules: Iterable[nn.Module], source: Checkpoint, dtype: torch.dtype
) -> Iterator[list[_Matrix]]:
    """Take what has rows from modules, and give them back what they had."""
    names = {id(parameter): name for name, parameter in found.model.named_parameters()}
    matrices = [
        _Matrix(owner, leaf, held, found.binding.sources[names[id(held)]], source, dtype)
        for owner in modules
        for leaf, held in owner.named_parameters(recurse=False)
        if leaf in OF_ROWS
    ]
    for matrix in matrices:
        setattr(matrix.owner, matrix.leaf, None)
    try:
        yield matrices
    finally:
        for matrix in matrices:
            setattr(matrix.owner, matrix.leaf, matrix.parameter)
