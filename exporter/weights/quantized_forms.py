"""The form of quantized weights in an engine: ONNX's own, or that of a runtime's kernels.

Letters: ... a stack's axis or none, N rows, K columns, G blocks of a row.
"""

import math

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import DTYPES, of_torch
from lmcast.exporter.targets import WeightForm
from lmcast.exporter.weights.gpu_forms import gpu_weight
from lmcast.exporter.weights.integer_forms import KERNEL_CODES, exact, integers, unsigned, zeros_of
from lmcast.exporter.weights.quantized import PackedWeight, Stored, quantized
from lmcast.graphs.weights.bind import Binding
from lmcast.graphs.weights.elements import E2M1, E4M3, INT4
from lmcast.graphs.weights.quantized import Quantized, Scheme
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.graphs.weights.sources import Joined, Packed, Source, Stack, leaves


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
        return integers(found, scheme, shape)
    if form == "gpu_kernels":
        return gpu_weight(checkpoint, found, scheme, shape, dtype, _one_each(source))
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
        kept = exact(checkpoint, found, scheme, dtype)
        parts[Part.SCALES] = Stored(
            of_torch(kept), of_blocks, lambda run: _one(run.factors(), alone).to(kept)
        )
    if scheme.zeros:
        of_row = -(-shape[-1] // block) if block else 1
        parts[Part.ZEROS] = Stored(kind, of_blocks, lambda run: zeros_of(run, offset, 1, of_row))
    return PackedWeight(found, parts, "standard", block, offset, bool(divides))


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
