"""Inline the calls of all parts where states are FP8.

before: layers.3 = Layer0(x, layers.3.key.past, ...), which calls lmcast.cached_attention
after:  layers.3.mixer.cached_attention = lmcast.cached_attention(..., layers.3.key.past, ...)

ONNX Runtime 1.31 lets FP8 into a function that names an operator for it, not into one that hands it
on to another function.
"""

import onnx_ir as ir

from lmcast.exporter.passes.inline_parts import inline_parts


def inline_codes(model: ir.Model) -> int:
    short = any(value.dtype == ir.DataType.FLOAT8E4M3FN for value in model.graph.inputs)
    return inline_parts(model) if short else 0
