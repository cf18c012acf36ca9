"""The numbers of llama.cpp (ggml), as GGUF files hold them: rows of blocks, each with its scales.

Letters: n rows, S blocks of a row, b bytes of a block, W numbers of one, g runs of it with a scale.

Formulas are those of ggml-quants.c. A number is scale * code, or minimum + scale * code; scales and
minima of the larger blocks are whole numbers of few bits times one of two numbers in fp16.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmcast.graphs.weights.elements import INT4, INT8, Element
from lmcast.graphs.weights.quantized import Quantized, ReadRows, Scheme, Shapes, WeightError

SUPER = 256  # numbers of a larger block
# IQ4_NL and IQ4_XS: what each code of 4 bits stands for.
NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Unpacked:
    """Blocks taken apart: codes n,S,W (int8, or uint8 below 128), scales and minima n,S,g, and what
    those are multiplied with n,S,1."""

    codes: Tensor
    scales: Tensor
    minima: Tensor | None = None
    shared: Tensor | None = None
    shared_minima: Tensor | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of numbers: its blocks of `size` bytes, each of `width` numbers, and how they are
    taken apart, n,S,b uint8."""

    scheme: Scheme
    width: int
    size: int
    unpack: Callable[[Tensor], Unpacked]


@dataclass(frozen=True)
class Blocks:
    """A matrix of one kind: bytes n,S * b in one tensor."""

    tensor: str
    kind: Kind

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.tensor,)

    @property
    def format(self) -> Scheme:
        return self.kind.scheme

    @property
    def scheme(self) -> Scheme:
        return self.kind.scheme

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        rows, size = shapes[self.tensor]
        if size % self.kind.size:
            raise WeightError(
                f"tensor {self.tensor} has rows of {size} bytes; accepted: multiples of"
                f" {self.kind.size}, a block of {self.kind.scheme.name}"
            )
        return rows, size // self.kind.size * self.kind.width

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        return self.codes(read, begin, end).dequantize()

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        scheme, raw = self.kind.scheme, read(self.tensor, begin, end)
        found = self.kind.unpack(raw.unflatten(-1, (-1, self.kind.size)))
        whole = found.codes.view(torch.int8) + scheme.least
        flat = [
            None if part is None else part.flatten(-2)
            for part in (found.scales, found.shared, found.minima, found.shared_minima)
        ]
        scales, shared, minima, shared_minima = flat
        assert scales is not None
        return Quantized(
            scheme,
            scheme.element.pack(whole.flatten(-2).view(torch.uint8)),
            scales,
            shared,
            minima=minima,
            shared_minima=shared_minima,
        )


def _half(raw: Tensor, at: int) -> Tensor:
    """Return the number in fp16 that begins at a byte: n,S,1."""
    return raw[..., at : at + 2].contiguous().view(torch.float16)


def _fields(raw: Tensor, bits: int, run: int, first: int = 0) -> Tensor:
    """Return fields of `bits` bits: of runs of bytes first all lowest fields, then the next, from
    bit `first` of a byte on."""
    shifts = torch.arange(first, 8, bits, dtype=torch.uint8)[:, None]
    parts = raw.unflatten(-1, (-1, 1, run)) >> shifts
    return (parts & ((1 << bits) - 1)).flatten(-3)


def _bits(raw: Tensor) -> Tensor:
    """Return the bits of bytes, one after the other."""
    return (raw[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)


def _less(codes: Tensor, middle: int) -> Tensor:
    return codes.view(torch.int8) - middle


def _q4_0(raw: Tensor) -> Unpacked:
    return Unpacked(_less(_fields(raw[..., 2:], 4, 16), 8), _half(raw, 0))


def _q4_1(raw: Tensor) -> Unpacked:
    return Unpacked(_fields(raw[..., 4:], 4, 16), _half(raw, 0), _half(raw, 2))


def _five(low: Tensor, high: Tensor) -> Tensor:
    return _fields(low, 4, 16) | _bits(high) << 4


def _q5_0(raw: Tensor) -> Unpacked:
    return Unpacked(_less(_five(raw[..., 6:], raw[..., 2:6]), 16), _half(raw, 0))


def _q5_1(raw: Tensor) -> Unpacked:
    return Unpacked(_five(raw[..., 8:], raw[..., 4:8]), _half(raw, 0), _half(raw, 2))


def _q8_0(raw: Tensor) -> Unpacked:
    return Unpacked(raw[..., 2:].contiguous().view(torch.int8), _half(raw, 0))


def _q2_k(raw: Tensor) -> Unpacked:
    factors = raw[..., :16]
    codes = _fields(raw[..., 16:80], 2, 32)
    return Unpacked(codes, factors & 15, factors >> 4, _half(raw, 80), -_half(raw, 82))


def _q3_k(raw: Tensor) -> Unpacked:
    low, high, factors = _fields(raw[..., 32:96], 2, 32), raw[..., :32], raw[..., 96:108]
    codes = _less(low | _fields(high, 1, 32) << 2, 4)
    scales = _fields(factors[..., :8], 4, 8) | _fields(factors[..., 8:], 2, 4) << 4
    return Unpacked(codes, _less(scales, 32), shared=_half(raw, 108))


def _six_bits(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return eight scales and eight minima from 12 bytes."""
    scales, minima, both = factors.chunk(3, -1)
    return (
        torch.cat([scales & 63, both & 15 | scales >> 2 & 48], -1),
        torch.cat([minima & 63, both >> 4 | minima >> 2 & 48], -1),
    )


def _q4_k(raw: Tensor) -> Unpacked:
    codes = _fields(raw[..., 16:], 4, 32)
    return Unpacked(codes, *_six_bits(raw[..., 4:16]), _half(raw, 0), -_half(raw, 2))


def _q5_k(raw: Tensor) -> Unpacked:
    codes = _fields(raw[..., 48:], 4, 32) | _fields(raw[..., 16:48], 1, 32) << 4
    return Unpacked(codes, *_six_bits(raw[..., 4:16]), _half(raw, 0), -_half(raw, 2))


def _q6_k(raw: Tensor) -> Unpacked:
    codes = _fields(raw[..., :128], 4, 64) | _fields(raw[..., 128:192], 2, 32) << 4
    scales = raw[..., 192:208].contiguous().view(torch.int8)
    return Unpacked(_less(codes, 32), scales, shared=_half(raw, 208))


def _nonlinear(raw: Tensor) -> Tensor:
    return torch.tensor(NONLINEAR, dtype=torch.int8)[_fields(raw, 4, 16).int()]


def _iq4_nl(raw: Tensor) -> Unpacked:
    return Unpacked(_nonlinear(raw[..., 2:]), _half(raw, 0))


def _iq4_xs(raw: Tensor) -> Unpacked:
    high = (raw[..., 2:4, None] >> torch.arange(0, 8, 2, dtype=torch.uint8) & 3).flatten(-2)
    low = (raw[..., 4:8, None] >> torch.arange(0, 8, 4, dtype=torch.uint8) & 15).flatten(-2)
    return Unpacked(_nonlinear(raw[..., 8:]), _less(low | high << 4, 32), shared=_half(raw, 0))


def _kind(
    label: str,
    element: Element,
    size: int,
    unpack: Callable[[Tensor], Unpacked],
    least: int = 0,
) -> Kind:
    """One scale in fp16 for each block of 32."""
    return Kind(Scheme(element, (1, 32), torch.float16, least=least, label=label), 32, size, unpack)


def _of_super(kind: Kind, run: int, scale: torch.dtype) -> Kind:
    """The same in larger blocks, of which runs of so many numbers have scales of this dtype."""
    scheme = replace(kind.scheme, block=(1, run), scale=scale, over=SUPER)
    return replace(kind, scheme=scheme, width=SUPER)


# Codes of 5 and 6 bits, and those of the tables, take 8 here: no kernel takes fewer.
KINDS: Mapping[str, Kind] = {
    kind.scheme.label: kind
    for kind in (
        _kind("Q4_0", INT4, 18, _q4_0),
        _kind("Q4_1", INT4, 20, _q4_1, least=-8),
        _kind("Q5_0", INT8, 22, _q5_0),
        _kind("Q5_1", INT8, 24, _q5_1, least=-16),
        _kind("Q8_0", INT8, 34, _q8_0),
        _of_super(_kind("Q2_K", INT4, 84, _q2_k, least=-2), 16, torch.uint8),
        _of_super(_kind("Q3_K", INT4, 110, _q3_k), 16, torch.int8),
        _of_super(_kind("Q4_K", INT4, 144, _q4_k, least=-8), 32, torch.uint8),
        _of_super(_kind("Q5_K", INT8, 176, _q5_k, least=-16), 32, torch.uint8),
        _of_super(_kind("Q6_K", INT8, 210, _q6_k), 16, torch.int8),
        _kind("IQ4_NL", INT8, 18, _iq4_nl),
        _of_super(_kind("IQ4_XS", INT8, 136, _iq4_xs), 32, torch.int8),
    )
}
