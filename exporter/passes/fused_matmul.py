"""Fuse the transposition of a weight into the product: it is read as stored, [out, in].

before: MatMul(x, Transpose(weight))
after:  com.microsoft.FusedMatMul(x, weight, transB=1)

ONNX Runtime folds the Transpose of a weight into a private copy; FusedMatMul reads the mapped file.
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import MICROSOFT, insert, nodes_of, replace


def fused_matmul(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "MatMul"):
        x, transposed = node.inputs
        producer = transposed.producer() if transposed is not None else None
        if producer is None or producer.op_type != "Transpose":
            continue
        if tuple(producer.attributes["perm"].as_ints()) != (1, 0):
            continue
        values = insert(
            model,
            node,
            "FusedMatMul",
            [x, producer.inputs[0]],
            {"transB": 1},
            name=str(node.name),
            domain=MICROSOFT,
        )
        replace(model, node, values)
        changes += 1
    return changes
