"""The objective that codes of a weight are chosen for: outputs near the wanted ones.

Letters: N rows, K columns of a weight W; x the inputs in the quantized model, r those in the
unquantized one. Up to a constant, the squared error of the outputs of Q is tr (Q - T) G (Q - T)^T
with the Gram matrix G = sum x x^T and the target T = W (sum r x^T) G^-1. Where x is r, T is the
weight W itself, and this is GPTQ's objective. With the drift D = sum (r - x) x^T, the pull
(T - W) G is W D: where that is enough, nothing is solved for T.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

import torch
from torch import Tensor

from lmcast.calib.algorithms.candidate import fitted, rotated_columns, rounded
from lmcast.calib.algorithms.root import root
from lmcast.calib.statistics import InputStatistics
from lmcast.graphs.blocks.quantized import InputFormat

LEAST_DAMPING = 0.003  # of the mean of G's diagonal: for channels that are always 0
RUN = 256  # rows of a Gram matrix that are put in order at a time


@dataclass(frozen=True)
class Problem:
    """A weight N,K fp32 to be quantized, with the smoothing and rounding of its inputs.

    plain: the same without smoothing, where this is smoothed.
    """

    original: Tensor
    statistics: InputStatistics
    inputs: InputFormat
    smooth: Tensor | None = None
    plain: Optional["Problem"] = None

    def smoothed(self, smooth: Tensor | None) -> "Problem":
        """Return this problem with factors K of its inputs; None: itself."""
        if smooth is None:
            return self
        return Problem(self.original, self.statistics, self.inputs, smooth, self)

    @cached_property
    def weight(self) -> Tensor:
        """The weight after smoothing and rotation: N,K."""
        return fitted(self.original, self.inputs, self.smooth)

    @property
    def pull(self) -> Tensor | None:
        """(T - W) G: N,K; None where the inputs are those of the unquantized model."""
        if (lost := self._lost) is None:
            return None
        return rotated_columns(lost if self.smooth is None else lost * self.smooth, self.inputs)

    @cached_property
    def energy(self) -> Tensor:
        """The weight of an error in each column, K: the diagonal of G, not damped."""
        return self._sums.diagonal() + self._noise

    def rows(self, order: Tensor, part: slice) -> Tensor:
        """Return some rows n,K of G, damped, with both axes in this order (K).

        G is that of what the product sees. Its diagonal grows by the square root of channels per
        token. For 0.2 to 1.5 channels per token (four layers of SmolLM2, MXFP4), that was within
        3 % of the best of factors from 0.1 to 2.4 on text that was not seen; GPTQ's own 0.01 of the
        mean lost up to 1.7 times as much.
        """
        rows = order[part]
        found = self._sums[rows][:, order]
        found[:, part].diagonal().add_(self._damping[rows])
        return found

    def root(self, order: Tensor) -> Tensor:
        """Return the upper triangular R with R R^T = G, damped, both axes in this order (K)."""
        width, back = len(order), order.flip(0)

        def reverse() -> Tensor:
            found = torch.empty(width, width)
            for begin in range(0, width, RUN):
                part = slice(begin, min(begin + RUN, width))
                found[part] = self.rows(back, part)
            return found

        return root(reverse)

    @cached_property
    def _lost(self) -> Tensor | None:
        """W D, before smoothing and rotation: N,K."""
        if self.plain is not None:
            return self.plain._lost
        drift = self.statistics.drift
        return None if drift is None else self.original @ drift

    @cached_property
    def _sums(self) -> Tensor:
        """G without what rounding adds: K,K. Not to be written to."""
        sums = self.statistics.gram
        if self.smooth is not None:
            sums = (sums * self.smooth).mul_(self.smooth[:, None])
        if not self.inputs.rotation:
            return sums
        return rotated_columns(rotated_columns(sums, self.inputs).T, self.inputs).T

    @cached_property
    def _noise(self) -> Tensor:
        """What rounding adds to the diagonal, K: it is nearly independent of the inputs, and in
        each column of others."""
        rows = self.statistics.rows
        if self.inputs.format is None or not len(rows):
            return torch.zeros(len(self._sums))
        plain = rotated_columns(rows if self.smooth is None else rows * self.smooth, self.inputs)
        added = rounded(rows, self.inputs, self.smooth) - plain
        return added.square().mean(0) * self.statistics.count

    @cached_property
    def _damping(self) -> Tensor:
        """What is added to the diagonal, K."""
        mean = float(self.energy.mean())
        least = LEAST_DAMPING * mean if mean > 0 else 1.0
        part = math.sqrt(len(self.energy) / max(self.statistics.count, 1))
        return self._noise + part * self.energy + least
