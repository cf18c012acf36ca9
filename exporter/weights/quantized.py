"""Quantized weights of an engine: their tensors, and the bytes of those as a stream.

Letters: ... a stack's axis or none, N rows, K columns, G blocks of a row.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lmcast.calib.formats import WEIGHTS
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.finite import check_block
from lmcast.exporter.checkpoint.tensors import BLOCK_BYTES, Checkpoint
from lmcast.exporter.dtypes import DType
from lmcast.graphs.weights.elements import E4M3
from lmcast.graphs.weights.quantized import Quantized, Scheme
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.graphs.weights.sources import Packed, pieces


@dataclass(frozen=True)
class Stored:
    """A part of a quantized weight: its type in the graph, and what each run of rows contributes.

    whole: how many rows of a matrix `take` wants together; 0: any.
    """

    dtype: DType
    shape: tuple[int, ...]
    take: Callable[[Quantized], Tensor]
    whole: int = 0

    @property
    def nbytes(self) -> int:
        return math.ceil(math.prod(self.shape) * self.dtype.bits / 8)

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape in a safetensors header; 4-bit types, which it lacks, are bytes of two
        numbers."""
        if self.dtype.safetensors is not None:
            return self.dtype.safetensors, self.shape
        return "U8", (self.nbytes,)


@dataclass(frozen=True)
class PackedWeight:
    """How a quantized weight is stored in an engine.

    parts: CODES, SCALES, and if the scheme has them SHARED (fp32) and ZEROS.
    form: "standard": for DequantizeLinear in the shape of the weight; `block` columns share a
        scale, and scales are ...,N,G; 0: one for each row (N, or ...,N,1), 1: one for each matrix.
        "columns": the same with the codes of a stack transposed, E,K,N.
        "rows": every block is a row of codes with one scale; ONNX Runtime has a fast kernel for
        that, and MatMulNBits takes the same bytes. "numbers": codes are plain numbers, and scales
        broadcast to them.
    offset: the code that stands for 0 everywhere; with MINIMA, for the number that they are of
        when `least` is 0.
    divides: block scales are divided by the shared one.
    computed: the dtype that scales are multiplied in where it is not that of SCALES.
    """

    sources: tuple[Packed, ...]
    parts: Mapping[Part, Stored]
    form: Literal["standard", "columns", "rows", "numbers"]
    block: int
    offset: int = 0
    divides: bool = False
    computed: DType | None = None

    @property
    def scheme(self) -> Scheme:
        scheme = self.sources[0].layout.scheme
        assert scheme is not None
        return scheme

    @property
    def format(self) -> str:
        return format_name(self.scheme)

    def blocks(self, checkpoint: Checkpoint, part: Part) -> Iterator[Tensor]:
        """Yield the numbers of one part in order; 4-bit numbers as bytes of two."""
        given = self.parts[part]
        if part == Part.ZEROS and given.dtype.bits < 8:  # a run of them may end within a byte
            runs = (run for source in self.sources for run in quantized(checkpoint, source, False))
            yield self.scheme.element.pack(torch.cat([given.take(run).flatten() for run in runs]))
            return
        if given.whole:
            for run in self._matrices(checkpoint, given.whole):
                yield given.take(run).contiguous()
            return
        for source in self.sources:
            for run in quantized(checkpoint, source, part == Part.CODES):
                yield given.take(run).contiguous()
                if part == Part.SHARED and run.codes.dim() == 2 and not run.scheme.over:
                    break  # one for all rows

    def _matrices(self, checkpoint: Checkpoint, rows: int) -> Iterator[Quantized]:
        """Yield the codes of whole matrices, which may come from several sources."""
        parts: list[Tensor] = []
        for source in self.sources:
            for run in quantized(checkpoint, source):
                parts.append(run.codes)
                if sum(part.shape[-2] for part in parts) < rows:
                    continue
                yield replace(run, codes=torch.cat(parts, -2))
                parts.clear()
        assert not parts, "rows of no whole matrix"


def format_name(scheme: Scheme) -> str:
    """Return the name of a catalogued format, or numbers and block: 'int4 1x32, zeros'."""
    if scheme.label:
        return scheme.label
    for name, known in WEIGHTS.items():
        scale = known.scheme.scale
        if min(scale.itemsize, scheme.scale.itemsize) > 1:  # floats of any width
            scale = scheme.scale
        if replace(known.scheme, scale=scale) == scheme:
            return name
    block = "x".join(str(n) if n else "all" for n in scheme.block)
    return f"{scheme.element.name} {block}{', zeros' if scheme.zeros else ''}"


def quantized(checkpoint: Checkpoint, source: Packed, codes: bool = True) -> Iterator[Quantized]:
    """Yield a weight in runs of rows or of matrices: codes, and the scales of every row.

    codes: whether they are wanted; otherwise zeros. Raises CheckpointError for NaN and Inf.
    """
    layout, view = source.layout, source.values
    scheme = layout.scheme
    assert scheme is not None
    first, *others = layout.tensors
    shape = layout.shape({n: checkpoint.tensors[n].shape for n in layout.tensors})
    whole = {n: checkpoint.read(n) for n in others if not checkpoint.tensors[n].shape}

    def read(name: str, begin: int, end: int | None) -> Tensor:
        stored = checkpoint.tensors[name]
        last = stored.shape[0] if end is None and stored.shape else end
        if name in whole:
            return whole[name]
        if name == first and others and not codes:
            assert last is not None
            return torch.zeros(1, dtype=stored.dtype).expand(last - begin, *stored.shape[1:])
        if end is None:
            whole[name] = checkpoint.read(name)
            return whole[name]
        return checkpoint.rows(name, begin, end)

    columns = scheme.scales_shape(shape)[-1]
    entries = view.runs or shape[0]
    step = max(1, BLOCK_BYTES // (math.prod(scheme.codes_shape(shape)) // entries))
    runs = shape[-1] // scheme.over if scheme.over else columns
    of_codes = pieces(view, scheme.codes_shape(shape), step)
    of_scales = pieces(view, (*shape[:-1], columns), step)
    of_runs = pieces(view, (*shape[:-1], runs), step)
    for (begin, end, take), (*_, take_scales), (*_, take_runs) in zip(
        of_codes, of_scales, of_runs, strict=True
    ):
        run = layout.codes(read, begin, end)
        _check(checkpoint, source, run)
        zeros = None if run.zeros is None else take_scales(each_row(run, run.zeros))
        minima = None if run.minima is None else take_scales(run.minima)
        scales, shared, of_minima = take_scales(each_row(run, run.scales)), run.shared, None
        if shared is not None and scheme.over:
            shared = take_runs(shared)
            of_minima = None if run.shared_minima is None else take_runs(run.shared_minima)
        elif shared is not None and shared.dim() == 3 and view.index:
            shared = shared[:: view.index[0].step]
        by_row = replace(scheme, block=(1, scheme.block[1]))
        yield Quantized(
            by_row, take(run.codes), scales, shared, run.divides, zeros,
            minima=minima, shared_minima=of_minima,
        )  # fmt: skip


def each_row(run: Quantized, blocks: Tensor) -> Tensor:
    """Broadcast numbers of blocks to rows: ...,N,G."""
    high, rows = run.scheme.block[0], run.shape[-2]
    if high == 0:
        return blocks.expand(*blocks.shape[:-2], rows, blocks.shape[-1])
    if high == 1:
        return blocks
    places = (torch.arange(rows) + run.first) // high
    if blocks.dtype.itemsize > 1:
        return blocks[..., places, :]
    return blocks.view(torch.uint8)[..., places, :].view(blocks.dtype)  # torch picks no FP8


def _check(checkpoint: Checkpoint, source: Packed, run: Quantized) -> None:
    """Refuse NaN and Inf among scales and codes, and zeros that no code stands for."""
    stored = checkpoint.tensors[source.layout.tensors[0]]
    element = run.scheme.element
    if element == E4M3:
        check_block(stored, run.codes.contiguous().view(torch.float8_e4m3fn))
    factors = run.factors()
    finite = factors.isfinite().all() and (run.minima is None or run.offsets().isfinite().all())
    if not finite:
        raise CheckpointError(
            f"{stored.file}: the scales of tensor {stored.name!r} are not all finite; only finite"
            " weights are accepted; download or save the checkpoint again"
        )
    most = element.table().nan_to_num().abs().max()
    if not (factors * most).isfinite().all():  # may be beyond fp32; then every product is looked at
        check_block(stored, run.dequantize())
    if run.zeros is not None:
        least, largest = element.range
        if run.zeros.min() < least or run.zeros.max() > largest:
            raise CheckpointError(
                f"{stored.file}: the zero points of tensor {stored.name!r} are not all numbers that"
                f" {element.name} has; accepted: {least} to {largest}"
            )
