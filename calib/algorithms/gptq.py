"""GPTQ (Frantar et al. 2022) with a search for scales, and coordinate descent on its result.

Letters: C scales tried, B columns of a block, N rows, K columns of the weight; values are
transposed: B,N.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from lmcast.calib.algorithms.columns import Columns
from lmcast.calib.algorithms.problem import Problem
from lmcast.calib.formats import WeightFormat
from lmcast.calib.formats.strips import element_code, loops
from lmcast.graphs.weights.quantized import Quantized

SWEEPS = 3
LEAST_ROWS = 1024  # of a thread, which takes a while to start


def gptq(problem: Problem, format: WeightFormat, sweeps: int = 0) -> Quantized:
    """Choose codes column by column, each error compensated by the columns that follow.

    Columns of most energy come first; where columns share scales, whole blocks of them. sweeps: of
    coordinate descent over all blocks afterwards.
    """
    columns = Columns.of(problem, format)
    upper = inverse_root(columns.gram)
    rest = columns.target.clone()  # what columns not chosen yet should now be
    errors = torch.zeros_like(rest)
    every = torch.ones(rest.shape[1], dtype=torch.bool)
    for begin, end, blocks in columns.runs():
        for block in blocks:
            scales, factors = columns.tried(block, rest[block])
            best, values, errors[block], _ = encode(
                rest[block], upper[block, block], factors, format
            )
            columns.choose(block, values, _picked(scales, best), every)
            rest[block.stop : end] -= upper[block, block.stop : end].T @ errors[block]
        rest[end:] -= upper[begin:end, end:].T @ errors[begin:end]
    for _ in range(sweeps):
        sweep(columns)
    return columns.packed()


def refined(problem: Problem, format: WeightFormat) -> Quantized:
    """GPTQ, then SWEEPS sweeps of coordinate descent."""
    return gptq(problem, format, SWEEPS)


def sweep(columns: Columns) -> None:
    """One sweep of coordinate descent: choose scales and codes of every block anew, given all
    others.

    Given the others, the error is a quadratic form of the block around its minimum, which is the
    block's target. A choice that lowers no error is not taken.
    """
    gram = columns.gram
    slope = gram @ (columns.values - columns.target)  # K,N
    for begin, end, blocks in columns.runs():
        start = columns.values[begin:end].clone()
        for block in blocks:
            own, old = gram[block, block], columns.values[block].clone()
            away = torch.linalg.solve(own, slope[block])  # from where the error would be least
            before = (away * slope[block]).sum(0)
            scales, factors = columns.tried(block, old - away)
            best, values, _, after = encode(old - away, inverse_root(own), factors, columns.format)
            columns.choose(block, values, _picked(scales, best), after < before)
            slope[begin:end] += gram[begin:end, block] @ (columns.values[block] - old)
        moved = columns.values[begin:end] - start
        slope[:begin] += gram[:begin, begin:end] @ moved
        slope[end:] += gram[end:, begin:end] @ moved


def encode(
    target: Tensor, upper: Tensor, factors: Tensor, format: WeightFormat
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round a block of columns B,N one after the other, with each of several factors.

    upper: B,B, root of the inverse Gram matrix.
    factors: C,1,N or 1,B,N; what is tried.

    Returns the index of the best for each row (N), the values B,N it gives, their errors B,N as
    later columns see them, and the sum of the errors' squares (N), which is the squared error of
    the outputs.
    """
    loops()
    from lmcast.calib.algorithms.kernels import choose

    element, rows = format.scheme.element, target.shape[1]
    best, total = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    values, errors = torch.empty(target.shape), torch.empty(target.shape)
    columns, root, tried = (x.contiguous().numpy() for x in (target, upper, factors))
    found = best.numpy(), values.numpy(), errors.numpy(), total.numpy()

    def work(first: int) -> None:
        last = min(first + run, rows)
        choose(first, last, columns, root, tried, element_code(element), *found)

    threads = torch.get_num_threads()
    run = max(LEAST_ROWS, -(-rows // threads))
    if run >= rows:
        work(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(0, rows, run)))
    return best, values, errors, total


def inverse_root(gram: Tensor) -> Tensor:
    """Return the upper triangular U with U^T U = gram^-1: K,K."""
    # With both axes reversed, the lower triangular root of the gram becomes an upper one, whose
    # inverse is U: one decomposition and no explicit inverse of the gram.
    root = torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.solve_triangular(root, identity, upper=True)
    return inverse


def _picked(scales: Tensor | None, best: Tensor) -> Tensor | None:
    """Return the scale of the best candidate for every row, of C,N."""
    if scales is None:
        return None
    return scales.float().gather(0, best[None])[0].to(scales.dtype)
