"""Attend to the tokens in a latent cache, instead of to its whole capacity.

before: lmcast.mla_attention, its body attending to all rows of the cache, used or not
after:  the same node, its body attending to the first `max(lengths) + T` rows; likewise
        sparse_attention, where it does not gather, and the scores of sparse_index

The rows are copied once, which costs little beside the products of all heads with them, and are not
transposed (FusedMatMul). GroupQueryAttention, with the latents as one shared key head, would read
the whole cache again for every head.
"""

from collections.abc import Mapping
from functools import partial

import onnx_ir as ir

from lmcast.exporter.graph.assemble import arguments
from lmcast.exporter.passes.rewrite import MICROSOFT, nodes_of
from lmcast.plugins.latent import mla_attention, onnx_body, sparse_attention, sparse_index
from lmcast.plugins.latent.onnx_body import Style, last_seen
from lmcast.plugins.onnx_builder import Attribute, Block, Builder, Value
from lmcast.plugins.plugin import REGISTRY


def fused(op: Builder, a: Value, b: Value, axes: int) -> Value:
    return op.node("FusedMatMul", a, b, domain=MICROSOFT, transB=1)


def index(
    op: Builder,
    query: Value,
    weights: Value,
    key: Value,
    past_key: Value,
    cache_lengths: Value,
    token_counts: Value,
    top_k: Attribute,
    style: Style,
) -> tuple[Value, Value]:
    """The body of sparse_index over the rows in use; the others score as unseen positions.

    ONNX Runtime's TopK has no limit, so that a second one puts the chosen positions in order.
    """
    tokens, capacity = op.size(query, 1), op.size(past_key, 1)
    until = last_seen(op, cache_lengths, tokens)
    present = onnx_body.write(op, past_key, until, key)
    slots = style.slots(op, past_key, cache_lengths, tokens)
    keys = style.seen(op, present, slots, 1)
    scored = sparse_index.scores(op, query, weights, keys, op.range(slots) <= until, style)
    pads = op.dims(op.constant([0] * 5), capacity - slots)
    count = sparse_index.count(op, top_k, capacity)
    _, taken = op.TopK(op.Pad(scored, pads, sparse_index.UNSEEN), count, axis=2)
    chosen, _ = op.TopK(taken, count, axis=2, largest=0)
    return chosen, present


BODIES: Mapping[str, Block] = {
    "mla_attention": mla_attention.body,
    "sparse_attention": sparse_attention.body,
    "sparse_index": index,
}


def latents_by_length(model: ir.Model) -> int:
    found = {node.op_type: node for node in nodes_of(model, *BODIES)}
    changes = 0
    for name, node in found.items():
        query = node.inputs[0]
        assert query is not None
        style = Style(fused, wide=query.dtype != ir.DataType.FLOAT, by_length=True)
        body = REGISTRY[name].function(arguments(node), partial(BODIES[name], style=style))
        if MICROSOFT not in model.functions[body.identifier()].opset_imports:
            model.functions[body.identifier()] = body
            model.graph.opset_imports[MICROSOFT] = 1
            changes += 1
    return changes
