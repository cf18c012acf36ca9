"""Norm queries and keys, head by head, within the attention.

before: y = GroupQueryAttention(Reshape(RMSNormalization(Reshape(q), weight)), the same of k, ...)
after:  y = GroupQueryAttention(q, k, ..., weight of q, weight of k), which norms before it rotates

Not beside a cache in FP8, of another dtype than the weights: with both, ONNX Runtime 1.31 widens
the cache in every step.
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import nodes_of

WEIGHTS = 14, 15  # inputs of the node


def norms_in_attention(model: ir.Model) -> int:
    return sum(_rewritten(model, node) for node in nodes_of(model, "GroupQueryAttention"))


def _rewritten(model: ir.Model, node: ir.Node) -> bool:
    query, key = (_norm(value) for value in node.inputs[:2])
    past = node.inputs[3]
    if query is None or key is None or past is None or past.shape is None:
        return False
    sizes = [norm.attributes["epsilon"].as_float() for norm in (query, key)]
    weights = [norm.inputs[1] for norm in (query, key)]
    if sizes[0] != sizes[1] or any(
        w is None or w.dtype != past.dtype or w.shape != ir.Shape([past.shape[-1]]) for w in weights
    ):
        return False
    node.resize_inputs(WEIGHTS[1] + 1)
    for place, norm, weight in zip((0, 1), (query, key), weights, strict=True):
        inner, outer = norm.inputs[0], node.inputs[place]
        assert inner is not None and outer is not None
        before, after = inner.producer(), outer.producer()
        assert before is not None and after is not None
        node.replace_input_with(place, before.inputs[0])
        node.replace_input_with(WEIGHTS[place], weight)
        for gone in (after, norm, before):
            model.graph.remove(gone, safe=True)
    node.attributes["qk_norm_epsilon"] = ir.AttrFloat32("qk_norm_epsilon", sizes[0])
    return True


def _norm(value: ir.Value | None) -> ir.Node | None:
    """Return the norm of each head of a value B,T,heads*width, between two reshapes."""
    norm: ir.Node | None = None
    for op_type in ("Reshape", "RMSNormalization", "Reshape"):
        node = value.producer() if value is not None else None
        if node is None or node.op_type != op_type or value is None or len(value.uses()) != 1:
            return None
        norm, value = (node if op_type == "RMSNormalization" else norm), node.inputs[0]
    flat = value is not None and value.shape is not None and len(value.shape) == 3
    return norm if flat else None
