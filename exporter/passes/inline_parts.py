"""Replace the call of a part by its nodes.

before: layers.3 = Layer0(x, ..., layers.3.mixer.q.weight, ...)
after:  layers.3.mixer.q = MatMul(...), ... under the names that the part gives them
"""

import onnx_ir as ir

from lmcast.exporter.lowering import PARTS
from lmcast.exporter.passes.rewrite import inline


def inline_parts(model: ir.Model) -> int:
    parts = {f.name: f for f in model.functions.values() if f.domain == PARTS}
    calls = [node for node in model.graph if node.domain == PARTS]
    for call in calls:
        inline(model.graph, call, parts[call.op_type])
    for function in parts.values():
        del model.functions[function.identifier()]
    model.graph.opset_imports.pop(PARTS, None)
    return len(calls)
