"""The form of quantized weights for the kernels of ONNX Runtime's CUDA provider, one a format.

Letters: E experts, N rows, K columns, G blocks of a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import DTYPES, of_torch
from lmcast.exporter.weights.integer_forms import KERNEL_CODES, exact, integers
from lmcast.exporter.weights.quantized import PackedWeight, Stored, quantized
from lmcast.graphs.weights.elements import E2M1, E4M3, halves, pairs
from lmcast.graphs.weights.quantized import Quantized, Scheme, WeightError
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.graphs.weights.sources import Packed


@dataclass(frozen=True)
class Kernels:
    """The operators that multiply with a weight, and with stacks of experts; '' for none."""

    products: str
    experts: str = ""


# Name of a scheme -> what ONNX Runtime 1.31's package for GPUs has for it. MXFP4 is multiplied as
# twice its numbers in 8 bits.
KERNELS: Mapping[str, Kernels] = {
    "int4": Kernels("MatMulNBits", "QMoE"),
    "int8": Kernels("MatMulNBits", "QMoE"),
    "mxfp4": Kernels("MatMulNBits", "QMoE"),
    "nvfp4": Kernels("MatMulBlockQuantizedFp4Weight"),
    "fp8": Kernels("MatMulBlockQuantizedFp8Weight"),
    "mxfp8": Kernels("MatMulBlockQuantizedFp8Weight"),
}


def gpu_weight(
    checkpoint: Checkpoint,
    found: tuple[Packed, ...],
    scheme: Scheme,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    one_each: bool,
    parts: int = 1,
) -> PackedWeight | None:
    """Return how a weight of these sources is stored, None where it is dequantized.

    one_each: whether each matrix is one weight, so that a scale can be shared. parts: how many
    stacks of experts are stored as one. Raises WeightError for those that have no kernel.
    """
    if any(source.values.runs is not None for source in found):
        return None  # of heads, which no product takes whole
    if len(shape) == 3 and scheme.element.integer:
        within = shape[1] // parts  # blocks are as large in all matrices of an expert
        return integers(found, scheme, shape, _rounded(checkpoint, found, dtype), within)
    if len(shape) == 3:
        if not KERNELS[scheme.name].experts:
            able = ", ".join(name for name, kernels in KERNELS.items() if kernels.experts)
            raise WeightError(
                f"tensor {found[0].values.tensor} is {scheme.name}, of experts: ONNX Runtime's"
                f" package for GPUs has kernels for experts in {able}; use --target cpu or"
                " tensorrt-rtx, or a checkpoint in bfloat16"
            )
        return _by_columns(found, scheme, shape)
    if scheme.element == E4M3:
        return _fp8(found, scheme, shape)
    if scheme.shared and one_each:
        return _nvfp4(found, shape)
    step = KERNEL_CODES[scheme.element].step
    return integers(found, scheme, shape, exact(checkpoint, found, scheme, dtype, step))


def _rounded(checkpoint: Checkpoint, found: tuple[Packed, ...], dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the scales of experts: QMoE takes those of its inputs alone.

    Rounded to it they change a product by no more than rounding that does; raises WeightError where
    they would by more, as the smallest numbers of fp16 do.
    """
    for source in found:
        for run in quantized(checkpoint, source, codes=False):
            scales = run.factors()
            near = scales.to(dtype).float()
            if ((near - scales).abs() > scales.abs() * torch.finfo(dtype).eps / 2).any():
                raise WeightError(
                    f"tensor {source.values.tensor} has scales that {dtype} does not hold, of"
                    " experts, whose kernel takes no others; use --dtype bfloat16"
                )
    return dtype


def _fp8(found: tuple[Packed, ...], scheme: Scheme, shape: tuple[int, ...]) -> PackedWeight:
    """Return FP8 with fp32 scales of the blocks of every row; the last block may be partial."""
    block = scheme.block[1] or shape[-1]
    parts = {
        Part.CODES: Stored(DTYPES[E4M3.dtype], shape, lambda run: run.codes),
        Part.SCALES: _scales(shape, block, torch.float32, lambda run: run.factors()),
    }
    return PackedWeight(found, parts, "standard", block)


def _nvfp4(found: tuple[Packed, ...], shape: tuple[int, ...]) -> PackedWeight:
    """Return NVFP4 as it is; a shared scale that divides becomes one that multiplies."""

    def shared(run: Quantized) -> Tensor:
        assert run.shared is not None
        wide = run.shared.float()
        return 1 / wide if run.divides else wide

    parts = {
        Part.CODES: Stored(DTYPES[E2M1.dtype], shape, lambda run: run.codes),
        Part.SHARED: Stored(DTYPES["float32"], (), shared),
        Part.SCALES: _scales(shape, 16, torch.float8_e4m3fn, lambda run: run.scales),
    }
    return PackedWeight(found, parts, "standard", 16)


def _by_columns(found: tuple[Packed, ...], scheme: Scheme, shape: tuple[int, ...]) -> PackedWeight:
    """Return MXFP4 in columns, E,K,N, as QMoE takes it, and its scales E,N,G as they are.

    Two rows in a byte, the even one in the low half: as ONNX Runtime's own packer does.
    """
    experts, rows, columns = shape

    def turned(run: Quantized) -> Tensor:
        return pairs(halves(run.codes).transpose(-1, -2))

    block = scheme.block[1]
    parts = {
        Part.CODES: Stored(DTYPES[E2M1.dtype], (experts, columns, rows), turned, rows),
        Part.SCALES: _scales(shape, block, scheme.scale, lambda run: run.scales),
    }
    return PackedWeight(found, parts, "columns", block)


def _scales(
    shape: tuple[int, ...], block: int, dtype: torch.dtype, take: Callable[[Quantized], Tensor]
) -> Stored:
    of_row = -(-shape[-1] // block)
    return Stored(of_torch(dtype), (*shape[:-1], of_row), take)
