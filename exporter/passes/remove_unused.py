"""Remove nodes, weights and functions that nothing uses."""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass


def remove_unused(model: ir.Model) -> int:
    wanted = set(model.graph.outputs)
    unused = 0
    for node in reversed(list(model.graph)):
        if not any(value.uses() or value in wanted for value in node.outputs):
            model.graph.remove(node, safe=True)
            unused += 1
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in wanted:
            del model.graph.initializers[name]
            unused += 1
    RemoveUnusedFunctionsPass()(model)
    return unused
