"""FP8 checkpoints: E4M3 numbers, and a scale for every block of a matrix or for the whole of it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Block = tuple[int, int]  # rows and columns that share a scale
SCALE = "_scale_inv"  # behind the name of a tensor; it multiplies, whatever it is called
ACTIVATION = "activation_scale"  # of the inputs of a weight: where it ends the name, it is that
RUN_VALUES = 1 << 20  # in fp32 4 MiB: what is dequantized at a time

# What the numbers and the scales may be stored as.
NUMBERS = frozenset({torch.float8_e4m3fn})
SCALES = frozenset({torch.float32, torch.bfloat16, torch.float8_e8m0fnu})


@dataclass(frozen=True, kw_only=True)
class Fp8Settings:
    """A quantization_config of FP8; which tensors are stored so, their scales tell."""

    quant_method: Literal["fp8"]
    fmt: Literal["e4m3", "float8_e4m3fn"] = "e4m3"
    weight_block_size: tuple[int, ...] | None = None  # without one, a tensor has one scale
    scale_fmt: Literal["float", "ue8m0"] = "float"  # a promise: also fp32 holds powers of two
    expert_dtype: Literal["fp8"] = "fp8"
    activation_scheme: Literal["dynamic", "static"] = "dynamic"  # static: their scales are stored
    modules_to_not_convert: tuple[str, ...] | None = None
    ignored_layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        block = self.weight_block_size
        if block is not None and (len(block) != 2 or min(block) < 1):
            raise ValueError(f"weight_block_size is {list(block)}; accepted: two numbers from 1")

    @property
    def block(self) -> Block | None:
        block = self.weight_block_size
        return None if block is None else (block[0], block[1])


def activation_scale(tensor: str) -> str:
    """Return the name of what static quantization divides the inputs of a weight by."""
    module = tensor.removesuffix(".weight")
    return f"{module}.{ACTIVATION}" if module != tensor else f"{tensor}_{ACTIVATION}"


def scale_shapes(shape: tuple[int, ...], block: Block | None) -> list[tuple[int, ...]]:
    """Return the shapes that the scales of a tensor may have; the last blocks may be partial."""
    if block is None:
        return [(), (1,), *([(shape[0], 1, 1)] if len(shape) == 3 else [])]
    if len(shape) not in (2, 3):
        return []
    rows, columns = block
    return [(*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))]


def dequantize(values: Tensor, scales: Tensor, block: Block | None, first: int = 0) -> Tensor:
    """values ...,N,K float8_e4m3fn times scales -> fp32, every product rounded once.

    `values` may be a run of axis 0 that begins at `first`; `scales` are those of the whole tensor.
    """
    # Far faster than a conversion, and as exact.
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = values.view(torch.uint8).int().flatten()
    out = table.index_select(0, codes).reshape(values.shape)
    factors = scales.float()
    if factors.dim() == 3:  # a stack: axis 0 is the same in both
        factors = factors[first : first + values.shape[0]]
        first = 0
    if block is None:
        return out.mul_(factors)
    rows, columns = block
    wide = factors[..., (torch.arange(values.shape[-2]) + first) // rows, :]  # ...,N,blocks
    full = values.shape[-1] // columns
    whole, rest = out[..., : full * columns], out[..., full * columns :]
    whole.unflatten(-1, (full, columns)).mul_(wide[..., :full, None])
    rest.mul_(wide[..., full:])
    return out
