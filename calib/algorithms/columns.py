"""The state of a weight while its codes are chosen column by column.

Letters: C scales tried, B columns of a block, N rows, K columns of the weight. Values are
transposed, K,N, in the order in which columns are chosen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcast.calib.algorithms.problem import Problem
from lmcast.calib.algorithms.root import Root
from lmcast.calib.algorithms.scales import searched, spread, tried
from lmcast.calib.formats import WeightFormat
from lmcast.calib.formats.strips import picked
from lmcast.graphs.weights.quantized import Quantized

LAZY = 128  # columns after which their errors are propagated to the rest of the weight
WIDE = 32  # columns of a block where scales are not found block by block


@dataclass(frozen=True)
class Columns:
    """Columns in the order in which their codes are chosen.

    order: K; the column of the weight at each place.
    weight: K,N fp32; the values that are to be rounded.
    values: K,N fp32; before they are chosen, what columns should be where none before them is off
        the weight.
    root: that of the Gram matrix in this order.
    pull: K,N or None; what draws values away from the weight (problem.py).
    blocks: ranges of places, in order.
    scales: of the whole weight, as stored; where blocks have their own, they are written as they
        are chosen.
    factors: K,N; what values are multiplied with where the scales are fixed.
    """

    format: WeightFormat
    order: Tensor
    blocks: tuple[slice, ...]
    root: Root
    weight: Tensor
    pull: Tensor | None
    values: Tensor
    scales: Tensor
    shared: Tensor | None
    factors: Tensor | None

    @classmethod
    def of(cls, problem: Problem, format: WeightFormat) -> "Columns":
        energy, own = problem.energy, own_scales(format)
        order, blocks = _order(energy, format.scheme.block[1] if own else 0)
        root, weight = Root.of(problem.root(order)), problem.weight.T[order]
        pull, values, target = problem.pull, weight.clone(), problem.weight
        if pull is not None:
            pull = pull.T[order]
            moved = torch.linalg.solve_triangular(
                root.times, pull, upper=True, unitriangular=True
            ).div_(root.scale.square()[:, None])
            values += moved
            # Scales of blocks are chosen with their columns: they need no target.
            if not own or format.scheme.shared:
                moved = torch.linalg.solve_triangular(
                    root.times.T, moved, upper=False, unitriangular=True
                )
                target = torch.empty_like(moved)
                target[order] = moved + weight
                target = target.T.contiguous()
        scales, shared = format.scales(target) if own else searched(target, format, energy)
        factors = None if own else spread(target, format, scales, shared).T[order].contiguous()
        return cls(format, order, blocks, root, weight, pull, values, scales, shared, factors)

    def runs(self) -> Iterator[tuple[int, int, list[slice]]]:
        """Yield where runs of about LAZY columns begin and end, and their blocks."""
        run: list[slice] = []
        for block in self.blocks:
            run.append(block)
            if block.stop - run[0].start >= LAZY or block is self.blocks[-1]:
                yield run[0].start, block.stop, run
                run = []

    def tried(self, block: slice, wanted: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return candidate scales C,N for wanted values B,N, and the factors C,1,N or 1,B,N they
        give.

        Scales are None where they are fixed.
        """
        if self.factors is not None:
            return None, self.factors[None, block]
        return tried(wanted, self.format, self.shared)

    def choose(
        self, block: slice, values: Tensor, tried: Tensor | None, best: Tensor, rows: Tensor
    ) -> None:
        """Set values B,N of a block, in those rows (N bool) that are to change, and its scales: of
        those tried, C,N, the best ones (N)."""
        self.values[block] = torch.where(rows, values, self.values[block])
        if tried is not None:
            place = int(self.order[block.start]) // self.format.scheme.block[1]
            old, scales = self.scales[:, place], picked(tried, best)
            self.scales[:, place] = torch.where(rows, scales.float(), old.float()).to(old.dtype)

    def packed(self) -> Quantized:
        """Return the chosen values in the stored form."""
        weight = torch.empty_like(self.values)
        weight[self.order] = self.values
        return self.format.pack(weight.T.contiguous(), self.scales, self.shared)


def own_scales(format: WeightFormat) -> bool:
    """Whether a row has scales for runs of columns that no other row shares."""
    high, wide = format.scheme.block
    return high == 1 and wide > 0


def _order(energy: Tensor, wide: int) -> tuple[Tensor, tuple[slice, ...]]:
    """Return the columns by decreasing energy K, and their blocks.

    wide: how many neighbours share scales, and stay together; 0: none.
    """
    if not wide:
        order = energy.argsort(descending=True, stable=True)
        ends = [*range(WIDE, len(order), WIDE), len(order)]
    else:
        parts = [
            part + begin * wide
            for begin, part in enumerate(
                run.argsort(descending=True, stable=True) for run in energy.split(wide)
            )
        ]
        total = torch.stack([run.mean() for run in energy.split(wide)])
        parts = [parts[i] for i in total.argsort(descending=True, stable=True).tolist()]
        order = torch.cat(parts)
        ends = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return order, tuple(slice(a, b) for a, b in zip(starts, ends, strict=True))
