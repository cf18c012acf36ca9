"""Products with transposed weights, plain or in few bits: how a value is made by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from lmcast.exporter.passes.evaluate import evaluate

# Products, and the attribute that counts the rows of their weight, if one does.
ROWS = {"FusedMatMul": "", "MatMulNBits": "N", "MatMulBlockQuantizedFp8Weight": ""}


@dataclass(frozen=True)
class Product:
    """The product of x with a transposed weight, cast or not, and perhaps a bias.

    weight: its tensors, of which each has rows of its own: the numbers, or codes, scales and zeros;
        scales may be computed at load.
    offsets: sums of blocks of x, and the transposed weight that those are multiplied with, as
        nbits_matmul writes it; None for none.
    nodes: what makes the value, the last first. node: that which multiplies.
    """

    x: ir.Value
    weight: tuple[ir.Value, ...]
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]
    offsets: tuple[ir.Value, ir.Value] | None = None

    @property
    def node(self) -> ir.Node:
        return self.nodes[-1]

    @property
    def cast(self) -> ir.Node | None:
        """The node that the product is cast by."""
        return next((node for node in self.nodes if node.op_type == "Cast"), None)

    @property
    def rows(self) -> int:
        return int(tensor_of(self.weight[0]).shape.numpy()[0])

    @property
    def kind(self) -> tuple[Any, ...]:
        """What several products have in common that can be one."""
        rows = ROWS[self.node.op_type]
        given = {n: a.value for n, a in self.node.attributes.items() if n != rows}
        rest = (self.offsets[1],) if self.offsets is not None else ()
        sizes = [_kind_of_row(value) for value in (*self.weight, *rest)]
        to = None if self.cast is None else self.cast.attributes["to"].as_int()
        return self.node.op_type, given, sizes, to

    @property
    def stored(self) -> bool:
        """Whether all of the weight is stored as the kernel takes it."""
        return self.offsets is None and all(is_stored(value) for value in self.weight)


def product_of(value: ir.Value | None) -> Product | None:
    """Return how a value that has one user is made, where that is by a product."""
    bias, offsets, nodes = None, None, list[ir.Node]()
    node = _maker(value)
    if node is not None and node.op_type == "Add" and _is_weight(node.inputs[1]):
        value, bias = node.inputs
        nodes.append(node)
        if evaluate(bias, {}) is None:
            return None
        node = _maker(value)
    if node is not None and node.op_type == "Cast":
        nodes.append(node)
        node = _maker(node.inputs[0])
    if node is not None and node.op_type == "Add":
        more = _maker(node.inputs[1])
        if more is None or more.op_type != "FusedMatMul" or set(more.attributes) != {"transB"}:
            return None
        sums, matrix = more.inputs
        if sums is None or matrix is None or not _at_load(matrix):
            return None  # two products of plain weights
        offsets = sums, matrix
        nodes += [node, more]
        node = _maker(node.inputs[0])
    if node is None or node.op_type not in ROWS:
        return None
    if node.op_type == "FusedMatMul" and (offsets or set(node.attributes) != {"transB"}):
        return None
    x, *rest = node.inputs
    weight = tuple(value for value in rest if value is not None)
    known = all(
        len(value.uses()) == 1 if is_stored(value) else i > 0 and _at_load(value)
        for i, value in enumerate(weight)
    )
    if x is None or not known or len(weight) != len(rest):
        return None
    return Product(x, weight, bias, (*nodes, node), offsets)


def is_stored(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _at_load(value: ir.Value | None) -> bool:
    """Whether a value is computed by nodes, from weights alone."""
    node = value.producer() if value is not None else None
    return node is not None and all(_is_weight(v) or _at_load(v) for v in node.inputs)


def _kind_of_row(value: ir.Value) -> tuple[Any, ...]:
    """Return the dtype of a part of a weight, and the sizes of what a row has of it."""
    tensor = value.const_value if is_stored(value) else value
    assert tensor is not None and tensor.shape is not None
    return tensor.dtype, tuple(tensor.shape.numpy()[1:])


def _maker(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None and len(value.uses()) == 1 else None


def tensor_of(value: ir.Value) -> ir.ExternalTensor:
    """Return the stored tensor of a part of a weight."""
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    return tensor


def remove(model: ir.Model, parts: Sequence[Product]) -> None:
    for part in parts:
        for node in part.nodes:
            model.graph.remove(node, safe=True)
        for value in part.weight:
            if not value.uses():
                del model.graph.initializers[str(value.name)]
