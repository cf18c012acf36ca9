"""Drop reshapes that undo each other.

before: Reshape(Reshape(x, [0, 0, heads, width]), [0, 0, -1]) with the shape of x again
after:  x
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import nodes_of


def undo_reshape(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "Reshape"):
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        if inner is None or inner.op_type != "Reshape" or inner.inputs[0] is None:
            continue
        source, out = inner.inputs[0], node.outputs[0]
        if source.shape is None or source.shape != out.shape or out.is_graph_output():
            continue
        out.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
        changes += 1
    return changes
