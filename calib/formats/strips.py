"""Work on a weight in strips of rows, in as many threads as torch uses.

Letters as in weight.py. Beyond its result, a call allocates some strips only.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmcast.graphs.weights.elements import E2M1, E4M3, INT4, INT8, Element
from lmcast.graphs.weights.quantized import Quantized, Scheme
from lmcast.plugins.errors import InputError

# Of a strip: what it needs besides fits in caches.
VALUES = 1 << 20
INFINITE = 0x7F800000  # the bits of Inf in fp32; those of NaN are above
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Rule = Callable[[Tensor, Tensor], Tensor]
Factors = Callable[[int, slice], Any]  # of blocks of a matrix, by rows of blocks: fp32, numpy


class FormatError(InputError):
    """A weight, or scales of it, that a format cannot hold."""


def loops() -> ModuleType:
    """Return the compiled loops; raises FormatError where their compiler is not installed."""
    try:
        from lmcast.calib.formats import kernels
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise FormatError("packing weights needs numba: pip install 'lmcast[calib]'") from None
    return kernels


def check(name: str, weight: Tensor) -> None:
    """Raise FormatError for a tensor that is no weight in memory."""
    if weight.dtype not in DTYPES or weight.device.type != "cpu":
        raise FormatError(
            f"{name}: a weight is {weight.dtype} on {weight.device.type}; accepted:"
            f" {', '.join(map(str, DTYPES))} on cpu"
        )
    if weight.dim() < 2 or not weight.numel():
        raise FormatError(f"{name}: a weight has shape {list(weight.shape)}; accepted: ...,N,K")


def largest(weight: Tensor) -> Tensor:
    """Return the largest magnitude of every matrix: ...,1,1 fp32; raises FormatError for Inf and
    NaN."""
    matrices, kernels = stacked(weight), loops()
    out = torch.empty(*matrices.shape[:2], 1, dtype=torch.int32)

    def work(matrix: int, begin: int, end: int) -> None:
        bits, shift = _bits(matrices[matrix, begin:end])
        kernels.largest(bits, shift, 0, out[matrix, begin:end].numpy().view("uint32"))

    each_strip(matrices, work)
    found = out.amax(1, keepdim=True)
    _require_finite(int(found.max()))
    return found.view(torch.float32).reshape(*weight.shape[:-2], 1, 1)


def scales(weight: Tensor, scheme: Scheme, rule: Rule, shared: Tensor) -> Tensor:
    """Return the scales of blocks that are not whole matrices; shared: () or one a matrix."""
    matrices, (high, width), kernels = stacked(weight), scheme.block, loops()
    out = torch.empty(scheme.scales_shape(tuple(weight.shape)), dtype=scheme.scale)
    places, by = stacked(out), shared.expand(*weight.shape[:-2], 1, 1).reshape(-1, 1, 1)

    def work(matrix: int, begin: int, end: int) -> None:
        bits, shift = _bits(matrices[matrix, begin:end])
        rows = torch.empty(end - begin, places.shape[-1], dtype=torch.int32)
        kernels.largest(bits, shift, width, rows.numpy().view("uint32"))
        found = _by_rows(rows, high, torch.amax)
        _require_finite(int(found.numpy().max()))
        blocks = slice(begin // high, -(-end // high))
        of = rule(found.view(torch.float32), by[matrix])
        bytes_of(places[matrix, blocks])[...] = bytes_of(of)

    each_strip(matrices, work, high)
    return out


def encode(weight: Tensor, factors: Factors, scheme: Scheme) -> Tensor:
    """Return codes, uint8; factors: of the blocks of some rows."""
    matrices, (high, width) = stacked(weight), scheme.block
    out = torch.empty(scheme.codes_shape(tuple(weight.shape)), dtype=torch.uint8)
    places, kernels, element = stacked(out), loops(), element_code(scheme.element)

    def work(matrix: int, begin: int, end: int) -> None:
        bits, shift = _bits(matrices[matrix, begin:end])
        of, rows = _of_rows(factors, high, matrix, begin, end), places[matrix, begin:end].numpy()
        _require_finite(int(kernels.encode(bits, shift, of, high, width, element, rows)))

    each_strip(matrices, work, high)
    return out


def errors(weight: Tensor, factors: Factors, importance: Tensor, scheme: Scheme) -> Tensor:
    """Return the squared errors of every block, fp64; factors: of the blocks of some rows."""
    matrices, (high, width) = stacked(weight), scheme.block
    out = torch.zeros(scheme.scales_shape(tuple(weight.shape)), dtype=torch.float64)
    places, kernels, element = stacked(out), loops(), element_code(scheme.element)
    times = importance.detach().double().expand(*weight.shape[:-2], -1).contiguous()
    times = times.reshape(len(matrices), -1)
    whole = torch.zeros(*matrices.shape[:2], dtype=torch.float64)

    def work(matrix: int, begin: int, end: int) -> None:
        bits, shift = _bits(matrices[matrix, begin:end])
        of = _of_rows(factors, high, matrix, begin, end)
        rows = places[matrix, begin:end]
        if high != 1:
            rows = torch.empty(end - begin, places.shape[-1], dtype=torch.float64)
        given = (bits, shift, of, high, width, element)
        kernels.errors(*given, times[matrix].numpy(), rows.numpy())
        if high > 1:
            blocks = slice(begin // high, -(-end // high))
            places[matrix, blocks] = _by_rows(rows, high, torch.sum)
        elif not high:  # of all strips: added below, in the same order whatever the threads
            whole[matrix, begin:end] = rows[:, 0]

    each_strip(matrices, work, high)
    return out if high else whole.sum(1).reshape(out.shape)


def search(rows: Tensor, factors: Any, importance: Tensor, scheme: Scheme) -> Tensor:
    """Return which factors give the least squared error of each block, the first of equals.

    rows: R,K; blocks are of one row. factors: C,R,B fp32, numpy. Returns R,B int64.
    """
    (bits, shift), kernels = _bits(rows), loops()
    best = torch.empty(factors.shape[1:], dtype=torch.int64)
    element, times = element_code(scheme.element), importance.detach().double().contiguous()
    kernels.search(bits, shift, factors, scheme.block[1], element, times.numpy(), best.numpy())
    return best


def picked(tried: Tensor, best: Tensor) -> Tensor:
    """Return the scale of each place, of scales C,... and which is the best of each place, ...."""
    if tried.dtype.itemsize > 1:
        return tried.gather(0, best[None])[0]
    return tried.view(torch.uint8).gather(0, best[None])[0].view(tried.dtype)  # as torch can


def nearest_e4m3(values: Tensor) -> Tensor:
    """Return the nearest codes of E4M3, uint8, of finite fp32 numbers."""
    bits, shift = _bits(values.reshape(-1, values.shape[-1] if values.dim() else 1))
    out, one = torch.empty(values.shape, dtype=torch.uint8), torch.ones(1, 1).numpy()
    kernels = loops()
    kernels.encode(bits, shift, one, 0, 0, kernels.E4M3, out.reshape(len(bits), -1).numpy())
    return out


def rounded(values: Tensor, factors: Tensor, element: Element) -> Tensor:
    """Return the nearest values, code times factor, fp32, in the shape of the values."""
    flat = values.detach().float().contiguous().flatten()
    times = factors.detach().float().expand(values.shape).contiguous().flatten()
    out, kernels, code = torch.empty_like(flat), loops(), element_code(element)

    def work(matrix: int, begin: int, end: int) -> None:
        part = slice(begin, end)
        args = (flat[part].numpy(), times[part].numpy(), code, out[part].numpy())
        _require_finite(int(kernels.rounded(*args)))

    if len(flat):
        each_strip(flat[None, :, None], work)
    return out.reshape(values.shape)


def missed(weight: Tensor, packed: Quantized) -> float:
    """Return the summed squared error of a packed weight."""
    matrices, codes, scales = (stacked(of) for of in (weight, packed.codes, packed.scales))
    shared = packed.shared
    if shared is not None:
        shared = shared.expand(*weight.shape[:-2], 1, 1).reshape(-1, 1, 1)
    zeros = None if packed.zeros is None else stacked(packed.zeros)
    alone = packed.scheme.block[0] == 1
    total = 0.0
    for matrix, begin, end in _places(matrices):
        rows = slice(begin, end)
        blocks = rows if alone else slice(None)
        part = replace(
            packed,
            codes=codes[matrix, rows],
            scales=scales[matrix, blocks],
            shared=None if shared is None else shared[matrix],
            zeros=None if zeros is None else zeros[matrix, blocks],
            first=0 if alone else packed.first + begin,
        )
        lost = part.dequantize().sub_(matrices[matrix, rows]).double()
        total += float(lost.square_().sum())
    return total


def regroup(blocks: Iterable[Tensor], high: int) -> Iterator[Tensor]:
    """Yield the same rows in runs of multiples of `high`, but for the last."""
    rest: Tensor | None = None
    for block in blocks:
        rows = block if rest is None else torch.cat([rest, block])
        whole = len(rows) // high * high
        if whole:
            yield rows[:whole]
        rest = rows[whole:] if whole < len(rows) else None
    if rest is not None:
        yield rest


def each_strip(
    matrices: Tensor, work: Callable[[int, int, int], None], high: int = 1, values: int = VALUES
) -> None:
    """Call work(matrix, first row, end) for all rows of M,N,K, in runs of multiples of `high` rows
    that have about `values` values.

    Our threads run beside each other only where torch starts none: work is in compiled loops, in
    numpy, or on tensors of less than 2^15 numbers.
    """
    places = list(_places(matrices, high or 1, values))
    threads = torch.get_num_threads()
    if threads == 1 or len(places) == 1:
        for place in places:
            work(*place)
        return
    with ThreadPoolExecutor(min(threads, len(places))) as pool:
        for _ in pool.map(lambda place: work(*place), places):
            pass


def _places(
    matrices: Tensor, high: int = 1, values: int = VALUES
) -> Iterator[tuple[int, int, int]]:
    """Yield matrix, first row and end of every strip of M,N,K."""
    count, rows, columns = matrices.shape
    step = max(1, values // columns // high) * high
    for matrix in range(count):
        for begin in range(0, rows, step):
            yield matrix, begin, min(begin + step, rows)


def _of_rows(factors: Factors, high: int, matrix: int, begin: int, end: int) -> object:
    """Return the factors of the blocks of rows, which begin with a block."""
    return factors(matrix, slice(begin // high, -(-end // high)) if high else slice(None))


def _bits(rows: Tensor) -> tuple[Any, int]:
    """Return rows as integers in numpy, and how far left they are in the bits of fp32."""
    rows = rows.detach()
    if rows.dtype == torch.bfloat16:
        return rows.contiguous().view(torch.int16).numpy().view("uint16"), 16
    return numbers(rows).view("uint32"), 0


def numbers(of: Tensor) -> Any:
    """Return a tensor as fp32 in numpy, contiguous."""
    if of.dtype.itemsize == 1:
        table = torch.arange(256, dtype=torch.uint8).view(of.dtype).float().numpy()
        return table[bytes_of(of)]
    return np.ascontiguousarray(of.numpy(), dtype=np.float32)


def bytes_of(of: Tensor) -> Any:
    """Return the bytes of a tensor, in numpy."""
    return of.view(torch.uint8).numpy()


def stacked(of: Tensor) -> Tensor:
    """Return M,N,K."""
    return of.reshape(-1, *of.shape[-2:])


def _by_rows(rows: Tensor, high: int, reduce: Callable[..., Tensor]) -> Tensor:
    """Reduce N,B to one entry for each `high` rows."""
    if high == 1:
        return rows
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % high))  # zeros change neither
    return reduce(padded.reshape(-1, high, rows.shape[1]), 1)


def element_code(element: Element) -> int:
    """Return the number by which the loops know an element."""
    kernels = loops()
    numbers: dict[Element, int]
    numbers = {E2M1: kernels.E2M1, E4M3: kernels.E4M3, INT4: kernels.INT4, INT8: kernels.INT8}
    return numbers[element]


def _require_finite(most: int) -> None:
    if most >= INFINITE:
        raise FormatError(
            "a weight has Inf or NaN, which formats of few bits have no code for; repair the"
            " checkpoint"
        )
