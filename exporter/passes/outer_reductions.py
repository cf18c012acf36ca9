"""Reduce along the last axis, where ONNX Runtime has kernels of its own.

before: ReduceMean <keepdims = 0> (x, [-2])
after:  ReduceMean <keepdims = 0> (Transpose(x), [-1])

An axis between others goes to cuDNN, a library that is needed for nothing else.
"""

from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lmcast.exporter.passes.rewrite import constant, insert, nodes_of, replace


def outer_reductions(model: ir.Model) -> int:
    found = list(nodes_of(model, "ReduceMean", "ReduceSum"))
    if any(node.inputs[0] is not None and node.inputs[0].shape is None for node in found):
        ShapeInferencePass()(model)  # not all that a trace has cast has a shape
    return sum(_rewritten(model, node) for node in found)


def _rewritten(model: ir.Model, node: ir.Node) -> bool:
    x, axes = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    tensor = ir.convenience.get_const_tensor(axes) if axes is not None else None
    if x is None or x.shape is None or tensor is None or tensor.size != 1:
        return False
    rank = len(x.shape)
    axis = int(tensor.numpy().reshape(-1)[0]) % rank
    kept = node.attributes.get("keepdims")
    if axis in (0, rank - 1) or kept is None or kept.as_int():
        return False
    name, order = str(node.name), [*(i for i in range(rank) if i != axis), axis]
    (turned,) = insert(model, node, "Transpose", [x], {"perm": order}, name=f"{name}.turned")
    turned.type, turned.shape = x.type, ir.Shape([x.shape[i] for i in order])
    last = constant(model, node, [-1], ir.DataType.INT64, f"{name}.last")
    given: dict[str, Any] = {"keepdims": 0}
    replace(model, node, insert(model, node, node.op_type, [turned, last], given, name=name))
    return True
