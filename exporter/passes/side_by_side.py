"""Products of one value with transposed weights, and one product of all.

before: FusedMatMul <transB = 1> (x, q), FusedMatMul <transB = 1> (x, k)
after:  FusedMatMul <transB = 1> (x, q and k), one weight over the bytes of both
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from lmcast.exporter.passes.evaluate import evaluate
from lmcast.exporter.passes.rewrite import MICROSOFT, insert


@dataclass(frozen=True)
class Product:
    """The product of x with a transposed weight, and perhaps a bias: the value, and its nodes."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]  # the last first


def product_of(value: ir.Value | None) -> Product | None:
    """Return how a value that has one user is made, where that is by a product."""
    node = value.producer() if value is not None and len(value.uses()) == 1 else None
    bias, nodes = None, tuple[ir.Node, ...]()
    if node is not None and node.op_type == "Add":
        value, bias = node.inputs
        nodes = (node,)
        if bias is None or not bias.is_initializer() or evaluate(bias, {}) is None:
            return None
        node = value.producer() if value is not None and len(value.uses()) == 1 else None
    if node is None or node.op_type != "FusedMatMul" or "transB" not in node.attributes:
        return None
    x, weight = node.inputs
    alone = len(node.attributes) == 1 and weight is not None and len(weight.uses()) == 1
    if x is None or weight is None or not alone:
        return None
    return Product(x, weight, bias, (*nodes, node))


def alike(parts: Sequence[Product]) -> bool:
    """Whether these are products of one value, with stored weights of one dtype."""
    kinds = set()
    for part in parts:
        tensor = part.weight.const_value
        if part.x is not parts[0].x or not isinstance(tensor, ir.ExternalTensor):
            return False
        kinds.add((tensor.dtype, tuple(tensor.shape.numpy()[1:])))
    return len(kinds) == 1


def side_by_side(parts: Sequence[Product]) -> bool:
    """Whether the weights lie side by side in a file, in this order."""
    tensors = [tensor_of(part) for part in parts]
    return all(
        after.location == before.location
        and after.offset == (before.offset or 0) + (before.length or 0)
        for before, after in pairwise(tensors)
    )


def packed(model: ir.Model, at: ir.Node, parts: Sequence[Product], name: str) -> ir.Value:
    """Insert the product with one weight of several; return it.

    The weight is over their bytes where they lie side by side, else it is written into the engine.
    """
    tensors = [tensor_of(part) for part in parts]
    first = tensors[0]
    rows = sum(tensor.shape.numpy()[0] for tensor in tensors)
    shape = ir.Shape([rows, *first.shape.numpy()[1:]])
    label = f"{first.name}+{len(parts) - 1}"
    weight = ir.Value(name=label, type=ir.TensorType(first.dtype), shape=shape)
    if side_by_side(parts):
        weight.const_value = ir.ExternalTensor(
            first.location, first.offset, sum(tensor.length or 0 for tensor in tensors),
            first.dtype, shape=shape, name=label, base_dir=first.base_dir,
        )  # fmt: skip
    else:
        weight.const_value = ir.LazyTensor(
            lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors])),
            first.dtype, shape, name=label,
        )  # fmt: skip
    model.graph.initializers[label] = weight
    (out,) = insert(
        model, at, "FusedMatMul", [parts[0].x, weight], {"transB": 1}, name=f"{name}.packed",
        domain=MICROSOFT,
    )  # fmt: skip
    x = parts[0].x
    out.type = x.type
    out.shape = ir.Shape([*x.shape[:-1], rows]) if x.shape is not None else None
    return out


def tensor_of(part: Product) -> ir.ExternalTensor:
    """Return the stored weight of a product."""
    tensor = part.weight.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    return tensor


def remove(model: ir.Model, parts: Sequence[Product]) -> None:
    for part in parts:
        for node in part.nodes:
            model.graph.remove(node, safe=True)
        if not part.weight.uses():
            del model.graph.initializers[str(part.weight.name)]
