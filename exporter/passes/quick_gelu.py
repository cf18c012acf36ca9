"""Compute x * sigmoid(x) in one pass over memory.

before: Mul(x, Sigmoid(x))
after:  com.microsoft.QuickGelu(x, alpha=1)
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import MICROSOFT, insert, nodes_of, replace


def quick_gelu(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "Mul"):
        x, gate = node.inputs
        producer = gate.producer() if gate is not None else None
        if producer is None or producer.op_type != "Sigmoid" or producer.inputs[0] is not x:
            continue
        values = insert(
            model, node, "QuickGelu", [x], {"alpha": 1.0}, name=str(node.name), domain=MICROSOFT
        )
        replace(model, node, values)
        changes += 1
    return changes
