"""FP8 caches: E4M3 codes, with one scale for all of a layer's keys and one for its values. Letters:
B batch, T new tokens, S slots, G key heads, K width.

What is written to the cache, moved within it and read again are codes in the dtype of the model:
fp16 and bfloat16 represent all of E4M3, so that casts change no code. Neither the standard nor ONNX
Runtime 1.31 moves E4M3 itself, and TensorRT for RTX 1.7 only appends it.
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
