"""Triangular roots of Gram matrices: how columns of a weight make good the errors of others.

Letters: K columns. With G = R R^T, the squared error of values that are off their target by d, K,N,
is |R^T d|^2. Row k of R^T d has the columns up to k alone: where those before it are off, column k
should be off by -sum_j R[j,k] / R[k,k] d[j]. That is GPTQ's update, which has the inverse of R, a
root of the inverse of G, instead: an inverse takes three times as long as the root.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def root(gram: Tensor, order: Tensor) -> Tensor:
    """Return the upper triangular R, K,K fp32, with R R^T = the gram, both axes in this order (K).

    In fp32, as far as rounding to it leaves a positive definite matrix; else in fp64. Damping sees
    to that: what Cholesky's method loses depends on the gram scaled to a diagonal of ones, and that
    has no eigenvalue below the damping.
    """
    back = order.flip(0)  # the lower root of the reversed matrix is the upper one of the matrix
    permuted = gram[back[:, None], back]
    lower, failed = torch.linalg.cholesky_ex(permuted)
    if failed:
        lower = torch.linalg.cholesky(permuted.double()).float()
    upper: Tensor = lower.flip(0, 1)
    return upper


@dataclass(frozen=True)
class Root:
    """A root as GPTQ uses it.

    times: K,K upper triangular; how far a column should move by how far one before it is off.
    scale: K; the root of what the square of a column's error costs.
    """

    times: Tensor
    scale: Tensor

    @classmethod
    def of(cls, upper: Tensor) -> "Root":
        """Take a root, which is overwritten."""
        scale = upper.diagonal().clone()
        upper /= scale
        return cls(upper, scale)

    def part(self, block: slice) -> "Root":
        """Return that of a block of columns, given those before it."""
        return Root(self.times[block, block], self.scale[block])
