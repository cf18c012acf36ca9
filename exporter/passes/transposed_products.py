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

    weight: its tensors, of which each has rows of its own: the numbers, or codes, scales and zeros.
    nodes: what makes the value, the last first. node: that which multiplies.
    """

    x: ir.Value
    weight: tuple[ir.Value, ...]
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]

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
        tensors = [tensor_of(value) for value in self.weight]
        sizes = [(tensor.dtype, tuple(tensor.shape.numpy()[1:])) for tensor in tensors]
        to = None if self.cast is None else self.cast.attributes["to"].as_int()
        return self.node.op_type, given, sizes, to


def product_of(value: ir.Value | None) -> Product | None:
    """Return how a value that has one user is made, where that is by a product."""
    bias, nodes = None, list[ir.Node]()
    node = _maker(value)
    if node is not None and node.op_type == "Add":
        value, bias = node.inputs
        nodes.append(node)
        if bias is None or not bias.is_initializer() or evaluate(bias, {}) is None:
            return None
        node = _maker(value)
    if node is not None and node.op_type == "Cast":
        nodes.append(node)
        node = _maker(node.inputs[0])
    if node is None or node.op_type not in ROWS:
        return None
    if node.op_type == "FusedMatMul" and set(node.attributes) != {"transB"}:
        return None
    x, *rest = node.inputs
    weight = tuple(value for value in rest if value is not None)
    alone = all(
        isinstance(value.const_value, ir.ExternalTensor) and len(value.uses()) == 1
        for value in weight
    )
    if x is None or not alone or len(weight) != len(rest):
        return None
    return Product(x, weight, bias, (*nodes, node))


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
