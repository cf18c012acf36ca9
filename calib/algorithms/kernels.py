"""The compiled inner loop of GPTQ over a block of columns.

Letters: C scales tried, B columns of a block, N rows of the weight; values are transposed: B,N.
"""

import numpy as np

from lmcast.calib.formats.kernels import compiled, rounded

STRIP = 256  # rows at a time: a block of them fits in the innermost cache


@compiled
def choose(
    first: int,
    last: int,
    target: np.ndarray,
    upper: np.ndarray,
    factors: np.ndarray,
    element: int,
    best: np.ndarray,
    values: np.ndarray,
    errors: np.ndarray,
    total: np.ndarray,
) -> None:
    """Round the columns of a block one after the other, with each of several factors.

    first, last: the rows of the weight to do.
    target: B,N, the wanted values.
    upper: B,B, root of the inverse Gram matrix.
    factors: C,1,N or C,B,N.
    best: written, N int64: the index of the best factors of each row.
    values, errors: written, B,N: the values they give, and their errors as later columns see them.
    total: written, N: the sum of the errors' squares, the squared error of the outputs.
    """
    width = len(target)
    own = factors.shape[1] > 1
    for begin in range(first, last, STRIP):
        end = min(begin + STRIP, last)
        rest, near = np.empty((2, width, end - begin), np.float32)
        sums = np.empty(end - begin, np.float32)
        for tried in range(len(factors)):
            rest[:] = target[:, begin:end]
            sums[:] = 0
            for j in range(width):
                of = factors[tried, j if own else 0, begin:end]
                rounded(rest[j], of, element, near[j])
                one = np.float32(1) / upper[j, j]
                for r in range(end - begin):
                    error = (rest[j, r] - near[j, r]) * one
                    rest[j, r] = error
                    sums[r] += error * error
                for k in range(j + 1, width):
                    times = upper[j, k]
                    for r in range(end - begin):
                        rest[k, r] -= times * rest[j, r]
            for r in range(end - begin):
                if tried == 0 or sums[r] < total[begin + r]:
                    total[begin + r], best[begin + r] = sums[r], tried
                    for j in range(width):
                        values[j, begin + r] = near[j, r]
                        errors[j, begin + r] = rest[j, r]
