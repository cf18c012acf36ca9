"""Quantized weights in one form, whatever their file format: codes, and scales of blocks.

Letters: ... a stack's axis or none, N rows (output features), K columns (input features).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lmcast.graphs.weights.elements import E2M1, E4M3, Element
from lmcast.plugins.errors import InputError

Block = tuple[int, int]  # rows and columns that share a scale; 0: all there are
ReadRows = Callable[[str, int, int | None], Tensor]  # tensor, first row of axis 0, end (None: all)
Shapes = Mapping[str, tuple[int, ...]]


class WeightError(InputError):
    """Tensors that do not fit the definition."""


@dataclass(frozen=True)
class Scheme:
    """A quantization scheme: the element, and which numbers share a scale.

    shared: block scales are themselves multiplied with one fp32 scale (NVFP4). zeros: blocks have
    zero points. over: so many columns share a factor of their block scales, and of their minima;
    0: none do. least: of blocks that have minima, the code that stands for the minimum, below 0:
    a number is minimum + scale * (code - least); 0: none have. label: a name of its own.
    """

    element: Element
    block: Block
    scale: torch.dtype
    shared: bool = False
    zeros: bool = False
    over: int = 0
    least: int = 0
    label: str = ""

    @property
    def bits(self) -> int:
        return self.element.bits

    @property
    def name(self) -> str:
        """The short name of the scheme: 'nvfp4', 'mxfp8', 'fp8', 'int4', 'Q4_K'."""
        if self.label:
            return self.label
        if self.element == E2M1:
            return "nvfp4" if self.shared else "mxfp4"
        if self.element == E4M3:
            small = self.scale == torch.float8_e8m0fnu and self.block == (1, 32)
            return "mxfp8" if small else "fp8"
        return self.element.name

    def codes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in bytes of a weight's codes."""
        return (*shape[:-1], shape[-1] * self.bits // 8)

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of blocks along every axis; the last may be partial."""
        rows, columns = shape[-2:]
        high, wide = self.block[0] or rows, self.block[1] or columns
        return (*shape[:-2], -(-rows // high), -(-columns // wide))

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Return the size of a weight of this shape with its scales."""
        stack = math.prod(shape[:-2]) * 4 if self.shared else 0
        blocks = math.prod(self.scales_shape(shape)) * (self.scale.itemsize + self.zeros)
        return math.prod(self.codes_shape(shape)) + blocks + stack


@dataclass(frozen=True)
class Quantized:
    """A quantized weight, or rows of it.

    codes: uint8; ...,N,K for 8 bits, ...,N,K/2 for 4 bits with the first number in the low half;
        integers are in two's complement.
    scales: one for each block, as stored.
    shared: fp32 (...,1,1) or (); multiplies the scales, or divides them if `divides`. Of runs of
        `over` columns: ...,N,S, multiplies.
    zeros: zero points as numbers, in the shape of the scales.
    first: the row of its block that the codes begin at, where the scales are those of the whole
        weight.
    minima, shared_minima: of blocks, as scales and shared.
    """

    scheme: Scheme
    codes: Tensor
    scales: Tensor
    shared: Tensor | None = None
    divides: bool = False
    zeros: Tensor | None = None
    first: int = 0
    minima: Tensor | None = None
    shared_minima: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], self.codes.shape[-1] * 8 // self.scheme.bits)

    def factors(self) -> Tensor:
        """Return the factor of every block, fp32."""
        if self.shared is None or not self.divides:
            return _times(self.scales, self.shared)
        return self.scales.float() / self.shared.float()

    def offsets(self) -> Tensor:
        """Return the minimum of every block, fp32."""
        assert self.minima is not None
        return _times(self.minima, self.shared_minima)

    def dequantize(self) -> Tensor:
        """Return the values ...,N,K in fp32, every product and sum rounded once."""
        out = self.scheme.element.decode(self.codes)
        if self.zeros is not None:
            out = out - self.spread(self.zeros.float())
        if self.minima is None:
            return out.mul_(self.spread(self.factors()))
        out = (out - self.scheme.least).mul_(self.spread(self.factors()))
        return out.add_(self.spread(self.offsets()))

    def spread(self, blocks: Tensor) -> Tensor:
        """Broadcast numbers of blocks to values: ...,N,K or what broadcasts to it."""
        rows, columns = self.shape[-2:]
        high, wide = self.scheme.block
        if high > 1:
            places = (torch.arange(rows, device=blocks.device) + self.first) // high
            blocks = blocks[..., places, :]
        if wide:
            blocks = blocks.repeat_interleave(wide, -1)[..., :columns]
        return blocks


def _times(blocks: Tensor, shared: Tensor | None) -> Tensor:
    """Return numbers of blocks ...,G times what runs of them share, fp32."""
    if shared is None:
        return blocks.float()
    if shared.dim() < 2:
        return blocks.float() * shared.float()
    runs = blocks.float().unflatten(-1, (shared.shape[-1], -1))
    return (runs * shared.float()[..., None]).flatten(-2)


class Layout(Protocol):
    """How a checkpoint stores one quantized weight."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all that is read; that of the codes first."""
        ...

    @property
    def format(self) -> Scheme:
        """How the numbers are stored."""
        ...

    @property
    def scheme(self) -> Scheme | None:
        """The scheme of what `codes` returns; None where only dequantized values are available."""
        ...

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of the weight; raises WeightError where the tensors do not fit."""
        ...

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        """Return entries of axis 0 of the weight, dequantized: fp32."""
        ...

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        """Return entries of axis 0 of the weight, quantized."""
        ...


@dataclass(frozen=True)
class Blocks:
    """Quantized itself, in up to three tensors: what `lmcast calibrate` writes."""

    scheme: Scheme
    packed: str
    scales: str
    shared: str | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.packed, self.scales, *([self.shared] if self.shared else []))

    @property
    def format(self) -> Scheme:
        return self.scheme

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        codes = shapes[self.packed]
        shape = (*codes[:-1], codes[-1] * 8 // self.scheme.bits)
        accepted = self.scheme.scales_shape(shape)
        if shapes[self.scales] != accepted:
            raise WeightError(
                f"tensor {self.scales} has shape {list(shapes[self.scales])}, which does not fit"
                f" {self.packed} {list(codes)}; accepted: {list(accepted)}"
            )
        return shape

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        return self.codes(read, begin, end).dequantize()

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        codes = read(self.packed, begin, end)
        shared = read(self.shared, 0, None) if self.shared else None
        if codes.dim() == 3 and shared is not None:
            shared = shared[begin:end]
        high = self.scheme.block[0]
        if codes.dim() == 2 and high != 1:
            scales = read(self.scales, 0, None)
            return Quantized(self.scheme, codes, scales, shared, first=begin if high else 0)
        return Quantized(self.scheme, codes, read(self.scales, begin, end), shared)
