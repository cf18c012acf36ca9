"""Weights stored as Quantized has them: codes of E4M3, of pairs of E2M1 or of int8, and scales of
any shape."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcast.graphs.layouts.tensors import FLOATS, Tensors
from lmcast.graphs.weights.elements import E2M1, E4M3, INT8, Element
from lmcast.graphs.weights.quantized import (
    Block,
    Quantized,
    ReadRows,
    Scheme,
    Shapes,
    WeightError,
)

# OCP Microscaling Formats 1.0: a power of two for every 32; NVIDIA's FP4: E4M3 for every 16.
MX, NV = (1, 32), (1, 16)
NUMBERS = {
    E4M3: (torch.float8_e4m3fn,),
    E2M1: (torch.uint8, torch.int8),  # pairs in a byte
    INT8: (torch.int8,),
}


@dataclass(frozen=True)
class Stored:
    """A matrix, or a stack of them, in one tensor, with its scales in another.

    shared: one more scale, multiplied with the scales, or dividing them if `divides`.
    smooth: K factors of the inputs (ModelOpt's pre_quant_scale), multiplied into the weight.
    """

    format: Scheme
    packed: str
    scales: str
    shared: str | None = None
    divides: bool = False
    smooth: str | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        more = (self.shared, self.smooth)
        return (self.packed, self.scales, *(name for name in more if name is not None))

    @property
    def scheme(self) -> Scheme | None:
        return None if self.smooth else self.format

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        codes = shapes[self.packed]
        if len(codes) not in (2, 3):
            raise WeightError(
                f"tensor {self.packed} has shape {list(codes)}; accepted: a matrix or a stack"
            )
        shape = (*codes[:-1], codes[-1] * 8 // self.format.bits)
        accepted = scale_shapes(self.format, shape)
        require_shape(self.scales, shapes, accepted, self.packed, rule(self.format.block))
        if self.shared:
            require_shape(self.shared, shapes, [(), (1,)], self.packed, "one number")
        if self.smooth:
            require_shape(self.smooth, shapes, [shape[-1:]], self.packed, "one for each column")
        return shape

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        out = self.codes(read, begin, end).dequantize()
        return out if self.smooth is None else out.mul_(read(self.smooth, 0, None).float())

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        codes = read(self.packed, begin, end).view(torch.uint8)
        high, wide = self.format.block
        columns = codes.shape[-1] * 8 // self.format.bits
        across = -(-columns // wide) if wide else 1
        by_row = codes.dim() == 2 and high == 1
        scales = read(self.scales, begin, end) if by_row else read(self.scales, 0, None)
        if self.format.scale == torch.float8_e8m0fnu:
            scales = scales.view(self.format.scale)
        if codes.dim() == 2:
            scales = scales.reshape(-1, across)
        elif scales.numel() == 1:  # of the whole stack
            scales = scales.reshape(1, 1, 1)
        else:
            scales = scales[begin:end].reshape(end - begin, -1, across)
        shared = None if self.shared is None else read(self.shared, 0, None).reshape(())
        first = 0 if by_row or codes.dim() == 3 else begin
        return Quantized(self.format, codes, scales, shared, self.divides, first=first)


def stored(
    tensors: Tensors,
    module: str,
    element: Element,
    block: Block,
    packed: str = "weight",
    scales: str = "weight_scale",
    accepted: Collection[torch.dtype] = FLOATS,
    shared: str | None = None,
    divides: bool = False,
    smooth: str | None = None,
) -> Stored:
    """Return how a module's weight is stored, by the names of its tensors, whose dtypes fit."""
    packed, scales = f"{module}.{packed}", f"{module}.{scales}"
    tensors.dtype(packed, NUMBERS[element], module)
    scale = tensors.dtype(scales, accepted, packed)
    scale = torch.float8_e8m0fnu if scale == torch.uint8 else scale
    names = [f"{module}.{name}" if name else None for name in (shared, smooth)]
    for name, dtypes in zip(names, ((torch.float32,), FLOATS), strict=True):
        if name is not None:
            tensors.dtype(name, dtypes, packed)
    scheme = Scheme(element, block, scale, names[0] is not None)
    return Stored(scheme, packed, scales, names[0], divides, names[1])


def rule(block: Block) -> str:
    """Return in words how many numbers share a scale."""
    high, wide = block
    if high == 1:
        return f"runs of {wide} in a row" if wide else "rows"
    return f"blocks of {high} x {wide}" if high else "one block"


def scale_shapes(scheme: Scheme, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes that the scales of a weight may have."""
    blocks = scheme.scales_shape(shape)
    if scheme.block == (0, 0):
        return [(), (1,), *([blocks] if len(shape) == 3 else [(1, 1)])]
    if scheme.block == (1, 0):
        return [blocks, shape[:-1]]
    if scheme.block[0] > 1 and len(shape) == 2:  # ModelOpt keeps the axes within a block, or none
        return [blocks, (blocks[0], 1, blocks[1], 1), *([()] if blocks == (1, 1) else [])]
    return [blocks]


def require_shape(
    name: str, shapes: Shapes, accepted: list[tuple[int, ...]], packed: str, how: str
) -> None:
    """Raise WeightError where a tensor beside the codes has another shape than those accepted."""
    if shapes[name] in accepted:
        return
    shown = " or ".join(str(list(shape)) for shape in dict.fromkeys(accepted))
    raise WeightError(
        f"tensor {name} has shape {list(shapes[name])}, which does not fit {packed}"
        f" {list(shapes[packed])} in {how}; accepted: {shown}"
    )


def bytes_of(words: Tensor) -> Tensor:
    """Return the bytes of whole numbers, the lowest first, along the last axis."""
    return words.contiguous().view(torch.uint8)
