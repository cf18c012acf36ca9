"""The eager reference of a tower: a forward pass with one part of it in memory at a time.

Letters: N pictures of one grid, M merged tokens, F features (N * M), H width of the text.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.graphs import TowerDefinition, fill
from lmcast.graphs.blocks.tower import TowerPart

Call = Mapping[str, np.ndarray]  # the inputs of a tower by name


def tower_pass(
    found: TowerDefinition, source: Checkpoint, calls: Sequence[Call], dtype: torch.dtype
) -> list[Tensor]:
    """Return the features F,H of each call in a dtype; every weight is read once."""
    tower = found.model.to("meta")
    given = [{name: _tensor(array) for name, array in call.items()} for call in calls]

    def inputs(part: nn.Module) -> list[list[Tensor]]:
        return [[call[name] for name in cast(TowerPart, part).takes] for call in given]

    @contextmanager
    def filled(part: nn.Module) -> Iterator[nn.Module]:
        fill(found, part, source.read, dtype)
        try:
            with torch.no_grad():
                yield part
        finally:
            part.to("meta")

    with filled(tower.embed) as embed:
        hidden = [embed(*own) for own in inputs(embed)]
    tables: list[Sequence[Tensor]] = [()] * len(calls)
    if tower.positions is not None:
        with filled(tower.positions) as positions:
            tables = [positions(*own) for own in inputs(positions)]
    kept: list[list[Tensor]] = [[] for _ in calls]
    for index, block in enumerate(tower.blocks):
        with filled(block):
            hidden = [block(x, *own) for x, own in zip(hidden, tables, strict=True)]
        if index in tower.keeps:
            kept = [[*before, x] for before, x in zip(kept, hidden, strict=True)]
    with filled(tower.merger) as merger:
        each = zip(hidden, kept, inputs(merger), strict=True)
        return [merger(x, *before, *own) for x, before, own in each]


def _tensor(array: np.ndarray) -> Tensor:
    """Return the numbers; PyTorch warns of those that cannot be written to, as views of fewer."""
    return torch.from_numpy(np.require(array, requirements="W"))
