"""Quantized weights in an engine: the tensors they lie in, and the bytes of those as they come.

Letters: ... a stack's axis or none, N rows, K columns, G blocks of a row.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor

from lmcast.calib.formats import WEIGHTS
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.finite import check_block
from lmcast.exporter.checkpoint.tensors import BLOCK_BYTES, Checkpoint
from lmcast.graphs.weights.quantized import Quantized, Scheme, values_of
from lmcast.graphs.weights.sources import Packed, pieces

SAFETENSORS = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
    ir.DataType.FLOAT8E8M0: "F8_E8M0",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
}  # of 4 bits it has none: two are written as U8


@dataclass(frozen=True)
class Part:
    """One tensor of a quantized weight: what it is in the graph, and what a run of rows adds."""

    kind: ir.DataType
    shape: tuple[int, ...]
    take: Callable[[Quantized], Tensor]

    @property
    def nbytes(self) -> int:
        return math.ceil(math.prod(self.shape) * self.kind.itemsize)

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape in a safetensors header."""
        if self.kind in SAFETENSORS:
            return SAFETENSORS[self.kind], self.shape
        return "U8", (self.nbytes,)


@dataclass(frozen=True)
class PackedWeight:
    """How a quantized weight lies in an engine.

    parts: 'codes', 'scales', and where it has them 'shared' (fp32) and 'zeros'. By form:

    standard: for DequantizeLinear in the shape of the weight; `block` columns share a scale and
    scales are ...,N,G; 0: one for each row (N, or ...,N,1), 1: one for each matrix.
    rows: every block is a row of codes, with one scale; ONNX Runtime has a fast kernel for that,
    and its own product takes the same bytes.
    numbers: codes are plain numbers, and scales in a shape that they are multiplied in.

    offset: the code that stands for 0 everywhere. divides: block scales are divided by the shared
    one.
    """

    sources: tuple[Packed, ...]
    parts: Mapping[str, Part]
    form: Literal["standard", "rows", "numbers"]
    block: int
    offset: int = 0
    divides: bool = False

    @property
    def format(self) -> str:
        scheme = self.sources[0].layout.scheme
        assert scheme is not None
        return format_name(scheme)

    def blocks(self, checkpoint: Checkpoint, part: str) -> Iterator[Tensor]:
        """Yield the numbers of one part in order; of 4 bits two in a byte."""
        given = self.parts[part]
        if part == "zeros" and given.kind.itemsize < 1:  # a run of them may end within a byte
            runs = (run for source in self.sources for run in quantized(checkpoint, source, False))
            yield in_pairs(torch.cat([given.take(run).flatten() for run in runs]))
            return
        for source in self.sources:
            for run in quantized(checkpoint, source, part == "codes"):
                yield given.take(run).contiguous()
                if part == "shared" and run.codes.dim() == 2:
                    break  # one for all rows


def format_name(scheme: Scheme) -> str:
    """Return the name of a catalogued format, or numbers and block: 'int4 1x32, zeros'."""
    for name, known in WEIGHTS.items():
        scale = known.scheme.scale
        if min(scale.itemsize, scheme.scale.itemsize) > 1:  # floats of any width
            scale = scheme.scale
        if replace(known.scheme, scale=scale) == scheme:
            return name
    block = "x".join(str(n) if n else "all" for n in scheme.block)
    return f"{scheme.element} {block}{', zeros' if scheme.zeros else ''}"


def quantized(checkpoint: Checkpoint, source: Packed, codes: bool = True) -> Iterator[Quantized]:
    """Yield a weight in runs of rows or of matrices: codes, and for every row its own scales.

    All finite; raises CheckpointError. codes: whether they are wanted; zeros take their place.
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
        if name == first and not codes:
            assert last is not None
            return torch.zeros(1, dtype=stored.dtype).expand(last - begin, *stored.shape[1:])
        if end is None:
            whole[name] = checkpoint.read(name)
            return whole[name]
        return checkpoint.rows(name, begin, end)

    columns = scheme.scales_shape(shape)[-1]
    entries = view.runs or shape[0]
    step = max(1, BLOCK_BYTES // (math.prod(scheme.codes_shape(shape)) // entries))
    of_codes = pieces(view, scheme.codes_shape(shape), step)
    of_scales = pieces(view, (*shape[:-1], columns), step)
    for (begin, end, take), (_, _, take_scales) in zip(of_codes, of_scales, strict=True):
        run = layout.codes(read, begin, end)
        _check(checkpoint, source, run)
        zeros = None if run.zeros is None else take_scales(each_row(run, run.zeros))
        scales, shared = take_scales(each_row(run, run.scales)), run.shared
        if shared is not None and shared.dim() == 3 and view.index:
            shared = shared[:: view.index[0].step]
        by_row = replace(scheme, block=(1, scheme.block[1]))
        yield Quantized(by_row, take(run.codes), scales, shared, run.divides, zeros)


def each_row(run: Quantized, blocks: Tensor) -> Tensor:
    """Return numbers of blocks as ...,N,G: those of every row."""
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
    if run.scheme.element == "e4m3":
        check_block(stored, run.codes.contiguous().view(torch.float8_e4m3fn))
    factors = run.factors()
    if not factors.isfinite().all():
        raise CheckpointError(
            f"{stored.file}: the scales of tensor {stored.name!r} are not all finite; only finite"
            " weights are accepted; download or save the checkpoint again"
        )
    most = values_of(run.scheme.element).nan_to_num().abs().max()
    if not (factors * most).isfinite().all():  # may be beyond fp32; then every product is looked at
        check_block(stored, run.dequantize())
    if run.zeros is not None:
        half = 1 << (run.scheme.bits - 1)
        if run.zeros.min() < -half or run.zeros.max() >= half:
            raise CheckpointError(
                f"{stored.file}: the zero points of tensor {stored.name!r} are not all numbers that"
                f" {run.scheme.element} has; accepted: {-half} to {half - 1}"
            )


def in_pairs(codes: Tensor) -> Tensor:
    """Return codes of 4 bits, one in a byte, as two in a byte: the first in the low half."""
    even = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
    return (even[0::2] & 15) | ((even[1::2] & 15) << 4)
