"""Multiply with the weight of a norm within the norm.

before: Mul(RMSNormalization(x, ones), weight)
after:  RMSNormalization(x, weight)
before: Cast(RMSNormalization(Cast(x), Cast(weight))), in fp32 between the casts
after:  RMSNormalization(x, weight)

The kernel computes in fp32 whatever it is given and rounds its output once. The second form is the
same to the bit; of the first, one of two roundings is left out, so that it is nearer to the
definition in fp64 than that in 16 bits is, against which parity holds it.
"""

import numpy as np
import onnx_ir as ir

from lmcast.exporter.passes.rewrite import insert, nodes_of, replace


def weighted_norm(model: ir.Model) -> int:
    return sum(
        _multiplied(model, node) or _wide(model, node)
        for node in nodes_of(model, "RMSNormalization")
    )


def _multiplied(model: ir.Model, node: ir.Node) -> bool:
    """Rewrite the first form."""
    x, ones = node.inputs
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Mul" or node.outputs[0].is_graph_output():
        return False
    after = uses[0].node
    weight = after.inputs[1 - uses[0].idx]
    scale = ir.convenience.get_const_tensor(ones) if ones is not None else None
    if scale is None or weight is None or not _is_vector(weight, scale.size, scale.dtype):
        return False
    if not np.all(scale.numpy() == 1):
        return False
    _norm(model, after, node, x, weight)
    return True


def _wide(model: ir.Model, node: ir.Node) -> bool:
    """Rewrite the second form."""
    uses = list(node.outputs[0].uses())
    casts = [value.producer() if value is not None else None for value in node.inputs]
    if len(uses) != 1 or uses[0].node.op_type != "Cast" or node.outputs[0].is_graph_output():
        return False
    x, weight = (c.inputs[0] if c is not None and c.op_type == "Cast" else None for c in casts)
    after = uses[0].node
    short = ir.DataType(after.attributes["to"].as_int())
    if x is None or weight is None or {x.dtype, weight.dtype} != {short}:
        return False
    _norm(model, after, node, x, weight)
    return True


def _norm(
    model: ir.Model, after: ir.Node, node: ir.Node, x: ir.Value | None, weight: ir.Value
) -> None:
    """Put one norm in the place of a norm and the node behind it."""
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    given.pop("stash_type", None)
    replace(model, after, insert(model, after, "RMSNormalization", [x, weight], given,
                                 name=str(node.name)))  # fmt: skip
    model.graph.remove(node, safe=True)


def _is_vector(value: ir.Value, size: int, kind: ir.DataType) -> bool:
    """Whether a value is a weight of that many numbers of that dtype."""
    shape = value.shape
    own = value.is_initializer() and value.dtype == kind
    return own and shape is not None and shape.numpy() == (size,)
