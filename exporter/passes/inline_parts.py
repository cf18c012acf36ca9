"""Inline the call of a part.

before: layers.3 = Layer0(x, ..., layers.3.mixer.q.weight, ...)
after:  layers.3.mixer.q = MatMul(...), ... under the names that the part gives them

Bodies of one operator, which have names of their own within parts, become its overloads.
"""

import onnx_ir as ir

from lmcast.exporter.graph.lowering import PARTS, VARIANT
from lmcast.exporter.passes.rewrite import inline
from lmcast.plugins.plugin import DOMAIN


def inline_parts(model: ir.Model) -> int:
    parts = {f.name: f for f in model.functions.values() if f.domain == PARTS}
    calls = [node for node in model.graph if node.domain == PARTS]
    for call in calls:
        inline(model.graph, call, parts[call.op_type])
    for function in parts.values():
        del model.functions[function.identifier()]
    model.graph.opset_imports.pop(PARTS, None)
    _as_overloads(model)
    return len(calls)


def _as_overloads(model: ir.Model) -> None:
    for key, function in list(model.functions.items()):
        name, _, number = function.name.partition(VARIANT)
        if function.domain == DOMAIN and number:
            del model.functions[key]
            function.name, function.overload = name, number
            model.functions[function.identifier()] = function
    for node in model.graph:
        if node.domain == DOMAIN and VARIANT in node.op_type:
            node.op_type, _, node.overload = node.op_type.partition(VARIANT)
