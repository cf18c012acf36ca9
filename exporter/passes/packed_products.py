"""Multiply once with weights of one input.

before: y = GroupQueryAttention(x q, x k, x v, ...), products with transposed weights
after:  y = GroupQueryAttention(x qkv, , , ...), one weight over the bytes of three
before: Mul(QuickGelu(x gate), x up)
after:  lmcast.gated_activation <activation = "silu"> (x both)

Gates are of texts alone: launch plans of the operator count tokens, and in a tower, whose calls are
thousands of patches, the products take nearly all of the time. Weights have to lie side by side in
a file. In a linked one, where queries, keys and values are a tenth of most models and lie apart,
those are written into the engine. Biases, which are small, are joined.
"""

import numpy as np
import onnx_ir as ir

from lmcast.exporter.engine.names import ROOT
from lmcast.exporter.graph.context import is_text
from lmcast.exporter.passes.evaluate import evaluate
from lmcast.exporter.passes.rewrite import insert, nodes_of, replace
from lmcast.exporter.passes.side_by_side import alike, packed, side_by_side, tensors_of
from lmcast.exporter.passes.transposed_products import product_of, remove
from lmcast.graphs.weights.quantized_parts import AND
from lmcast.plugins.experts.gated_activation import gated_activation
from lmcast.plugins.plugin import DOMAIN


def packed_products(model: ir.Model) -> int:
    found = nodes_of(model, "GroupQueryAttention")
    changes = sum(pack_attention(model, n, computed=False) for n in found)
    gates = nodes_of(model, "Mul") if is_text(model) else ()
    return changes + sum(_feed_forward(model, n) for n in gates)


def pack_attention(model: ir.Model, node: ir.Node, computed: bool = True) -> bool:
    """Give an attention its queries, keys and values as one product; say whether they are.

    computed: also where scales are computed at load.
    """
    if node.inputs[1] is None:
        return False
    products = [product_of(value) for value in node.inputs[:3]]
    parts = [product for product in products if product is not None]
    biases = [part.bias for part in parts if part.bias is not None]
    if len(parts) < 3 or len(biases) not in (0, 3) or not alike(parts):
        return False
    if not computed and not parts[0].stored:
        return False
    linked = all(str(t.base_dir) == ROOT for tensors in tensors_of(parts) for t in tensors)
    if not linked and not side_by_side(parts):
        return False
    out = packed(model, node, parts, str(parts[0].nodes[-1].name))
    if biases:
        joined = np.concatenate([array for b in biases if (array := evaluate(b, {})) is not None])
        bias = ir.Value(name=AND.join(str(bias.name) for bias in biases))
        bias.const_value = ir.tensor(joined, name=bias.name)
        bias.type, bias.shape = biases[0].type, ir.Shape(joined.shape)
        model.graph.initializers[str(bias.name)] = bias
        name = f"{parts[0].nodes[0].name}.packed"
        (out,) = insert(model, node, "Add", [out, bias], name=name)
        out.type = biases[0].type
    for place, value in enumerate((out, None, None)):
        node.replace_input_with(place, value)
    remove(model, parts)
    return True


def _feed_forward(model: ir.Model, node: ir.Node) -> bool:
    for place in (0, 1):
        gated, up = node.inputs[place], product_of(node.inputs[1 - place])
        maker = gated.producer() if gated is not None and len(gated.uses()) == 1 else None
        activation = _activation(maker)
        gate = product_of(maker.inputs[0]) if maker is not None and activation else None
        if maker is None or gate is None or up is None or gate.bias or up.bias:
            continue
        if not alike([gate, up]) or not gate.stored or not side_by_side([gate, up]):
            continue
        out = packed(model, node, [gate, up], str(gate.nodes[-1].name))
        body = gated_activation.function({"both": True, "activation": activation})
        known = model.functions.setdefault(body.identifier(), body)
        if ir.to_proto(known) != ir.to_proto(body):
            continue
        name = f"{node.name}.{gated_activation.name}"
        made = insert(model, node, gated_activation.name, [out], {"activation": activation},
                      name=name, domain=DOMAIN)  # fmt: skip
        replace(model, node, made)
        model.graph.remove(maker, safe=True)
        remove(model, [gate, up])
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
