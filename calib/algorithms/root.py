"""Triangular roots of Gram matrices: how columns of a weight make good the errors of others.

Letters: K columns. With G = R R^T, the squared error of values that are off their target by d, K,N,
is |R^T d|^2. Row k of R^T d has the columns up to k alone: where those before it are off, column k
should be off by -sum_j R[j,k] / R[k,k] d[j]. That is GPTQ's update, which has the inverse of R, a
root of the inverse of G, instead: an inverse takes three times as long as the root.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PART = 1 << 22  # numbers of a matrix that are reversed at a time


def root(reverse: Callable[[], Tensor]) -> Tensor:
    """Return the upper triangular R, K,K fp32, with R R^T = G.

    reverse: makes G with both axes reversed, to be overwritten; again where fp32 has no root.

    In fp32, as far as rounding to it leaves a positive definite matrix; else in fp64. Damping sees
    to that: what Cholesky's method loses depends on the gram scaled to a diagonal of ones, and that
    has no eigenvalue below the damping.
    """
    # The lower root of the reversed matrix is, reversed, the upper one of the matrix. LAPACK has
    # columns after one another: it writes where it reads, of a symmetric matrix without a copy.
    lower = reverse().mT
    _, failed = torch.linalg.cholesky_ex(lower, out=(lower, torch.empty((), dtype=torch.int32)))
    if failed:
        lower = torch.linalg.cholesky(reverse().double()).float()
    flat = lower.mT.reshape(-1)
    for begin in range(0, len(flat) // 2, PART):
        end = min(begin + PART, len(flat) // 2)
        first, last = flat[begin:end], flat[len(flat) - end : len(flat) - begin]
        kept = first.flip(0)
        first.copy_(last.flip(0))
        last.copy_(kept)
    upper: Tensor = flat.view(lower.shape).mT
    return upper


@dataclass(frozen=True)
class Root:
    """A root as GPTQ uses it, or several: ... is an axis of them or none.

    times: ...,K,K upper triangular; how far a column should move by how far one before it is off.
    scale: ...,K; the root of what the square of a column's error costs.
    """

    times: Tensor
    scale: Tensor

    @classmethod
    def of(cls, upper: Tensor) -> "Root":
        """Take a root, which is overwritten."""
        scale = upper.diagonal(dim1=-2, dim2=-1).clone()
        upper /= scale[..., None, :]
        return cls(upper, scale)

    @classmethod
    def each(cls, grams: Tensor) -> "Root":
        """Take small Gram matrices b,K,K; return the root of each."""
        lower, failed = torch.linalg.cholesky_ex(grams.flip(1, 2))
        if failed.any():
            lower = torch.linalg.cholesky(grams.flip(1, 2).double()).float()
        return cls.of(lower.flip(1, 2))

    def part(self, block: slice) -> "Root":
        """Return that of a block of columns, given those before it."""
        return Root(self.times[block, block], self.scale[block])

    def __getitem__(self, one: int) -> "Root":
        return Root(self.times[one], self.scale[one])
