"""Count on the GPU: a slice of all numbers that a graph counts to, instead of Range.

before: Range(0, Squeeze(Shape(ids)), 1)
after:  Slice([0, 1, 2, ...], [0], Shape(ids), [0])

Range takes scalars from the host, which ONNX Runtime makes of a size by a node on the CPU; Slice
takes the size as Shape gives it. No range is longer than the context and as much padding again; of
a tower, whose ranges nothing bounds, none is sliced.
"""

import numpy as np
import onnx_ir as ir

from lmcast.exporter.graph.context import context, is_text
from lmcast.exporter.passes.rewrite import constant, insert, nodes_of, replace

INT64 = ir.DataType.INT64
NUMBERS = "numbers"  # the weight with all of them


def sliced_ranges(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "Range") if is_text(model) else ():
        start, limit, step = node.inputs
        size = _size(limit)
        if size is None or (_number(start), _number(step)) != (0, 1):
            continue
        name = str(node.name)
        zero = constant(model, node, [0], INT64, f"{name}.first")
        (found,) = insert(model, node, "Slice", [_numbers(model), zero, size, zero], name=name)
        found.type, found.shape = ir.TensorType(INT64), _axis(size)
        kind = node.outputs[0].dtype
        if kind not in (None, INT64):
            (found,) = insert(model, node, "Cast", [found], {"to": kind}, name=f"{name}.cast")
        replace(model, node, [found])
        changes += 1
    return changes


def _size(limit: ir.Value | None) -> ir.Value | None:
    """Return the size [1] that a scalar is of, None where it is none."""
    node = limit.producer() if limit is not None else None
    if node is not None and node.op_type == "Cast":
        return _size(node.inputs[0])
    return node.inputs[0] if node is not None and node.op_type == "Squeeze" else None


def _axis(size: ir.Value) -> ir.Shape | None:
    """Return the shape of as many numbers, where a size is that of a named axis."""
    node = size.producer()
    if node is None or node.op_type != "Shape" or node.inputs[0] is None:
        return None
    shape = node.inputs[0].shape
    return None if shape is None else ir.Shape([shape[node.attributes["start"].as_int()]])


def _number(value: ir.Value | None) -> float | None:
    """Return the only number of a constant, None for any other value."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return float(tensor.numpy()) if tensor is not None and tensor.size == 1 else None


def _numbers(model: ir.Model) -> ir.Value:
    """Return the weight that counts from 0, made once."""
    if NUMBERS not in model.graph.initializers:
        counted = np.arange(2 * context(model), dtype=np.int64)
        value = ir.Value(name=NUMBERS, type=ir.TensorType(INT64), shape=ir.Shape(counted.shape))
        value.const_value = ir.tensor(counted, name=NUMBERS)
        model.graph.initializers[NUMBERS] = value
    return model.graph.initializers[NUMBERS]
