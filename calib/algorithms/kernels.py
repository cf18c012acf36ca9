"""The compiled inner loop of GPTQ over a block of columns.

Letters: C scales tried, B columns of a block, N rows of the weight, n rows of a strip; values are
transposed: B,N. What the loops take:

- wanted: B,N; what columns should be, as those before the block are off their targets.
- target: B,N; what columns are off by is counted from here.
- times: B,B upper triangular; how far a column moves, by how far one before it is off. Transposed
  in the loops within `choose`.
- scale: B; root of what the square of a column's error costs.
- factors: what values are multiplied with, of each column or of all; C,B,N or C,1,N, in a strip
  B,n or 1,n.
- total: written, N or n; the squared error of the outputs.
- off: room for B,n. values: written, B,N.

For vector instructions, loops over rows have unsigned indices (signed ones may count from the end
of an array), and what they write to is whole (parts have strides that a compiler does not know).
"""

import numpy as np

from lmcast.calib.formats.kernels import compiled, near_values

STRIP = 256  # rows at a time: a block of them fits in the innermost cache


@compiled
def _eliminate(rest: np.ndarray, times: np.ndarray, off: np.ndarray, j: int) -> None:
    """Subtract from rest n the columns before j of off B,n, by row j of times B,B."""
    row, i = np.uintp(j), 0
    while i + 4 <= j:  # four at once: rest is read and written less often
        p, q, s, t = np.uintp(i), np.uintp(i + 1), np.uintp(i + 2), np.uintp(i + 3)
        a, b, c, d = times[row, p], times[row, q], times[row, s], times[row, t]
        for r in range(len(rest)):
            u = np.uintp(r)
            rest[r] -= (a * off[p, u] + b * off[q, u]) + (c * off[s, u] + d * off[t, u])
        i += 4
    while i < j:
        p = np.uintp(i)
        a = times[row, p]
        for r in range(len(rest)):
            rest[r] -= a * off[p, np.uintp(r)]
        i += 1


@compiled
def _round(
    begin: int,
    wanted: np.ndarray,
    target: np.ndarray,
    times: np.ndarray,
    scale: np.ndarray,
    factors: np.ndarray,
    element: int,
    total: np.ndarray,
    off: np.ndarray,
    values: np.ndarray,
) -> None:
    """Round the columns of a strip, which begins with row `begin`, one after the other."""
    rest, near = np.empty(len(total), np.float32), np.empty(len(total), np.float32)
    first = np.uintp(begin)
    total[:] = 0
    for j in range(len(wanted)):
        row, of = np.uintp(j), np.uintp(j if len(factors) > 1 else 0)
        for r in range(len(rest)):
            rest[r] = wanted[row, first + np.uintp(r)]
        _eliminate(rest, times, off, j)
        for r in range(len(rest)):
            near[r] = rest[r] / factors[of, np.uintp(r)]
        near_values(element, near)  # a tie may go either way: what is rounded has an error itself
        one = scale[j]
        for r in range(len(rest)):
            u = np.uintp(r)
            value = near[r] * factors[of, u]
            error = (rest[r] - value) * one
            total[r] += error * error
            off[row, u] = value - target[row, first + u]
            values[row, first + u] = value


@compiled
def choose(
    rows: tuple[int, int],
    wanted: np.ndarray,
    target: np.ndarray,
    times: np.ndarray,
    scale: np.ndarray,
    factors: np.ndarray,
    element: int,
    best: np.ndarray,
    values: np.ndarray,
    total: np.ndarray,
) -> None:
    """Round the columns of a block one after the other, with each of several factors.

    rows: the first of the weight to do, and the end of them.
    best: written, N int64: the index of the best factors of each row.
    """
    turned, (begin, end) = times.T.copy(), rows
    for start in range(begin, end, STRIP):
        size, first = min(STRIP, end - start), np.uintp(start)
        off = np.empty((len(wanted), size), np.float32)
        of = np.empty((factors.shape[1], size), np.float32)
        cost, least = np.empty(size, np.float32), np.full(size, np.inf, np.float32)
        which = np.zeros(size, np.int64)
        for tried in range(len(factors)):
            for j in range(len(of)):
                for r in range(size):
                    u = np.uintp(r)
                    of[np.uintp(j), u] = factors[np.uintp(tried), np.uintp(j), first + u]
            _round(start, wanted, target, turned, scale, of, element, cost, off, values)
            for r in range(size):
                better = cost[r] < least[r]
                least[r] = cost[r] if better else least[r]
                which[r] = tried if better else which[r]
        for j in range(len(of)):
            for r in range(size):
                of[j, r] = factors[which[r], j, start + r]
        # Once more with the best of each row: that is less than to keep its values meanwhile.
        _round(start, wanted, target, turned, scale, of, element, cost, off, values)
        for r in range(size):
            best[start + r], total[start + r] = which[r], cost[r]
