"""Compute in fp32 what ONNX Runtime's kernels of GPUs do not take in bfloat16.

before: Pad(keys, pads), of bfloat16
after:  Cast(Pad(Cast(keys), pads))
"""

from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lmcast.exporter.passes.rewrite import insert, nodes_of, replace

# Those of ONNX Runtime 1.31's CUDA provider that are registered for fp16 and fp32 alone.
LACKING = (
    "ArgMax", "Clip", "CumSum", "Equal", "Floor", "Greater", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "LogSoftmax", "Pad", "Reciprocal", "ReduceL2", "ReduceMax",
)  # fmt: skip
SHORT, WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def wide_operators(model: ir.Model) -> int:
    found = list(nodes_of(model, *LACKING))
    if any(value is not None and value.dtype is None for node in found for value in node.inputs):
        ShapeInferencePass()(model)  # bodies have no types
    return sum(_rewritten(model, node) for node in found)


def _rewritten(model: ir.Model, node: ir.Node) -> bool:
    if not any(value is not None and value.dtype == SHORT for value in node.inputs):
        return False
    name = str(node.name)

    def wide(value: ir.Value | None, place: int) -> ir.Value | None:
        if value is None or value.dtype != SHORT:
            return value
        label = f"{name}.wide.{place}"
        (out,) = insert(model, node, "Cast", [value], {"to": WIDE}, name=label)
        out.type, out.shape = ir.TensorType(WIDE), value.shape
        return out

    inputs = [wide(value, place) for place, value in enumerate(node.inputs)]
    given: dict[str, Any] = {n: a.value for n, a in node.attributes.items()}
    (out,) = insert(model, node, node.op_type, inputs, given, name=f"{name}.in_fp32")
    if node.outputs[0].dtype == SHORT:
        (out,) = insert(model, node, "Cast", [out], {"to": SHORT}, name=name)
    replace(model, node, [out])
    return True
