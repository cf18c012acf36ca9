"""The objective that codes of a weight are chosen for: outputs near the wanted ones.

Letters: N rows, K columns of a weight; x the inputs in the quantized model, r those in the
unquantized one. Up to a constant, the squared error of the outputs of Q is tr (Q - T) G (Q - T)^T
with the Gram matrix G = sum x x^T and the target T = W (sum r x^T) G^-1. Where x is r, T is the
weight W itself, and this is GPTQ's objective.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lmcast.calib.algorithms.candidate import fitted, rotated_columns, rounded
from lmcast.calib.algorithms.root import root
from lmcast.calib.statistics import InputStatistics
from lmcast.graphs.blocks.quantized import InputFormat

LEAST_DAMPING = 0.003  # of the mean of G's diagonal: for channels that are always 0


@dataclass(frozen=True)
class Problem:
    """A weight N,K fp32 to be quantized, with the smoothing and rounding of its inputs."""

    original: Tensor
    statistics: InputStatistics
    inputs: InputFormat
    smooth: Tensor | None

    @cached_property
    def weight(self) -> Tensor:
        """The weight after smoothing and rotation: N,K."""
        return fitted(self.original, self.inputs, self.smooth)

    @property
    def energy(self) -> Tensor:
        """The weight of an error in each column, K: the diagonal of the Gram matrix, not damped."""
        return self._damped[1]

    @property
    def gram(self) -> Tensor:
        """The gram K,K of what the product sees, damped: positive definite.

        Its diagonal grows by the square root of channels per token. For 0.2 to 1.5 channels per
        token (four layers of SmolLM2, MXFP4), that was within 3 % of the best of factors from 0.1
        to 2.4 on text that was not seen; GPTQ's own 0.01 of the mean lost up to 1.7 times as much.
        """
        return self._damped[0]

    @property
    def target(self) -> Tensor:
        """T: N,K."""
        order = torch.arange(len(self.energy))
        return self.solved(order)[1].T

    def solved(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for columns in this order (K), the upper triangular R with R R^T = G, K,K, and
        T^T, K,N."""
        upper, target = root(self.gram, order), self.weight.T[order]
        if self.statistics.drift is not None:
            added = (self.weight @ self._fit(self.statistics.drift)).T[order]
            half = torch.linalg.solve_triangular(upper, added, upper=True)
            target += torch.linalg.solve_triangular(upper.T, half, upper=False)
        return upper, target

    @cached_property
    def _damped(self) -> tuple[Tensor, Tensor]:
        gram, rows = self._fit(self.statistics.gram), self.statistics.rows
        diagonal = gram.diagonal()
        if self.inputs.format is not None and len(rows):
            # What rounding adds is nearly independent of the inputs, and in each column of others.
            plain = rotated_columns(
                rows if self.smooth is None else rows * self.smooth, self.inputs
            )
            added = rounded(rows, self.inputs, self.smooth) - plain
            diagonal.add_(added.square().mean(0) * self.statistics.count)
        energy = diagonal.clone()
        mean = float(energy.mean())
        least = LEAST_DAMPING * mean if mean > 0 else 1.0
        part = math.sqrt(len(energy) / max(self.statistics.count, 1))
        diagonal.add_(part * energy + least)
        return gram, energy

    def _fit(self, sums: Tensor) -> Tensor:
        """Return the Gram matrix K,K of the inputs after smoothing and rotation."""
        if self.smooth is not None:
            sums = sums * self.smooth * self.smooth[:, None]
        return rotated_columns(rotated_columns(sums, self.inputs).T, self.inputs).T.clone()
