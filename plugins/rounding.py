"""Rounding to low-precision numbers, as tensors of fp32, for operators and formats alike."""

import torch
from torch import Tensor

# OCP Microscaling Formats 1.0, section 5.3.3: the values of the codes 0 to 7; bit 3 is the sign.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MOST, E4M3_MOST = 6.0, 448.0


def round_e2m1(x: Tensor) -> Tensor:
    """Return the nearest values of E2M1, ties to the even code, saturating; x is fp32."""
    size = x.abs().clamp(max=E2M1_MOST)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((size / step).round() * step, x)


def round_e4m3(x: Tensor) -> Tensor:
    """Return the nearest values of E4M3, ties to even, saturating; x is fp32."""
    return x.clamp(-E4M3_MOST, E4M3_MOST).to(torch.float8_e4m3fn).to(x.dtype)


def exponent(x: Tensor) -> Tensor:
    """Return floor(log2(x)) of positive normal fp32 numbers, exactly, as fp32."""
    return torch.frexp(x).exponent.to(x.dtype) - 1
