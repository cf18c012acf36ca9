"""The number formats of quantized codes, one record each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmcast.plugins import rounding


@dataclass(frozen=True)
class Element:
    """A low-precision number format.

    name: in schemes and recipes.
    dtype: the name that other libraries use.
    values: of every code.
    integer: codes are two's complement integers, not the bits of a float.
    """

    name: str
    dtype: str
    integer: bool
    values: tuple[float, ...] = field(repr=False, compare=False)

    @property
    def bits(self) -> int:
        return len(self.values).bit_length() - 1

    @property
    def signs(self) -> int:
        """A byte with the sign bits of its codes: adding it turns two's complement into offset
        binary."""
        return 0x88 if self.bits == 4 else 0x80

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest integer."""
        assert self.integer, self.name
        half = len(self.values) // 2
        return -half, half - 1

    def table(self) -> Tensor:
        """Return the number that each code stands for: 16 or 256 in fp32."""
        return torch.tensor(self.values)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the fp32 numbers of uint8 codes; of 4-bit codes, two for each byte."""
        table = self.table()
        if self.bits == 8:
            return table.index_select(0, codes.flatten().int()).reshape(codes.shape)
        # A byte is two numbers: one look-up for both, of their 64 bits.
        both = torch.stack([table.repeat(16), table.repeat_interleave(16)], -1).view(torch.int64)
        found = both[:, 0].index_select(0, codes.flatten().int())
        return found.view(torch.float32).reshape(*codes.shape[:-1], -1)

    def pack(self, codes: Tensor) -> Tensor:
        """Pack codes, one in a byte, as they are stored: 4-bit codes in pairs along the last axis,
        with a 0 after an odd one."""
        if self.bits == 8:
            return codes
        return pairs(torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)))


def pairs(codes: Tensor) -> Tensor:
    """Return bytes of two codes of 4 bits each, the first in the low half: ...,2C -> ...,C."""
    return (codes[..., ::2] & 15) | (codes[..., 1::2] & 15) << 4


def halves(packed: Tensor) -> Tensor:
    """Return the codes 0 to 15 in bytes, the low half first: ...,C -> ...,2C."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def _integers(bits: int) -> tuple[float, ...]:
    half = 1 << (bits - 1)
    return tuple(float(code if code < half else code - 2 * half) for code in range(2 * half))


E2M1 = Element(
    "e2m1", "float4_e2m1fn", False, (*rounding.E2M1, *(-number for number in rounding.E2M1))
)
E4M3 = Element(
    "e4m3", "float8_e4m3fn", False,
    tuple(torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float().tolist()),
)  # fmt: skip
INT4 = Element("int4", "int4", True, _integers(4))
INT8 = Element("int8", "int8", True, _integers(8))
ELEMENTS: Mapping[str, Element] = {element.name: element for element in (E2M1, E4M3, INT4, INT8)}
