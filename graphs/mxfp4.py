"""MXFP4 as gpt-oss stores it (OCP Microscaling Formats 1.0): E2M1 numbers, a scale for every 32."""

import torch
from torch import Tensor

BLOCK_BYTES = 16  # of 32 numbers: two to a byte, the first in the low half
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BIAS = 127  # E8M0: a scale is 2 ** (byte - 127); 255 is NaN


def unpack(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks ...,G,16 uint8 and scales ...,G uint8 -> values ...,32 G in fp32, all exact."""
    table = torch.tensor([*E2M1, *(-x for x in E2M1)], dtype=torch.float32)
    halves = torch.stack([blocks & 15, blocks >> 4], -1)  # ...,G,16,2
    exponent = torch.where(scales == 255, torch.nan, scales.float() - BIAS)
    values = table[halves.int()].flatten(-2) * torch.exp2(exponent)[..., None]  # ...,G,32
    return values.flatten(-2)
