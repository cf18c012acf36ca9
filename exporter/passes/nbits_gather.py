"""Gather rows of a 4- or 8-bit embedding, dequantizing no others.

before: Gather(Reshape(DequantizeLinear(codes, scales, zeros)), ids)
after:  com.microsoft.GatherBlockQuantized(codes, ids, scales)

Where something is added to the numbers of a block, that is gathered and added too.
"""

import onnx_ir as ir

from lmcast.exporter.passes.nbits import IntegerWeight, integer_weight
from lmcast.exporter.passes.nbits_inputs import bytes_of, cast, in_matrix, require_constants
from lmcast.exporter.passes.rewrite import MICROSOFT, insert, nodes_of, replace, written
from lmcast.plugins.onnx_builder import Builder, Value


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
        in_matrix(model, at, weight, weight.scales, f"{name}.scales"),
    ]
    if weight.zeros is not None:
        inputs.append(bytes_of(model, weight.zeros, byte, (n, of_row * weight.bits // 8)))
    given = {"bits": weight.bits, "block_size": weight.block, "gather_axis": 0, "quantize_axis": 1}
    label = name if weight.dtype == kind and weight.offsets is None else f"{name}.rows"
    out = insert(model, at, "GatherBlockQuantized", inputs, given, name=label, domain=MICROSOFT)[0]
    out.type = ir.TensorType(kind)  # which no inference knows
    out.shape = None if ids is None or ids.shape is None else ir.Shape([*ids.shape, k])
    require_constants(model, weight)
    if weight.offsets is not None:
        out = _lifted(model, at, out, weight, ids, name)
    return cast(model, at, out, kind, weight.dtype, name)


def _lifted(
    model: ir.Model,
    at: ir.Node,
    rows: ir.Value,
    weight: IntegerWeight,
    ids: ir.Value | None,
    name: str,
) -> ir.Value:
    """Return rows of a weight with what is added to the numbers of their blocks."""
    assert weight.offsets is not None
    columns, block = weight.shape[1], weight.block
    offsets = in_matrix(model, at, weight, weight.offsets, f"{name}.offsets")

    def add(op: Builder, rows: Value, offsets: Value, ids: Value) -> Value:
        own = op.Unsqueeze(op.Gather(offsets, ids, axis=0), [-1])
        taken = op.Shape(ids)
        split = op.Reshape(rows, op.Concat(taken, [columns // block, block], axis=0))
        return op.Reshape(split + own, op.Concat(taken, [columns], axis=0))

    return written(model, at, add, rows, offsets, ids)[0]
