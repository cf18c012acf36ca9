"""A cache of keys and values in FP8: one byte a number, and one scale for all of a layer's keys and
one for its values. Letters: B batch, T new tokens, S slots, G key heads, K width.

Codes are E4M3 numbers; what is put into the cache, moved within it and taken out again are codes as
the model computes them, all of which fp16 and bfloat16 have too. Neither the standard nor ONNX
Runtime 1.31 moves E4M3 itself, and TensorRT for RTX 1.7 only appends it; a cast to its own dtype
and back changes no code.
"""

import torch
from torch import Tensor

from lmcast.plugins.rounding import round_e4m3


def codes(fresh: Tensor, held: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return new numbers B,T,G,K and the cache B,G,S,K as FP8 codes in the dtype of the new.

    The cache is float8_e4m3fn, the scale () fp32. New numbers are divided by the scale, saturated
    at 448 and rounded to nearest, ties to even. Without a scale, both are returned as they are.
    """
    if scale is None:
        return fresh, held
    return round_e4m3(fresh.float() / scale).to(fresh.dtype), held.to(fresh.dtype)


def numbers(code: Tensor, scale: Tensor | None) -> Tensor:
    """Return what codes stand for, in their dtype."""
    return code if scale is None else (code.float() * scale).to(code.dtype)


def stored(code: Tensor, scale: Tensor | None) -> Tensor:
    """Return codes in the dtype of the cache."""
    return code if scale is None else code.to(torch.float8_e4m3fn)
