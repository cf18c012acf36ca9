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

from lmcast.calib.formats.onnx_form import CODES, SCALES
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.finite import check_block
from lmcast.exporter.checkpoint.tensors import BLOCK_BYTES, Checkpoint
from lmcast.exporter.lowering import DTYPES
from lmcast.graphs.quantized import Quantized, Scheme, values_of
from lmcast.graphs.sources import Joined, Packed, Source, Stack, leaves, pieces
from lmcast.graphs.weights import Binding

# How codes lie. standard: as ONNX defines them, for any runtime. kernels: as ONNX Runtime's own
# kernels read them: unsigned integers, those of E2M1 twice their number, with scales in fp32.
Form = Literal["standard", "kernels"]
KERNEL_BLOCKS = (128, 64, 32, 16)  # columns that share a scale in those kernels
SAFETENSORS = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
    ir.DataType.FLOAT8E8M0: "F8_E8M0",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
}  # of 4 bits it has none: two are written as U8
UNSIGNED = {"int4": ir.DataType.UINT4, "int8": ir.DataType.UINT8, "e2m1": ir.DataType.UINT8}
HALF_OF = {"int4": 8, "int8": 128, "e2m1": 128}  # the unsigned code that stands for 0


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

    parts: 'codes', 'scales', and where it has them 'shared' (fp32) and 'zeros'. block: how many
    columns share a scale: scales are ...,N,G; 0: one for each row (N, or ...,N,1), 1: one for each
    matrix. offset: the code that stands for 0 everywhere. divides: block scales are divided by the
    shared one.
    """

    sources: tuple[Packed, ...]
    parts: Mapping[str, Part]
    block: int
    offset: int = 0
    divides: bool = False

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
    if run.zeros is not None:
        half = 1 << (run.scheme.bits - 1)
        if run.zeros.min() < -half or run.zeros.max() >= half:
            raise CheckpointError(
                f"{stored.file}: the zero points of tensor {stored.name!r} are not all numbers that"
                f" {run.scheme.element} has; accepted: {-half} to {half - 1}"
            )


def packed_weight(
    checkpoint: Checkpoint, source: Source, shape: tuple[int, ...], dtype: torch.dtype, form: Form
) -> PackedWeight | None:
    """Return how a weight that is computed in `dtype` lies; None where it is not quantized, or is
    made of quantized weights otherwise than in whole rows of one scheme: then its values are."""
    found = tuple(leaf for leaf in leaves(source) if isinstance(leaf, Packed))
    if not found or len(shape) not in (2, 3) or not _in_rows(checkpoint, source):
        return None
    (scheme, *others) = {leaf.layout.scheme for leaf in found}
    if scheme is None or others:
        return None
    alone = scheme.block == (0, 0) and _one_each(source)
    if form == "kernels":
        return _for_kernels(found, scheme, shape, alone)
    divides = None
    if scheme.shared and _one_each(source):
        divides = next(quantized(checkpoint, found[0], codes=False)).divides
    return _standard(checkpoint, found, scheme, shape, dtype, alone, divides)


def without_kernel(binding: Binding) -> str:
    """Return what of the standard form ONNX Runtime 1.31 has no kernel for on CPU; '': nothing."""
    schemes = {
        leaf.layout.scheme
        for source in binding.sources.values()
        for leaf in leaves(source)
        if isinstance(leaf, Packed)
    }
    if any(scheme and scheme.element == "e2m1" for scheme in schemes):
        return "numbers of 4 bits in E2M1"
    if any(scheme and scheme.scale == torch.float8_e8m0fnu for scheme in schemes):
        return "scales in E8M0"
    return ""


def _in_rows(checkpoint: Checkpoint, source: Source) -> bool:
    """Whether a source takes whole rows of quantized weights, one behind the other."""
    if isinstance(source, Stack | Joined):
        along = isinstance(source, Stack) or source.axis == 0
        return along and all(_in_rows(checkpoint, part) for part in source.parts)
    if not isinstance(source, Packed) or source.values.turned:
        return False
    view, layout = source.values, source.layout
    axes = len(layout.shape({n: checkpoint.tensors[n].shape for n in layout.tensors}))
    return len(view.index) < axes + (view.runs is not None)


def _one_each(source: Source) -> bool:
    """Whether each matrix is one quantized weight or part of one, so that a scale can be shared."""
    parts = source.parts if isinstance(source, Stack) else (source,)
    return all(isinstance(part, Packed) and part.values.runs is None for part in parts)


def _for_kernels(
    found: tuple[Packed, ...], scheme: Scheme, shape: tuple[int, ...], alone: bool
) -> PackedWeight:
    float32 = ir.DataType.FLOAT
    if scheme.element == "e4m3":
        block = 1 if alone else scheme.block[1]
        codes = Part(ir.DataType.FLOAT8E4M3FN, shape, lambda run: run.codes)
        scales = Part(float32, _scales_shape(shape, block), lambda run: _one(run.factors(), alone))
        return PackedWeight(found, {"codes": codes, "scales": scales}, block)
    wide = scheme.block[1] or shape[-1]
    fitting = [b for b in KERNEL_BLOCKS if wide % b == 0 and shape[-1] % b == 0]
    block = fitting[0] if fitting else wide
    times = -(-shape[-1] // block) if not scheme.block[1] else wide // block
    half = 0.5 if scheme.element == "e2m1" else 1.0

    def scales_of(run: Quantized) -> Tensor:
        return (run.factors() * half).repeat_interleave(times, -1)[..., :count]

    of_blocks = _scales_shape(shape, block)
    count = of_blocks[-1]
    kind, offset = UNSIGNED[scheme.element], HALF_OF[scheme.element]
    parts = {
        "codes": Part(kind, shape, lambda run: unsigned(run.codes, scheme)),
        "scales": Part(float32, of_blocks, scales_of),
    }
    if scheme.zeros:
        parts["zeros"] = _zeros(kind, of_blocks, offset, times)
    return PackedWeight(found, parts, block, offset)


def _standard(
    checkpoint: Checkpoint,
    found: tuple[Packed, ...],
    scheme: Scheme,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    alone: bool,
    divides: bool | None,
) -> PackedWeight:
    """divides: how shared scales are meant, None where there are none or not one of each matrix."""
    kind, offset, block = ir.DataType(CODES[scheme.element]), 0, 1 if alone else scheme.block[1]
    if scheme.zeros and scheme.element == "int4":
        kind, offset = ir.DataType.UINT4, 8
    of_blocks = _scales_shape(shape, block)
    codes = Part(kind, shape, lambda run: unsigned(run.codes, scheme) if offset else run.codes)
    parts = {"codes": codes}
    if divides is not None:
        parts["shared"] = Part(ir.DataType.FLOAT, shape[:-2], _shared)
    if divides is not None or scheme.scale == torch.float8_e8m0fnu:
        scale_kind = ir.DataType(SCALES[scheme.scale])
        parts["scales"] = Part(scale_kind, of_blocks, lambda run: run.scales)
    else:
        kept = _exact(checkpoint, found, scheme, dtype)
        parts["scales"] = Part(
            DTYPES[kept], of_blocks, lambda run: _one(run.factors(), alone).to(kept)
        )
    if scheme.zeros:
        parts["zeros"] = _zeros(kind, of_blocks, offset, 1)
    return PackedWeight(found, parts, block, offset, bool(divides))


def _exact(
    checkpoint: Checkpoint, found: tuple[Packed, ...], scheme: Scheme, dtype: torch.dtype
) -> torch.dtype:
    """Return what scales are multiplied in: `dtype` if it has all of them, else fp32."""
    if dtype in (scheme.scale, torch.float32):
        return dtype
    for source in found:
        for run in quantized(checkpoint, source, codes=False):
            scales = run.factors()
            if not torch.equal(scales.to(dtype).float(), scales):
                return torch.float32
    return dtype


def _scales_shape(shape: tuple[int, ...], block: int) -> tuple[int, ...]:
    if block == 1:
        return shape[:-2]
    if block == 0 and len(shape) == 2:
        return shape[:1]
    return (*shape[:-1], -(-shape[-1] // block) if block else 1)


def _one(scales: Tensor, alone: bool) -> Tensor:
    """Return the scales of all rows, or of each matrix the one that its rows share."""
    return scales[..., 0, 0] if alone else scales


def _shared(run: Quantized) -> Tensor:
    assert run.shared is not None
    return run.shared.float()


def _zeros(kind: ir.DataType, shape: tuple[int, ...], offset: int, times: int) -> Part:
    """Return the part with the code of each block that stands for 0."""

    def take(run: Quantized) -> Tensor:
        assert run.zeros is not None
        zeros = run.zeros.to(torch.int16).repeat_interleave(times, -1)[..., : shape[-1]] + offset
        return (zeros & 255).to(torch.uint8)

    return Part(kind, shape, take)


def in_pairs(codes: Tensor) -> Tensor:
    """Return codes of 4 bits, one in a byte, as two in a byte: the first in the low half."""
    even = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
    return (even[0::2] & 15) | ((even[1::2] & 15) << 4)


def unsigned(codes: Tensor, scheme: Scheme) -> Tensor:
    """Return codes as unsigned integers around HALF_OF: of E2M1 twice the number, in 8 bits."""
    if scheme.element == "e2m1":
        table = (values_of("e2m1") * 2 + HALF_OF["e2m1"]).to(torch.uint8)
        pairs = torch.stack([table.repeat(16), table.repeat_interleave(16)], -1)
        return pairs[codes.flatten().int()].reshape(*codes.shape[:-1], -1)
    return codes ^ (0x88 if scheme.element == "int4" else 0x80)
