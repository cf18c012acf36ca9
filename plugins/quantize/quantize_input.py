"""Fake quantization of the inputs of a product: rounded to a low-precision format, and back.

Letters: ... any axes, K the axis that is multiplied over.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Value
from lmcast.plugins.plugin import Close, Plugin
from lmcast.plugins.rounding import E2M1_MOST, E4M3_MOST, exponent, round_e2m1, round_e4m3

# Format -> how many neighbours share a scale; 0: all of a token, or of everything if it is given.
BLOCKS = {"fp8": 0, "int8": 0, "mxfp8": 32, "mxfp4": 32, "nvfp4": 16}
LEAST = 2.0**-100  # instead of a largest value of 0


def eager(x: Tensor, scale: Tensor | None, format: str, rotation: int) -> Tensor:
    """Round x ...,K to the values that `format` has; the shape and dtype stay.

    scale: () fp32 or None: the static scale of 'fp8' and 'int8', or what block scales of 'nvfp4'
        are divided by; None: from the largest value of each token.
    rotation: a power of two or 0 (none): each run of this many neighbours is first multiplied with
        a normalized Hadamard matrix, as the weight's columns were.
    """
    wide = x.float()
    if rotation:
        wide = wide.unflatten(-1, (-1, rotation)) @ hadamard(rotation).to(x.device)
        wide = wide.flatten(-2)
    block = BLOCKS[format]
    grouped = wide.unflatten(-1, (-1, block)) if block else wide[..., None, :]  # ...,G,block
    most = grouped.abs().amax(-1, keepdim=True).clamp(min=LEAST)
    if format == "mxfp8":  # rounded up: no value saturates
        ratio = most / E4M3_MOST
        floor = torch.exp2(exponent(ratio))
        factor = torch.where(floor < ratio, 2 * floor, floor)
        out = round_e4m3(grouped / factor) * factor
    elif format == "mxfp4":  # up from 1.75 times a power of two, where 7 would become 6
        factor = torch.exp2(exponent(most * (8 / 7)) - 2)
        out = round_e2m1(grouped / factor) * factor
    elif format == "nvfp4":
        top = most.amax(-2, keepdim=True) / (E2M1_MOST * E4M3_MOST) if scale is None else scale
        factor = round_e4m3(most / E2M1_MOST / top).clamp(min=2.0**-9) * top
        out = round_e2m1(grouped / factor) * factor
    elif format == "fp8":
        factor = most / E4M3_MOST if scale is None else scale
        out = round_e4m3(grouped / factor) * factor
    else:
        factor = most / 127 if scale is None else scale
        out = (grouped / factor).round().clamp(-128, 127) * factor
    return out.flatten(-2).to(x.dtype)


def hadamard(size: int) -> Tensor:
    """Return Sylvester's matrix of a power of two, orthonormal and symmetric: size,size fp32."""
    out = torch.ones(1, 1)
    while len(out) < size:
        out = torch.cat([torch.cat([out, out], 1), torch.cat([out, -out], 1)])
    return out / math.sqrt(size)


def shapes(x: Tensor, scale: Tensor | None, format: str, rotation: int) -> Tensor:
    return torch.empty_like(x)


def body(
    op: Builder, x: Value, scale: Value | None, format: Attribute, rotation: Attribute
) -> Value:
    kind, block = format.value, BLOCKS[format.value]
    wide = rotated(op, op.Cast(x, to=DataType.FLOAT), rotation.value)
    lead = op.Shape(x, start=0, end=-1)
    grouped = op.reshape(wide, lead, *((-1, block) if block else (1, -1)))  # ...,G,block
    if scale is not None and kind in ("fp8", "int8"):
        factor = scale
    else:
        factor = factor_of(op, kind, largest(op, grouped), scale)
    ratio = grouped / factor
    if kind in ("mxfp4", "nvfp4"):
        near = near_e2m1(op, ratio)
    else:
        near = near_code(op, ratio, DataType.INT8 if kind == "int8" else DataType.FLOAT8E4M3FN)
    return op.CastLike(op.Reshape(near * factor, op.Shape(x)), x)


def largest(op: Builder, grouped: Value) -> Value:
    """Return the largest absolute value along the last axis, which stays, at least LEAST."""
    return op.Max(op.ReduceMax(op.Abs(grouped), [-1]), LEAST)


def factor_of(op: Builder, format: str, most: Value, scale: Value | None) -> Value:
    """Return what groups are divided by, from their largest values ...,G,1."""
    if format == "mxfp4":
        return op.Div(floor_power(op, most * (8 / 7)), 4.0)
    if format == "mxfp8":
        ratio = most / E4M3_MOST
        floor = floor_power(op, ratio)
        return op.Where(floor < ratio, floor * 2.0, floor)
    if format == "nvfp4":
        if scale is None:
            scale = op.ReduceMax(most, [-2]) / (E2M1_MOST * E4M3_MOST)
        # Block scales are E4M3 themselves, at least its smallest number.
        return (
            op.Max(near_code(op, most / E2M1_MOST / scale, DataType.FLOAT8E4M3FN), 2.0**-9) * scale
        )
    return most / (127.0 if format == "int8" else E4M3_MOST)


def floor_power(op: Builder, of: Value) -> Value:
    """Return floor(log2(of)) as a power of two: a logarithm may be off by one next to the powers
    themselves."""
    guess = op.Pow(2.0, op.Floor(op.Log(of) / math.log(2)))
    raised = op.Where(guess * 2.0 <= of, guess * 2.0, guess)
    return op.Where(op.Greater(guess, of), guess / 2.0, raised)


def near_code(op: Builder, ratio: Value, dtype: DataType) -> Value:
    """Return the nearest values that a dtype has, in fp32."""
    return op.DequantizeLinear(op.QuantizeLinear(ratio, 1.0, output_dtype=dtype), 1.0)


def near_e2m1(op: Builder, ratio: Value) -> Value:
    size = op.Min(op.Abs(ratio), E2M1_MOST)
    coarse = op.Where(size < 4.0, 1.0, 2.0)
    step = op.Where(size < 2.0, 0.5, coarse)
    return op.Round(size / step) * step * op.Sign(ratio)


def rotated(op: Builder, wide: Value, rotation: int) -> Value:
    """Return fp32 ...,K with each `rotation` neighbours rotated; 0: none."""
    if not rotation:
        return wide
    matrix = op.constant(hadamard(rotation).numpy())
    runs = op.reshape(wide, op.Shape(wide, start=0, end=-1), -1, rotation)
    return op.Reshape(runs @ matrix, op.Shape(wide))


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    plain = [(torch.randn(2, 3, 64), None, format, 0) for format in BLOCKS]
    fixed = [(torch.randn(3, 32), torch.tensor(s), f, 0) for f, s in (
        ("fp8", 0.01), ("int8", 0.03), ("nvfp4", 0.002),
    )]  # fmt: skip
    rotations = [(torch.randn(1, 5, 64), None, format, 32) for format in ("fp8", "mxfp4")]
    # Zeros, a block of zeros, and a range that saturates.
    edges = torch.zeros(2, 64)
    edges[0, :6] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 7.0])
    edges[1, 3] = 1e-30
    return [*plain, *fixed, *rotations, *((edges, None, format, 0) for format in BLOCKS)]


quantize_input = Plugin(
    name="quantize_input",
    eager=eager,
    shapes=shapes,
    body=body,
    cases=cases,
    # 4 fp32 epsilons of a value near 4; a sum in another order may move a rotated value to the next
    # code, which the cases do not have.
    close={torch.float32: Close(2e-6)},
)
