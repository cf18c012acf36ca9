"""Integers in blocks, as ONNX Runtime's own kernels take them on CPUs and GPUs alike.

Letters: ... a stack's axis or none, N rows, K columns, G blocks of a row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import DTYPES, DType, of_torch
from lmcast.exporter.weights.quantized import PackedWeight, Stored, quantized
from lmcast.graphs.weights.elements import E2M1, INT4, INT8, Element
from lmcast.graphs.weights.quantized import Quantized, Scheme
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.graphs.weights.sources import Packed

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


def integers(
    found: tuple[Packed, ...],
    scheme: Scheme,
    shape: tuple[int, ...],
    kept: torch.dtype = torch.float32,
    within: int = 0,
) -> PackedWeight:
    """Return the form of unsigned integers in blocks of a size that ONNX Runtime's kernels have.

    kept: the dtype of their scales, which holds them all; those of ggml's blocks are stored as they
    are, and become that at load. within: what blocks divide too. Blocks smaller than the scheme's
    repeat its scales. Where no size has a kernel, blocks are as large as they can be, and
    DequantizeLinear takes them.
    """
    columns, kernel = shape[-1], KERNEL_CODES[scheme.element]
    wide = math.gcd(scheme.block[1] or columns, columns, within)
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
        scales = (run.factors() * kernel.step).repeat_interleave(times, -1)[..., :of_row]
        return scales.to(kept)

    parts = {Part.CODES: Stored(kernel.dtype, (rows, block), unsigned)}
    if scheme.label:
        parts |= _as_stored(scheme, rows, rows * block // (scheme.over or block))
        return PackedWeight(found, parts, "rows", block, kernel.zero, computed=of_torch(kept))
    parts[Part.SCALES] = Stored(of_torch(kept), (rows,), scales_of)
    if scheme.zeros:
        parts[Part.ZEROS] = Stored(
            kernel.dtype, (rows,), lambda run: zeros_of(run, kernel.zero, times, of_row)
        )
    return PackedWeight(found, parts, "rows", block, kernel.zero)


def _as_stored(scheme: Scheme, blocks: int, runs: int) -> dict[Part, Stored]:
    """Return scales and minima of ggml's blocks: of those that share a factor, run by run."""
    sizes = (runs, blocks // runs) if scheme.over else (blocks,)
    kind, half = of_torch(scheme.scale), DTYPES["float16"]
    parts = {Part.SCALES: Stored(kind, sizes, lambda run: run.scales)}
    if scheme.over:
        parts[Part.SHARED] = Stored(half, (runs, 1), lambda run: _given(run.shared))
    if scheme.least:
        parts[Part.MINIMA] = Stored(kind, sizes, lambda run: _given(run.minima))
    if scheme.least and scheme.over:
        parts[Part.SHARED_MINIMA] = Stored(half, (runs, 1), lambda run: _given(run.shared_minima))
    return parts


def _given(part: Tensor | None) -> Tensor:
    assert part is not None
    return part


def exact(
    checkpoint: Checkpoint,
    found: tuple[Packed, ...],
    scheme: Scheme,
    dtype: torch.dtype,
    step: float = 1.0,
) -> torch.dtype:
    """Return the dtype to multiply scales in: `dtype` if it represents all of them times a step,
    else fp32."""
    if dtype in (scheme.scale, torch.float32):
        return dtype
    for source in found:
        for run in quantized(checkpoint, source, codes=False):
            scales = run.factors() * step
            if not torch.equal(scales.to(dtype).float(), scales):
                return torch.float32
    return dtype


def zeros_of(run: Quantized, offset: int, times: int, of_row: int) -> Tensor:
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
