"""What ONNX Runtime's operators take of an INT4 or INT8 weight: bytes as they lie in a file, and
scales as they are stored or computed at load.

Letters: E experts, N rows, K columns, G blocks of a row.
"""

import math
from dataclasses import replace

import onnx_ir as ir

from lmcast.exporter.graph.requirements import require
from lmcast.exporter.passes.nbits import IntegerWeight
from lmcast.exporter.passes.rewrite import constant, insert


def of_expert(model: ir.Model, stack: IntegerWeight, index: int) -> IntegerWeight:
    """Return the weight of one expert: ranges of the bytes of all."""
    experts, *shape = stack.shape
    blocks = _shape(stack.codes)[0] // experts

    def part(value: ir.Value | None, *sizes: int) -> ir.Value | None:
        if value is None:
            return None
        if value.const_value is None:
            return nth_run(model, value, index, blocks)
        return bytes_of(model, value, value.dtype, sizes, index, experts)

    codes, found = part(stack.codes, blocks, stack.block), part(stack.scales, blocks)
    assert codes is not None and found is not None
    zeros, offsets = part(stack.zeros, blocks), part(stack.offsets, blocks, 1)
    shape_of_one = tuple(shape)
    return replace(
        stack, codes=codes, scales=found, zeros=zeros, offsets=offsets, shape=shape_of_one
    )


def nth_run(model: ir.Model, value: ir.Value, index: int, size: int) -> ir.Value:
    """Return a run of `size` of the entries of a value that is computed at load."""
    node = value.producer()
    assert node is not None
    name, graph = f"{value.name}.{index}", model.graph
    bounds = [
        ir.Value(name=f"{name}.{what}", const_value=ir.tensor([number], name=f"{name}.{what}"))
        for what, number in (("start", index * size), ("stop", (index + 1) * size), ("axis", 0))
    ]
    for bound in bounds:
        graph.register_initializer(bound)
    taken = ir.node("Slice", [value, *bounds], name=name)
    graph.insert_after(node, taken)
    out = taken.outputs[0]
    out.name, out.type = name, value.type
    out.shape = ir.Shape((size, *_shape(value)[1:]))
    return out


def in_matrix(
    model: ir.Model, at: ir.Node, weight: IntegerWeight, value: ir.Value, name: str
) -> ir.Value:
    """Return numbers of the blocks of a weight N,K, stored or computed, as N,G."""
    rows, columns = weight.shape
    sizes = (rows, columns // weight.block)
    if value.const_value is not None:
        return bytes_of(model, value, value.dtype, sizes)
    shape = constant(model, at, list(sizes), ir.DataType.INT64, f"{name}.sizes")
    (out,) = insert(model, at, "Reshape", [value, shape], name=name)
    out.type, out.shape = value.type, ir.Shape(sizes)
    return out


def require_constants(model: ir.Model, weight: IntegerWeight) -> None:
    """Have scales and offsets computed at load that are not stored as kernels take them.

    With scales that are none to it, MatMulNBits of ONNX Runtime 1.31 computes wrong numbers.
    """
    given = weight.scales, weight.offsets
    if any(value is not None and value.const_value is None for value in given):
        require(model, folded=True)


def scales(model: ir.Model, at: ir.Node, weight: IntegerWeight, name: str) -> ir.Value:
    """Return the scales of a weight in what kernels compute in."""
    have, want = weight.scales.dtype, weight.computed
    assert have is not None
    return cast(model, at, weight.scales, have, want, f"{name}.scales")


def cast(
    model: ir.Model, at: ir.Node, value: ir.Value, have: ir.DataType, want: ir.DataType, name: str
) -> ir.Value:
    """Return a value in another dtype, if it is one."""
    if have == want:
        return value
    out = insert(model, at, "Cast", [value], {"to": want}, name=name)[0]
    out.type, out.shape = ir.TensorType(want), value.shape
    return out


def bytes_of(
    model: ir.Model,
    value: ir.Value,
    kind: ir.DataType | None,
    shape: tuple[int, ...],
    index: int = 0,
    parts: int = 1,
) -> ir.Value:
    """Return one of `parts` equal parts of a weight's bytes as a weight of this shape."""
    whole = value.const_value
    assert isinstance(whole, ir.ExternalTensor)
    assert whole.offset is not None and whole.length is not None and kind is not None
    size = whole.length // parts
    assert size * parts == whole.length and size == math.ceil(math.prod(shape) * kind.itemsize)
    name = f"{value.name}.{index}" if parts > 1 else f"{value.name}.{'x'.join(map(str, shape))}"
    if name not in model.graph.initializers:
        sizes = ir.Shape(shape)
        out = ir.Value(name=name, type=ir.TensorType(kind), shape=sizes)
        out.const_value = ir.ExternalTensor(
            whole.location, whole.offset + index * size, size, kind,
            shape=sizes, name=name, base_dir=whole.base_dir,
        )  # fmt: skip
        model.graph.initializers[name] = out
    return model.graph.initializers[name]


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())
