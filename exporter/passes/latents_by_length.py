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
from lmcast.plugins.latent import mla_attention, sparse_attention, sparse_index
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
    tokens, capacity = op.size(query, 1), style.capacity(op, past_key)
    until = last_seen(op, cache_lengths, tokens)
    present, held = style.write(op, past_key, until, key)
    slots = style.slots(op, past_key, cache_lengths, tokens)
    keys = style.seen(op, held, slots, 1)
    scored = sparse_index.scores(op, query, weights, keys, op.range(slots) <= until, style)
    pads = op.dims(op.constant([0] * 5), capacity - slots)
    count = sparse_index.count(op, top_k, capacity)
    _, taken = op.TopK(op.Pad(scored, pads, sparse_index.UNSEEN), count, axis=2)
    chosen, _ = op.TopK(taken, count, axis=2, largest=0)
    return chosen, present


CACHE = 3  # of the inputs of each
BODIES: Mapping[str, Block] = {
    "mla_attention": mla_attention.body,
    "sparse_attention": sparse_attention.body,
    "sparse_index": index,
}


def latents_by_length(model: ir.Model) -> int:
    changes = 0
    for node in {node.op_type: node for node in nodes_of(model, *BODIES)}.values():
        if MICROSOFT not in model.functions[function(node).identifier()].opset_imports:
            write(model, node, one_head=False)
            changes += 1
    return changes


def latents_of_one_head(model: ir.Model) -> int:
    """Let states B,C,W that only these bodies read be B,1,C,W, as caches of heads are; return how
    many there are. All that a body is of are, or none."""
    changes = 0
    for name in BODIES:
        nodes = list(nodes_of(model, name))
        caches = [(node.inputs[CACHE], node.outputs[1]) for node in nodes]
        if not all(past is not None and _own(past, present) for past, present in caches):
            continue
        for past, present in caches:
            assert past is not None and past.shape is not None
            batch, *rest = past.shape
            past.shape = present.shape = ir.Shape([batch, 1, *rest])
            changes += 1
        if nodes:
            write(model, nodes[0], one_head=True)
    return changes


def _own(past: ir.Value, present: ir.Value) -> bool:
    """Whether a cache is a state of the graph that one node reads, and writes."""
    mine = past.is_graph_input() and len(past.uses()) == 1
    return mine and present.is_graph_output() and not present.uses()


def write(model: ir.Model, node: ir.Node, one_head: bool) -> None:
    """Write the body of an operator anew, for all of its nodes."""
    past = node.inputs[CACHE]
    assert past is not None
    wide = past.dtype != ir.DataType.FLOAT
    style = Style(fused, wide=wide, by_length=True, one_head=one_head)
    body = function(node, partial(BODIES[node.op_type], style=style))
    model.functions[body.identifier()] = body
    model.graph.opset_imports[MICROSOFT] = 1


def function(node: ir.Node, body: Block | None = None) -> ir.Function:
    return REGISTRY[node.op_type].function(arguments(node), body)
