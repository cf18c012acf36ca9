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
    """Return new numbers B,T,G,K and the cache B,G,S,K as codes in the dtype of the new.

    held float8_e4m3fn; scale () fp32. New numbers are divided by the scale, saturated at 448 and
    rounded to nearest, ties to even. Without a scale both are what they stand for.
    """
    if scale is None:
        return fresh, held
    return round_e4m3(fresh.float() / scale).to(fresh.dtype), held.to(fresh.dtype)


def numbers(code: Tensor, scale: Tensor | None) -> Tensor:
    """Return what codes stand for, in their dtype."""
    return code if scale is None else (code.float() * scale).to(code.dtype)


def stored(code: Tensor, scale: Tensor | None) -> Tensor:
    """Return codes as they lie in the cache."""
    return code if scale is None else code.to(torch.float8_e4m3fn)


# What a body takes: all inputs, as the sink, given or not, stands before the scales.
TAKEN = """
    query, key, value, past_key, past_value, cache_lengths, token_counts, sink, key_scale,
    value_scale
"""
CODES = "key_code", "value_code", "past_key_code", "past_value_code"

UNIT = """unit_one = Constant <value_float = 1.0> ()
    unit = CastLike (unit_one, query)
    """
OPEN = """wide_{0} = Cast <to = 1> ({0})
    {0}_ratio = Div (wide_{0}, {0}_scale)
    {0}_short = QuantizeLinear <output_dtype = 17> ({0}_ratio, unit_one)
    {0}_code = DequantizeLinear ({0}_short, unit)
    past_{0}_code = DequantizeLinear (past_{0}, unit)
    """
CLOSE = """wide_{0}s = Cast <to = 1> ({1})
    scaled_{0}s = Mul (wide_{0}s, {0}_scale)
    seen_{0}s = CastLike (scaled_{0}s, query)
    next_{0} = QuantizeLinear <output_dtype = 17> ({2}, unit)
    """


def opened() -> str:
    """Return ONNX text: from TAKEN to CODES."""
    return UNIT + OPEN.format("key") + OPEN.format("value")


def closed(seen: tuple[str, str], kept: tuple[str, str]) -> str:
    """Return ONNX text behind `opened`: what the codes `seen` of keys and values stand for, as
    seen_keys and seen_values, and the codes `kept` as they lie in the cache, next_key and
    next_value."""
    given = zip(("key", "value"), seen, kept, strict=True)
    return "".join(CLOSE.format(what, *names) for what, *names in given)
