"""Compute once what depends on small weights alone, vectors of a layer above all.

before: RMSNormalization(x, Add(Cast(weight), 1))
after:  RMSNormalization(x, scale), a weight of the graph

A kernel is launched for each such node in every step, which costs more than it computes.
"""

import numpy as np
import onnx_ir as ir

from lmcast.exporter.passes.evaluate import MOST, evaluate


def fold_small(model: ir.Model) -> int:
    known: dict[ir.Value, np.ndarray] = {}
    changes = 0
    for node in list(model.graph):
        out = node.outputs[0]
        if node.op_type == "Constant" or len(node.outputs) != 1 or out.is_graph_output():
            continue
        found = evaluate(out, known)
        if found is None or found.size > MOST:
            continue
        value = ir.Value(name=out.name)
        value.const_value = ir.tensor(found, name=str(out.name))
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(found.shape)
        out.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        model.graph.initializers[str(value.name)] = value
        known[value] = found
        changes += 1
    return changes
