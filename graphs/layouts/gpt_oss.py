"""MXFP4 as gpt-oss stores it: stacks of experts in bytes of two numbers, 16 for every scale."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lmcast.graphs.layouts.stored import MX
from lmcast.graphs.layouts.tensors import E8M0, Found, Tensors
from lmcast.graphs.weights.elements import E2M1
from lmcast.graphs.weights.quantized import Quantized, ReadRows, Scheme, Shapes, WeightError

BLOCK_BYTES = 16  # of 32 numbers: two to a byte, the first in the low half
BLOCKS, SCALES = "_blocks", "_scales"
MXFP4 = Scheme(E2M1, MX, torch.float8_e8m0fnu)


@dataclass(frozen=True)
class Blocks16:
    """Bytes ...,N,G,16 and scales ...,N,G: values ...,N,32 G."""

    packed: str
    scales: str

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.packed, self.scales)

    @property
    def format(self) -> Scheme:
        return MXFP4

    @property
    def scheme(self) -> Scheme:
        return MXFP4

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        codes, scales = shapes[self.packed], shapes[self.scales]
        if codes != (*scales, BLOCK_BYTES):
            raise WeightError(
                f"tensor {self.packed} has shape {list(codes)}, which does not fit {self.scales}"
                f" {list(scales)}: accepted are {BLOCK_BYTES} bytes for each scale"
            )
        return (*scales[:-1], scales[-1] * 2 * BLOCK_BYTES)

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        return self.codes(read, begin, end).dequantize()

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        scales = read(self.scales, begin, end).view(torch.float8_e8m0fnu)
        return Quantized(MXFP4, read(self.packed, begin, end).flatten(-2), scales)


@dataclass(frozen=True, kw_only=True)
class Mxfp4Settings:
    """A quantization_config of MXFP4; which tensors are stored so, their names tell."""

    quant_method: Literal["mxfp4"]
    modules_to_not_convert: tuple[str, ...] | None = None

    def find(self, tensors: Tensors) -> Found:
        """Return the stacks of experts, by the names of their bytes."""
        layouts = {}
        for name in [name for name in tensors.shapes if name.endswith(BLOCKS)]:
            scales = f"{name.removesuffix(BLOCKS)}{SCALES}"
            tensors.dtype(name, (torch.uint8,))
            tensors.dtype(scales, E8M0, name)
            layouts[name] = Blocks16(name, scales)
        return Found(layouts)
