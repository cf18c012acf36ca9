"""Gather rows of a 4- or 8-bit embedding, dequantizing no others.

before: Gather(Reshape(DequantizeLinear(codes, scales, zeros)), ids)
after:  com.microsoft.GatherBlockQuantized(codes, ids, scales)
"""

import onnx_ir as ir

from lmcast.exporter.passes.nbits import IntegerWeight, bytes_of, cast, integer_weight
from lmcast.exporter.passes.rewrite import MICROSOFT, insert, nodes_of, replace


def nbits_gather(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "Gather"):
        weight = integer_weight(node.inputs[0])
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        if weight is None or not weight.has_kernel or len(weight.shape) != 2 or axis:
            continue
        replace(model, node, [rows(model, node, weight, node.inputs[1], str(node.name))])
        changes += 1
    return changes


def rows(
    model: ir.Model, at: ir.Node, weight: IntegerWeight, ids: ir.Value | None, name: str
) -> ir.Value:
    """Return the rows of a weight N,K that integers of any shape name."""
    n, k = weight.shape
    of_row = k // weight.block
    byte, kind = ir.DataType.UINT8, weight.scales.dtype
    assert kind is not None
    inputs = [
        bytes_of(model, weight.codes, byte, (n, k * weight.bits // 8)),
        ids,
        bytes_of(model, weight.scales, kind, (n, of_row)),
    ]
    if weight.zeros is not None:
        inputs.append(bytes_of(model, weight.zeros, byte, (n, of_row * weight.bits // 8)))
    given = {"bits": weight.bits, "block_size": weight.block, "gather_axis": 0, "quantize_axis": 1}
    label = name if weight.dtype == kind else f"{name}.rows"
    out = insert(model, at, "GatherBlockQuantized", inputs, given, name=label, domain=MICROSOFT)[0]
    return cast(model, at, out, kind, weight.dtype, name)
