"""Replace the call of a part by its nodes.

before: layers.3 = Layer0(x, ..., layers.3.mixer.q.weight, ...)
after:  layers.3.mixer.q = MatMul(...), ... under the names that the part gives them
"""

import onnx_ir as ir

from lmcast.exporter.lowering import PARTS


def inline_parts(model: ir.Model) -> int:
    parts = {f.name: f for f in model.functions.values() if f.domain == PARTS}
    calls = [node for node in model.graph if node.domain == PARTS]
    for call in calls:
        _inline(model.graph, call, parts[call.op_type])
    for function in parts.values():
        del model.functions[function.identifier()]
    model.graph.opset_imports.pop(PARTS, None)
    return len(calls)


def _inline(graph: ir.Graph, call: ir.Node, part: ir.Function) -> None:
    values: dict[ir.Value, ir.Value | None] = dict(zip(part.inputs, call.inputs, strict=True))
    outputs = dict(zip(part.outputs, call.outputs, strict=True))
    for node in part:
        new = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else values[value] for value in node.inputs],
            node.attributes.values(),
            num_outputs=len(node.outputs),
            name=f"{call.name}.{node.name}",
        )
        graph.insert_before(call, new)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.name, value.type, value.shape = f"{call.name}.{old.name}", old.type, old.shape
            values[old] = value
    for inner, old in outputs.items():
        result = values[inner]
        assert result is not None
        result.name = old.name
        old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(call, safe=True)
