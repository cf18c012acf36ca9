"""How ONNX says a quantized weight: what DequantizeLinear is given."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lmcast.graphs.weights.quantized import Element, Scheme

# onnx.TensorProto.DataType; of 4 bits two numbers in a byte, the first in the low half, as here.
CODES: Mapping[Element, int] = {"e2m1": 23, "e4m3": 17, "int4": 22, "int8": 3}
SCALES: Mapping[torch.dtype, int] = {
    torch.float32: 1,
    torch.float16: 10,
    torch.bfloat16: 16,
    torch.float8_e4m3fn: 17,
    torch.float8_e8m0fnu: 24,
}


@dataclass(frozen=True)
class OnnxForm:
    """Of a weight ...,N,K in its own orientation; opset 24 has all of it.

    codes, scales: data types as stored; where `twice`, those of scales are none that
    DequantizeLinear multiplies with, and another makes fp32 of them with what they share. axis:
    counted from the end, None for one scale, which is then a scalar. block_size: how many entries
    of the axis share a scale, 0 for one each: ONNX wants those scales along that axis alone. rows:
    how many rows share a scale. Where that is more than 1, and there are blocks of columns, scales
    are repeated along the rows, or values are made by Reshape and Mul.
    """

    codes: int
    scales: int
    axis: int | None
    block_size: int
    rows: int
    twice: bool


def onnx_form(scheme: Scheme) -> OnnxForm:
    """Return the form of any scheme, a format's or a checkpoint's."""
    rows, columns = scheme.block
    axis = -1 if columns else -2 if rows else None
    return OnnxForm(CODES[scheme.element], SCALES[scheme.scale], axis, columns, rows, scheme.shared)
