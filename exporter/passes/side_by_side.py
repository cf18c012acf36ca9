"""Products of one value with transposed weights, and one product of all.

before: FusedMatMul <transB = 1> (x, q), FusedMatMul <transB = 1> (x, k)
after:  FusedMatMul <transB = 1> (x, q and k), one weight over the bytes of both
before: MatMulNBits <N = 8> (x, codes of q, scales of q), MatMulNBits <N = 4> (x, ..., of k)
after:  MatMulNBits <N = 12> (x, codes of both, scales of both)

Every row of a weight, with its own codes and scales, is multiplied as it was. Scales and offsets
that are computed at load are concatenated there.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from lmcast.exporter.passes.rewrite import MICROSOFT, insert
from lmcast.exporter.passes.transposed_products import ROWS, Product, is_stored, tensor_of
from lmcast.graphs.weights.quantized_parts import AND


def alike(parts: Sequence[Product]) -> bool:
    """Whether these are products of one value, of one kind."""
    first = parts[0]
    sums = {None if part.offsets is None else part.offsets[0] for part in parts}
    return len(sums) == 1 and all(p.x is first.x and p.kind == first.kind for p in parts)


def tensors_of(parts: Sequence[Product]) -> Iterator[list[ir.ExternalTensor]]:
    """Yield the stored tensors of the weights that are one: all codes, then all scales."""
    for values in zip(*(part.weight for part in parts), strict=True):
        if is_stored(values[0]):
            yield [tensor_of(value) for value in values]


def side_by_side(parts: Sequence[Product]) -> bool:
    """Whether the weights lie side by side in a file, in this order."""
    return all(
        after.location == before.location
        and after.offset == (before.offset or 0) + (before.length or 0)
        for tensors in tensors_of(parts)
        for before, after in pairwise(tensors)
    )


def packed(model: ir.Model, at: ir.Node, parts: Sequence[Product], name: str) -> ir.Value:
    """Insert the product with one weight of several, cast as they are; return it.

    The weight is over their bytes where they lie side by side, else it is written into the engine.
    """
    first, rows = parts[0], sum(part.rows for part in parts)
    beside = side_by_side(parts)
    weight = [
        _joined(model, [tensor_of(value) for value in values], beside)
        if is_stored(values[0])
        else _concatenated(model, at, values, f"{name}.{i}")
        for i, values in enumerate(zip(*(part.weight for part in parts), strict=True))
    ]
    given = {n: attribute.value for n, attribute in first.node.attributes.items()}
    if counted := ROWS[first.node.op_type]:
        given[counted] = rows
    inputs = [first.x, *weight]
    (out,) = insert(
        model, at, first.node.op_type, inputs, given, name=f"{name}.packed",
        domain=first.node.domain,
    )  # fmt: skip
    shape = first.x.shape
    sizes = None if shape is None else ir.Shape([*shape[:-1], rows])
    if first.offsets is not None:
        matrices = [part.offsets[1] for part in parts if part.offsets is not None]
        matrix = _concatenated(model, at, matrices, f"{name}.offsets")
        (more,) = insert(
            model, at, "FusedMatMul", [first.offsets[0], matrix], {"transB": 1},
            name=f"{name}.packed.more", domain=MICROSOFT,
        )  # fmt: skip
        (out,) = insert(model, at, "Add", [out, more], name=f"{name}.packed.total")
    out.type, out.shape = first.x.type, sizes
    if first.cast is not None:
        to = first.cast.attributes["to"].as_int()
        (out,) = insert(model, at, "Cast", [out], {"to": to}, name=f"{name}.packed.Cast")
        out.type, out.shape = ir.TensorType(ir.DataType(to)), sizes
    return out


def _concatenated(model: ir.Model, at: ir.Node, values: Sequence[ir.Value], name: str) -> ir.Value:
    """Return rows that are computed at load, one behind the other."""
    (out,) = insert(model, at, "Concat", values, {"axis": 0}, name=name)
    shapes = [value.shape.numpy() for value in values if value.shape is not None]
    out.type, out.shape = values[0].type, ir.Shape([sum(s[0] for s in shapes), *shapes[0][1:]])
    return out


def _joined(model: ir.Model, tensors: list[ir.ExternalTensor], beside: bool) -> ir.Value:
    """Return the weight that several are, one behind the other; beside: in their file, too."""
    first = tensors[0]
    rows = sum(tensor.shape.numpy()[0] for tensor in tensors)
    shape = ir.Shape([rows, *first.shape.numpy()[1:]])
    label = AND.join(str(tensor.name) for tensor in tensors)
    out = ir.Value(name=label, type=ir.TensorType(first.dtype), shape=shape)
    if beside:
        out.const_value = ir.ExternalTensor(
            first.location, first.offset, sum(tensor.length or 0 for tensor in tensors),
            first.dtype, shape=shape, name=label, base_dir=first.base_dir,
        )  # fmt: skip
    else:
        out.const_value = ir.LazyTensor(
            lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors])),
            first.dtype, shape, name=label,
        )  # fmt: skip
    model.graph.initializers[label] = out
    return out
