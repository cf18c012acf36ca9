"""What the codes of a weight are chosen for: outputs that stay near the wanted ones.

Letters: N rows, K columns of a weight; n rows of inputs x, of which r are the references.
The squared error of the outputs of Q is, but for a constant, tr (Q - T) G (Q - T)^T with the gram
G = sum x x^T and the target T = W (sum r x^T) G^-1: the weight W itself where x are the references.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lmcast.calib.algorithms.candidate import fitted, rounded, turned
from lmcast.calib.statistics import InputStatistics
from lmcast.graphs.blocks.quantized import InputFormat

DAMPING = 0.01  # of the mean of G's diagonal (GPTQ, Frantar et al. 2022, section 3)
MOST_DAMPING = 1e3


@dataclass(frozen=True)
class Problem:
    """weight, target N,K; gram K,K positive definite; all fp32, in the layer's own terms."""

    weight: Tensor
    target: Tensor
    gram: Tensor


def pose(
    weight: Tensor, statistics: InputStatistics, inputs: InputFormat, smooth: Tensor | None
) -> Problem:
    """Return the problem of a weight N,K whose layer sees inputs so rounded."""
    held = fitted(weight, inputs, smooth)
    gram = _both(statistics.gram, inputs, smooth)
    if inputs.format is not None and len(statistics.rows):
        # Rounding errors are nearly independent of the inputs and of one another.
        rows = statistics.rows
        plain = turned(rows if smooth is None else rows * smooth, inputs)
        error = rounded(rows, inputs, smooth) - plain
        gram.diagonal().add_(error.square().mean(0) * statistics.count)
    dead = gram.diagonal() <= 0
    gram.diagonal()[dead] = gram.diagonal().mean() if not dead.all() else 1.0
    gram.diagonal().add_(DAMPING * gram.diagonal().mean())
    if statistics.drift is None:
        return Problem(held, held, gram)
    drift = _both(statistics.drift, inputs, smooth)
    shift = torch.linalg.solve(gram, drift.T).T
    return Problem(held, held + held @ shift, gram)


def _both(matrix: Tensor, inputs: InputFormat, smooth: Tensor | None) -> Tensor:
    """Return sums of products K,K of inputs as those of inputs that are smoothed and turned."""
    if smooth is not None:
        matrix = matrix * smooth * smooth[:, None]
    return turned(turned(matrix, inputs).T, inputs).T.clone()
