"""Attention to tokens ahead where a call has pictures, and the causal kernel where it has none.

before: y, key, value = lmcast.cached_attention(q, k, v, past_key, past_value, lengths, counts,
        visible_ends), or window_attention
after:  y, key, value = If <then: GroupQueryAttention(q, k, v, past_key, past_value, ...),
        else: the operator's body> (no visible_ends are beyond the tokens' own positions)

The kernel is causal, and no mask adds keys to it. States stay in place through either branch; of a
window, both have the last positions in their order, as the kernel does. On one core a step of 1,000
tokens of a layer of Gemma 3 4B takes 0.44 ms in the kernel, 0.46 within the If, and in bodies 1.7,
or 7.7 for one with a window. Not for GPUs: control flow cannot be captured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from lmcast.exporter.passes.remove_unused import remove_unused
from lmcast.exporter.passes.rewrite import MICROSOFT, nodes_of, replace, written
from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Value
from lmcast.plugins.plugin import REGISTRY


def causal(
    model: ir.Model, at: ir.Node, lengths: ir.Value | None, ends: ir.Value | None
) -> ir.Value:
    """Return whether no token of a call sees one ahead, bool []."""

    def write(op: Builder, lengths: Value, ends: Value) -> Value:
        own = op.Unsqueeze(lengths, [1]) + op.range(op.size(ends, 1))  # B,T
        behind = op.Cast(ends <= own, to=DataType.INT32)
        return op.Cast(op.ReduceMin(behind, keepdims=0), to=DataType.BOOL)

    return written(model, at, write, lengths, ends)[0]


def either(
    model: ir.Model,
    node: ir.Node,
    condition: ir.Value,
    kernel: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
) -> list[ir.Value]:
    """Return what the kernel makes of its inputs, or the body of a node where the condition is
    false: B,T,heads*width and the caches."""
    operator = REGISTRY[node.op_type]
    plain = {
        name: Attribute(name, attribute.type, attribute.value)
        for name, attribute in node.attributes.items()
    }
    names = [a.name for a in operator.schema.arguments if a.name not in plain]
    order = {"ordered": True} if node.op_type == "window_attention" else {}
    numbers = {name: plain[name].value for name in ("scale", "softcap")}  # of nodes, as they are

    def write(op: Builder, condition: Value, *values: Value | None) -> Sequence[Value]:
        own, given = values[: len(kernel)], values[len(kernel) :]

        def fused() -> Sequence[Value]:
            return op.several("GroupQueryAttention", 3, *own, domain=MICROSOFT, **attributes)

        def ahead() -> Sequence[Value]:
            tensors = dict.fromkeys(names) | dict(zip(names, given, strict=False))
            made = operator.body(op, **tensors, **plain | numbers | order)
            assert not isinstance(made, Value)
            return op.Reshape(made[0], [0, 0, -1]), *made[1:]

        return op.branch(condition, fused, ahead)

    return written(model, node, write, condition, *kernel, *node.inputs)


def never_ahead(model: ir.Model) -> int:
    """Take the kernel in all calls, for a caller that gives no pictures; return how often."""
    changes = 0
    for node in nodes_of(model, "If"):
        taken = node.attributes["then_branch"].as_graph()
        if not any(inner.op_type == "GroupQueryAttention" for inner in taken):
            continue
        made, inner = list(taken.outputs), list(taken)
        taken.outputs.clear()
        taken.remove(inner)
        for each in inner:
            each.name = f"{node.name}.{each.name}"
        model.graph.insert_before(node, inner)
        for each in node.attributes["else_branch"].as_graph():  # which uses values no longer
            for place in range(len(each.inputs)):
                each.replace_input_with(place, None)
        replace(model, node, made)
        changes += 1
    if changes:
        remove_unused(model)
    return changes
