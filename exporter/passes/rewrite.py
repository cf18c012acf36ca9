"""Helpers of rewrites: insert, replace and inline nodes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from lmcast.plugins.onnx_builder import Block, Builder, Value

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators


def nodes_of(model: ir.Model, *op_types: str) -> Iterator[ir.Node]:
    """Yield the nodes of these types, in order, while the graph may change."""
    yield from [node for node in model.graph if node.op_type in op_types]


def insert(
    model: ir.Model,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str,
    outputs: int = 1,
    domain: str = "",
) -> list[ir.Value]:
    """Insert a node before another; return its outputs, which are named after it.

    op_type, inputs, attributes, outputs, domain: of the node; outputs is their number.
    name: of the node.
    """
    node = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=outputs, name=name)
    for i, value in enumerate(node.outputs):
        value.name = name if not i else f"{name}.{i}"
    model.graph.insert_before(before, node)
    if domain:
        model.graph.opset_imports[domain] = 1
    return list(node.outputs)


def replace(model: ir.Model, old: ir.Node, values: Sequence[ir.Value]) -> None:
    """Let users of a node's outputs use `values`, under the old names, and remove the node."""
    for before, after in zip(old.outputs, values, strict=True):
        after.name, after.type = before.name, before.type or after.type
        after.shape = before.shape if before.shape is not None else after.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    model.graph.remove(old, safe=True)


def inline(graph: ir.Graph, call: ir.Node, function: ir.Function) -> None:
    """Replace a call by the nodes of its function, named after the call.

    Attributes that the function takes are filled in; none of its nodes may have a subgraph.
    """
    values: dict[ir.Value, ir.Value | None] = dict.fromkeys(function.inputs)
    values |= dict(zip(function.inputs, call.inputs, strict=False))
    outputs = dict(zip(function.outputs, call.outputs, strict=True))
    for node in function:
        new = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else values[value] for value in node.inputs],
            [_filled(attribute, call) for attribute in node.attributes.values()],
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=f"{call.name}.{node.name or node.outputs[0].name}",
        )
        graph.insert_before(call, new)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.name, value.type, value.shape = f"{call.name}.{old.name}", old.type, old.shape
            values[old] = value
    for inner, old in outputs.items():
        result = values[inner]
        assert result is not None
        result.name, result.type = old.name, old.type or result.type
        result.shape = old.shape if old.shape is not None else result.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(call, safe=True)


def _filled(attribute: ir.Attr, call: ir.Node) -> ir.Attr:
    """Return an attribute of a function's node, with the call's value where it names one."""
    if attribute.ref_attr_name is None:
        return attribute
    return ir.Attr(attribute.name, attribute.type, call.attributes[attribute.ref_attr_name].value)


def constant(
    model: ir.Model, before: ir.Node, value: Any, dtype: ir.DataType, name: str
) -> ir.Value:
    """Insert a Constant node."""
    tensor = ir.tensor(value, dtype=dtype)
    return insert(model, before, "Constant", [], {"value": tensor}, name=name)[0]


def written(
    model: ir.Model, before: ir.Node, write: Block, *given: ir.Value | None, label: str = ""
) -> list[ir.Value]:
    """Insert the nodes that `write` writes; return what it returns.

    It takes a Builder and the given values. Nodes are named after the one that they stand before,
    and a label, where that has the name of a module that others are named after, too.
    """
    op, at = Builder(), f"{before.name}.{label}" if label else before.name
    results = write(op, *(None if value is None else Value(op, value) for value in given))
    for node in op.nodes:
        node.name = f"{at}.{node.name}"
        for value in node.outputs:
            value.name = f"{at}.{value.name}"
        model.graph.insert_before(before, node)
    model.graph.opset_imports.update(op.domains)
    return [value.ir for value in ([results] if isinstance(results, Value) else results)]
