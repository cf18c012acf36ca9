"""One entry of a stack of weights, as a byte range of its own where possible."""

import math
from typing import Any

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import constant, insert


def nth(model: ir.Model, at: ir.Node, stack: ir.Value, index: int) -> ir.Value:
    """Return entry `index` of axis 0 of a weight of the graph, without that axis.

    A stack that is assembled by nodes (exporter/weights/attach.py) is followed back to its
    initializers, so that no other entry is read.
    """
    node = stack.producer()
    if node is None and isinstance(stack.const_value, ir.ExternalTensor):
        return _range(model, stack, index, _shape(stack)[1:])
    first = node.inputs[0] if node is not None and node.inputs else None
    if node is None or first is None:
        return _taken(model, at, stack, index)
    if node.op_type == "Concat" and node.attributes["axis"].as_int() == 0:
        part = node.inputs[index]
        assert part is not None
        if _shape(part)[0] == 1 and len(node.inputs) == _shape(stack)[0]:
            return nth(model, at, part, 0)
    if node.op_type == "Unsqueeze":
        return first
    if node.op_type == "Transpose":
        perm = list(node.attributes["perm"].as_ints())
        if perm[0] == 0:
            inner = nth(model, at, first, index)
            return _copy(model, at, node, [inner], {"perm": [p - 1 for p in perm[1:]]}, stack)
    if node.op_type == "Cast":
        inner = nth(model, at, first, index)
        return _copy(model, at, node, [inner], {"to": node.attributes["to"].as_int()}, stack)
    if node.op_type == "Mul" and all(_is_stack(value, stack) for value in node.inputs):
        factors = [nth(model, at, value, index) for value in node.inputs if value is not None]
        return _copy(model, at, node, factors, {}, stack)
    if node.op_type == "Reshape" and _shape(first)[0] == _shape(stack)[0]:
        shape = constant(
            model, at, _shape(stack)[1:], ir.DataType.INT64, f"{stack.name}.{index}.to"
        )
        return _copy(model, at, node, [nth(model, at, first, index), shape], {}, stack)
    if node.op_type == "Slice":
        bounds = [_numbers(value) for value in node.inputs[1:]]
        if 0 not in bounds[2]:
            return _slice(model, at, nth(model, at, first, index), stack, bounds)
    return _taken(model, at, stack, index)


def _taken(model: ir.Model, at: ir.Node, stack: ir.Value, index: int) -> ir.Value:
    """Return an entry of a value that is no weight, or that other nodes make."""
    name = f"{stack.name}.{index}"
    number = constant(model, at, index, ir.DataType.INT64, f"{name}.index")
    out = insert(model, at, "Gather", [stack, number], {"axis": 0}, name=name)[0]
    out.type, out.shape = stack.type, ir.Shape(_shape(stack)[1:])
    return out


def _slice(
    model: ir.Model, at: ir.Node, inner: ir.Value, stack: ir.Value, bounds: list[list[int]]
) -> ir.Value:
    """Return a slice of one entry, given by the bounds that the whole stack was sliced with."""
    starts, stops, axes, steps = bounds
    if axes == [1] and steps == [1] and inner.producer() is None:  # rows that lie together
        rows = _shape(inner)
        return _range(model, inner, starts[0], (stops[0] - starts[0], *rows[1:]), rows[1:])
    name = f"{inner.name}.part"
    kind = ir.DataType.INT64
    values = [
        constant(model, at, numbers, kind, f"{name}.{label}")
        for numbers, label in (
            (starts, "starts"), (stops, "stops"), ([a - 1 for a in axes], "axes"), (steps, "steps"),
        )
    ]  # fmt: skip
    out = insert(model, at, "Slice", [inner, *values], name=f"{name}.{starts[0]}")[0]
    out.type, out.shape = stack.type, ir.Shape(_shape(stack)[1:])
    return out


def _range(
    model: ir.Model,
    weight: ir.Value,
    index: int,
    shape: tuple[int, ...],
    unit: tuple[int, ...] | None = None,
) -> ir.Value:
    """Return a weight of `shape` that starts `index` units into another; a unit has its shape,
    unless another is given."""
    whole = weight.const_value
    assert isinstance(whole, ir.ExternalTensor) and whole.offset is not None
    name = f"{weight.name}.{index}"
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    size = whole.dtype.itemsize
    step = int(size * math.prod(shape if unit is None else unit))
    sizes = ir.Shape(shape)
    value = ir.Value(name=name, type=weight.type, shape=sizes)
    value.const_value = ir.ExternalTensor(
        whole.location, whole.offset + index * step, int(size * math.prod(shape)), whole.dtype,
        shape=sizes, name=name, base_dir=whole.base_dir,
    )  # fmt: skip
    model.graph.initializers[name] = value
    return value


def _copy(
    model: ir.Model,
    at: ir.Node,
    node: ir.Node,
    inputs: list[ir.Value],
    attributes: dict[str, Any],
    stack: ir.Value,
) -> ir.Value:
    name = f"{inputs[0].name}.{node.op_type}"
    out = insert(model, at, node.op_type, inputs, attributes, name=name)[0]
    out.type, out.shape = stack.type, ir.Shape(_shape(stack)[1:])
    return out


def _is_stack(value: ir.Value | None, stack: ir.Value) -> bool:
    """Whether a value has the rank of a stack, and one entry for each of its."""
    own, whole = () if value is None or value.shape is None else _shape(value), _shape(stack)
    return len(own) == len(whole) and own[0] == whole[0]


def _numbers(value: ir.Value | None) -> list[int]:
    producer = value.producer() if value is not None else None
    assert producer is not None
    numbers: list[int] = producer.attributes["value"].as_tensor().numpy().tolist()
    return numbers


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())
