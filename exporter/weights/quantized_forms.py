"""The form of quantized weights in an engine: ONNX's own, or that of a runtime's kernels.

Letters: ... a stack's axis or none, N rows, K columns, G blocks of a row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import DTYPES, DType, of_torch
from lmcast.exporter.targets import WeightForm
from lmcast.exporter.weights.quantized import PackedWeight, Stored, quantized
from lmcast.graphs.weights.bind import Binding
from lmcast.graphs.weights.elements import E2M1, E4M3, INT4, INT8, Element
from lmcast.graphs.weights.quantized import Quantized, Scheme
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.graphs.weights.sources import Joined, Packed, Source, Stack, leaves

KERNEL_BLOCKS = (128, 64, 32, 16)  # columns that share a scale in those kernels, best first


@dataclass(frozen=True)
class KernelCodes:
    """Codes as ONNX Runtime's kernels take them: unsigned, a number is step * (code - zero)."""

    dtype: DType
    zero: int
    step: float = 1.0


KERNEL_CODES: Mapping[Element, KernelCodes] = {
    INT4: KernelCodes(DTYPES["uint4"], 8),
    INT8: KernelCodes(DTYPES["uint8"], 128),
    E2M1: KernelCodes(DTYPES["uint8"], 128, 0.5),
}


def has_kernel(block: int, columns: int, bits: int, zeros: bool) -> bool:
    """Whether ONNX Runtime 1.31 has kernels for integers of `bits` bits, of which `block` columns
    share a scale, and `zeros`, a zero point: in MatMulNBits every row of those ends with a byte."""
    whole_bytes = columns // block * bits % 8 == 0
    return block in KERNEL_BLOCKS and (whole_bytes or not zeros)


def packed_weight(
    checkpoint: Checkpoint,
    source: Source,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    form: WeightForm,
) -> PackedWeight | None:
    """Return how a weight is stored in an engine that computes in `dtype`.

    None where it is not quantized, or made of quantized weights other than by whole rows of one
    scheme: it is then dequantized.
    """
    found = tuple(leaf for leaf in leaves(source) if isinstance(leaf, Packed))
    if not found or len(shape) not in (2, 3) or not _in_rows(checkpoint, source):
        return None
    (scheme, *others) = {leaf.layout.scheme for leaf in found}
    if scheme is None or others:
        return None
    alone = scheme.block == (0, 0) and _one_each(source)
    if form == "kernels":
        if scheme.element == E4M3:
            return _numbers(found, scheme, shape, alone)
        return _integers(found, scheme, shape)
    divides = None
    if scheme.shared and _one_each(source):
        divides = next(quantized(checkpoint, found[0], codes=False)).divides
    return _standard(checkpoint, found, scheme, shape, dtype, alone, divides)


def without_kernel(binding: Binding) -> str:
    """Return what in the standard form ONNX Runtime 1.31 has no CPU kernel for; '' if nothing."""
    schemes = {
        leaf.layout.scheme
        for source in binding.sources.values()
        for leaf in leaves(source)
        if isinstance(leaf, Packed)
    }
    if any(scheme and scheme.element == E2M1 for scheme in schemes):
        return "numbers of 4 bits in E2M1"
    if any(scheme and scheme.scale == torch.float8_e8m0fnu for scheme in schemes):
        return "scales in E8M0"
    return ""


def _in_rows(checkpoint: Checkpoint, source: Source) -> bool:
    """Whether a source concatenates whole rows of quantized weights."""
    if isinstance(source, Stack | Joined):
        along = isinstance(source, Stack) or source.axis == 0
        return along and all(_in_rows(checkpoint, part) for part in source.parts)
    if not isinstance(source, Packed) or source.values.transposed:
        return False
    view, layout = source.values, source.layout
    axes = len(layout.shape({n: checkpoint.tensors[n].shape for n in layout.tensors}))
    return len(view.index) < axes + (view.runs is not None)


def _one_each(source: Source) -> bool:
    """Whether each matrix is (part of) one quantized weight, so that a scale can be shared."""
    parts = source.parts if isinstance(source, Stack) else (source,)
    return all(isinstance(part, Packed) and part.values.runs is None for part in parts)


def _integers(found: tuple[Packed, ...], scheme: Scheme, shape: tuple[int, ...]) -> PackedWeight:
    """Return the form of unsigned integers in blocks of a size that ONNX Runtime's kernels have.

    Blocks smaller than the scheme's repeat its scales. Where no size has a kernel, blocks are as
    large as they can be, and DequantizeLinear takes them.
    """
    columns, kernel = shape[-1], KERNEL_CODES[scheme.element]
    wide = math.gcd(scheme.block[1] or columns, columns)
    fitting = (
        block
        for block in KERNEL_BLOCKS
        if wide % block == 0 and has_kernel(block, columns, kernel.dtype.bits, scheme.zeros)
    )
    block = next(fitting, wide)
    times = (scheme.block[1] or columns) // block
    of_row = columns // block
    rows = math.prod(shape[:-1]) * of_row

    def scales_of(run: Quantized) -> Tensor:
        return (run.factors() * kernel.step).repeat_interleave(times, -1)[..., :of_row]

    parts = {
        Part.CODES: Stored(kernel.dtype, (rows, block), unsigned),
        Part.SCALES: Stored(DTYPES["float32"], (rows,), scales_of),
    }
    if scheme.zeros:
        parts[Part.ZEROS] = Stored(
            kernel.dtype, (rows,), lambda run: _zeros(run, kernel.zero, times, of_row)
        )
    return PackedWeight(found, parts, "rows", block, kernel.zero)


def _numbers(
    found: tuple[Packed, ...], scheme: Scheme, shape: tuple[int, ...], alone: bool
) -> PackedWeight:
    """Return FP8 as fp16, which has all its numbers: ONNX Runtime 1.31 takes 18 ns to convert a
    number from FP8 on CPU, and 0.2 ns from fp16."""
    columns = shape[-1]
    block = math.gcd(scheme.block[1] or columns, columns)
    times, of_row = (scheme.block[1] or columns) // block, columns // block
    sizes: tuple[int, ...] = shape
    of_scales: tuple[int, ...] = (*shape[:-1], 1)
    if alone:
        of_scales = (*shape[:-2], 1, 1)
    elif of_row > 1:
        sizes, of_scales = (*shape[:-1], of_row, block), (*shape[:-1], of_row, 1)

    def codes_of(run: Quantized) -> Tensor:
        return run.codes.contiguous().view(torch.float8_e4m3fn).to(torch.float16)

    def scales_of(run: Quantized) -> Tensor:
        return _one(run.factors().repeat_interleave(times, -1)[..., :of_row], alone)

    parts = {
        Part.CODES: Stored(DTYPES["float16"], sizes, codes_of),
        Part.SCALES: Stored(DTYPES["float32"], of_scales, scales_of),
    }
    return PackedWeight(found, parts, "numbers", block)


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
    kind, offset, block = DTYPES[scheme.element.dtype], 0, 1 if alone else scheme.block[1]
    if scheme.zeros and scheme.element == INT4:
        kind, offset = KERNEL_CODES[INT4].dtype, KERNEL_CODES[INT4].zero
    of_blocks = _scales_shape(shape, block)
    parts = {Part.CODES: Stored(kind, shape, unsigned if offset else lambda run: run.codes)}
    if divides is not None:
        parts[Part.SHARED] = Stored(DTYPES["float32"], shape[:-2], _shared)
    if divides is not None or scheme.scale == torch.float8_e8m0fnu:
        parts[Part.SCALES] = Stored(of_torch(scheme.scale), of_blocks, lambda run: run.scales)
    else:
        kept = _exact(checkpoint, found, scheme, dtype)
        parts[Part.SCALES] = Stored(
            of_torch(kept), of_blocks, lambda run: _one(run.factors(), alone).to(kept)
        )
    if scheme.zeros:
        of_row = -(-shape[-1] // block) if block else 1
        parts[Part.ZEROS] = Stored(kind, of_blocks, lambda run: _zeros(run, offset, 1, of_row))
    return PackedWeight(found, parts, "standard", block, offset, bool(divides))


def _exact(
    checkpoint: Checkpoint, found: tuple[Packed, ...], scheme: Scheme, dtype: torch.dtype
) -> torch.dtype:
    """Return the dtype to multiply scales in: `dtype` if it represents all of them, else fp32."""
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
    """Return the scales of all rows; of matrices, the one that their rows share."""
    return scales[..., 0, 0] if alone else scales


def _shared(run: Quantized) -> Tensor:
    assert run.shared is not None
    return run.shared.float()


def _zeros(run: Quantized, offset: int, times: int, of_row: int) -> Tensor:
    """Return the zero point of each block, uint8."""
    assert run.zeros is not None
    zeros = run.zeros.to(torch.int16).repeat_interleave(times, -1)[..., :of_row] + offset
    return (zeros & 255).to(torch.uint8)


def unsigned(run: Quantized) -> Tensor:
    """Return codes as KERNEL_CODES says: of integers in their bits, of E2M1 in 8."""
    element = run.scheme.element
    if element.integer:
        return run.codes ^ element.signs
    kernel = KERNEL_CODES[element]
    return (element.decode(run.codes) / kernel.step + kernel.zero).to(torch.uint8)
