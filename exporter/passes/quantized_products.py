"""Low-precision products for TensorRT: codes are multiplied first, the scale of a token last.

What a scale is multiplied with may lie on either side of a product; in front of it, the product is
one of fp16. Inputs and weight must be in one format, with a scale for each row of the weight, or
be NVFP4. Other inputs are left to their body, and their products are of fp16 or bf16.

before: y = MatMul(lmcast.quantize_input <format = "fp8"> (x), Transpose(DequantizeLinear(codes)))
after:  y = Mul(MatMul(DequantizeLinear(QuantizeLinear(Div(x, s))), Transpose(...)), s)
"""

from functools import partial

import onnx_ir as ir

from lmcast.calib.observers import MOST
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.graph.lowering import VARIANT
from lmcast.exporter.passes.rewrite import constant, insert, replace, written
from lmcast.graphs.weights.elements import E2M1, E4M3, INT8
from lmcast.plugins.onnx_builder import Builder, Value
from lmcast.plugins.plugin import DOMAIN
from lmcast.plugins.quantize.quantize_input import BLOCKS, largest, quantize_input, rotated

TRT = "trt"  # the domain of TensorRT's own operators
CODES = {name: ir.DataType(DTYPES[element.dtype].onnx)
         for name, element in (("fp8", E4M3), ("int8", INT8), ("nvfp4", E2M1))}  # fmt: skip
# Codes count in steps of this size, so that a product in fp16 is about as large as its inputs; a
# power of two, which rounds nothing.
STEP = {"fp8": 2.0**-9, "int8": 2.0**-7, "nvfp4": 2.0**-12}
BLOCK = BLOCKS["nvfp4"]


def quantized_products(model: ir.Model) -> int:
    return sum(_rewritten(model, node) for node in rounded_inputs(model))


def rounded_inputs(model: ir.Model) -> list[ir.Node]:
    """Return the calls of quantize_input, whichever of several bodies each has."""
    ours = [node for node in model.graph if node.domain == DOMAIN]
    return [n for n in ours if n.op_type.partition(VARIANT)[0] == quantize_input.name]


def _rewritten(model: ir.Model, node: ir.Node) -> bool:
    format = node.attributes["format"].as_string()
    products = [user for user, place in node.outputs[0].uses() if place == 0]
    fitting = len(products) == len(node.outputs[0].uses()) > 0
    if not fitting or not all(_alike(product, format) for product in products):
        return False
    near, back = _codes(model, node, format)
    for product in products:
        _, weight = product.inputs
        name = f"{product.name}.codes"
        (out,) = insert(model, product, "MatMul", [near, weight], name=name)
        replace(model, product, written(model, product, _grown, out, back))
    model.graph.remove(node, safe=True)
    return True


def _alike(product: ir.Node, format: str) -> bool:
    """Whether a product's weight is in the format of its inputs, and has scales that fit."""
    if product.op_type != "MatMul" or format not in CODES:
        return False
    weight = product.inputs[1]
    while (node := weight.producer() if weight else None) and node.op_type in ("Transpose", "Cast"):
        weight = node.inputs[0]
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return False
    blocks = node.attributes.get("block_size")
    wanted = BLOCK if format == "nvfp4" else 0
    return node.inputs[0].dtype == CODES[format] and (blocks.as_int() if blocks else 0) == wanted


def _grown(op: Builder, product: Value, back: Value) -> Value:
    return op.CastLike(op.Cast(product, to=ir.DataType.FLOAT) * back, product)


def _codes(model: ir.Model, node: ir.Node, format: str) -> list[ir.Value]:
    """Return the rounded inputs in steps, and the factors of products with them."""
    x, *scale = node.inputs
    assert x is not None and x.dtype is not None
    step = constant(model, node, STEP[format], ir.DataType.FLOAT, f"{node.name}.step")
    write = partial(
        _rounded, format=format, dtype=x.dtype, rotation=node.attributes["rotation"].as_int()
    )
    near, back = written(model, node, write, x, step, *scale)
    if format == "nvfp4":
        near = _nvfp4(model, node, near, step, x)
    near.type, near.shape = x.type, x.shape
    return [near, back]


def _rounded(
    op: Builder, x: Value, step: Value, scale: Value | None = None, *, format: str,
    dtype: ir.DataType, rotation: int,
) -> tuple[Value, Value]:  # fmt: skip
    """NVFP4 is not rounded here: an operator of TensorRT's does that."""
    wide = rotated(op, op.Cast(x, to=ir.DataType.FLOAT), rotation)
    factor = largest(op, wide) / MOST[format] if scale is None else scale
    if format == "nvfp4":
        return wide / factor * step, factor / step
    codes = op.QuantizeLinear(wide / factor, 1.0, output_dtype=CODES[format])
    return op.DequantizeLinear(codes, step, output_dtype=dtype), factor / step


def _nvfp4(
    model: ir.Model, node: ir.Node, ratio: ir.Value, step: ir.Value, x: ir.Value
) -> ir.Value:
    """Return numbers rounded to NVFP4, whose block scales are multiplied with the step."""
    attributes = {"axis": -1, "block_size": BLOCK, "scale_type": int(ir.DataType.FLOAT8E4M3FN)}
    codes, scales = insert(
        model, node, "TRT_FP4DynamicQuantize", [ratio, step], attributes,
        name=f"{node.name}.blocks", outputs=2, domain=TRT,
    )  # fmt: skip
    (wide,) = insert(model, node, "DequantizeLinear", [scales, step], name=f"{node.name}.scales")
    blocked = {"axis": -1, "block_size": BLOCK}
    (near,) = insert(model, node, "DequantizeLinear", [codes, wide], blocked, name=f"{node.name}.n")
    (out,) = insert(model, node, "CastLike", [near, x], name=f"{node.name}.near")
    return out
