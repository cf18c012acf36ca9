"""Multiply once with weights that lie side by side in a file.

before: y = GroupQueryAttention(x q, x k, x v, ...), products with transposed weights
after:  y = GroupQueryAttention(x qkv, , , ...), one weight over the bytes of three
before: Mul(QuickGelu(x gate), x up)
after:  lmcast.gated_activation <activation = "silu"> (x both)

Biases of the first form, which are small, are joined. Weights that lie apart are left alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmcast.exporter.passes.evaluate import evaluate
from lmcast.exporter.passes.rewrite import MICROSOFT, insert, nodes_of, replace
from lmcast.plugins.experts.gated_activation import gated_activation
from lmcast.plugins.plugin import DOMAIN


@dataclass(frozen=True)
class Product:
    """The product of x with a transposed weight, and perhaps a bias: the value, and its nodes."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]  # the last first


def packed_products(model: ir.Model) -> int:
    changes = sum(_attention(model, n) for n in nodes_of(model, "GroupQueryAttention"))
    return changes + sum(_feed_forward(model, n) for n in nodes_of(model, "Mul"))


def _attention(model: ir.Model, node: ir.Node) -> bool:
    if node.inputs[1] is None:
        return False
    products = [_product(value) for value in node.inputs[:3]]
    parts = [product for product in products if product is not None]
    biases = [part.bias for part in parts if part.bias is not None]
    if len(parts) < 3 or len(biases) not in (0, 3) or not _alike(parts):
        return False
    out = _packed(model, node, parts, str(parts[0].nodes[-1].name))
    if biases:
        joined = np.concatenate([array for b in biases if (array := evaluate(b, {})) is not None])
        bias = ir.Value(name=f"{biases[0].name}+{len(biases) - 1}")
        bias.const_value = ir.tensor(joined, name=bias.name)
        bias.type, bias.shape = biases[0].type, ir.Shape(joined.shape)
        model.graph.initializers[str(bias.name)] = bias
        name = f"{parts[0].nodes[0].name}.packed"
        (out,) = insert(model, node, "Add", [out, bias], name=name)
        out.type = parts[0].x.type
    for place, value in enumerate((out, None, None)):
        node.replace_input_with(place, value)
    _remove(model, parts)
    return True


def _feed_forward(model: ir.Model, node: ir.Node) -> bool:
    for place in (0, 1):
        gated, up = node.inputs[place], _product(node.inputs[1 - place])
        maker = gated.producer() if gated is not None and len(gated.uses()) == 1 else None
        activation = _activation(maker)
        gate = _product(maker.inputs[0]) if maker is not None and activation else None
        if maker is None or gate is None or up is None or gate.bias or up.bias:
            continue
        if not _alike([gate, up]):
            continue
        out = _packed(model, node, [gate, up], str(gate.nodes[-1].name))
        body = gated_activation.function({"both": True, "activation": activation})
        known = model.functions.setdefault(body.identifier(), body)
        if ir.to_proto(known) != ir.to_proto(body):
            continue
        name = f"{node.name}.{gated_activation.name}"
        made = insert(model, node, gated_activation.name, [out], {"activation": activation},
                      name=name, domain=DOMAIN)  # fmt: skip
        replace(model, node, made)
        model.graph.remove(maker, safe=True)
        _remove(model, [gate, up])
        return True
    return False


def _activation(node: ir.Node | None) -> str:
    """Return what the operator calls this activation, '' where it has none."""
    if node is None:
        return ""
    if node.op_type == "QuickGelu":
        return "silu" if node.attributes["alpha"].as_float() == 1 else ""
    if node.op_type == "Gelu":
        form = node.attributes.get("approximate")
        return "gelu_tanh" if form is not None and form.as_string() == "tanh" else "gelu"
    return "relu" if node.op_type == "Relu" else ""


def _product(value: ir.Value | None) -> Product | None:
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


def _alike(parts: Sequence[Product]) -> bool:
    """Whether these are products of one value, with weights that lie side by side."""
    end = None
    for part in parts:
        weight = part.weight.const_value
        if part.x is not parts[0].x or not isinstance(weight, ir.ExternalTensor):
            return False
        begin, size = weight.offset, weight.length
        assert begin is not None and size is not None
        inner = tuple(weight.shape.numpy()[1:])
        if end not in (None, (weight.location, begin, weight.dtype, inner)):
            return False
        end = weight.location, begin + size, weight.dtype, inner
    return True


def _packed(model: ir.Model, at: ir.Node, parts: Sequence[Product], name: str) -> ir.Value:
    """Insert the product with one weight over the bytes of several; return it."""
    tensors = [part.weight.const_value for part in parts]
    first = tensors[0]
    assert isinstance(first, ir.ExternalTensor)
    rows = sum(tensor.shape.numpy()[0] for tensor in tensors if tensor is not None)
    size = sum(tensor.length or 0 for tensor in tensors if isinstance(tensor, ir.ExternalTensor))
    shape = ir.Shape([rows, *first.shape.numpy()[1:]])
    label = f"{first.name}+{len(parts) - 1}"
    weight = ir.Value(name=label, type=ir.TensorType(first.dtype), shape=shape)
    weight.const_value = ir.ExternalTensor(
        first.location, first.offset, size, first.dtype, shape=shape, name=label,
        base_dir=first.base_dir,
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


def _remove(model: ir.Model, parts: Sequence[Product]) -> None:
    for part in parts:
        for node in part.nodes:
            model.graph.remove(node, safe=True)
        if not part.weight.uses():
            del model.graph.initializers[str(part.weight.name)]
