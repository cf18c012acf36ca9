"""Sizes that a graph fixes are constants.

before: Shape <start = 2, end = 3> (past), of a window with 8 slots
after:  [8]

What is computed with a size of unknown value is computed on the host; with these it is computed
once, before anything runs (fold_small).
"""

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lmcast.exporter.passes.rewrite import constant, nodes_of, replace


def known_sizes(model: ir.Model) -> int:
    found = list(nodes_of(model, "Shape"))
    if any(node.inputs[0] is not None and node.inputs[0].shape is None for node in found):
        ShapeInferencePass()(model)  # bodies have no shapes
    changes = 0
    for node in found:
        (x,) = node.inputs
        if x is None or x.shape is None:
            continue
        bounds = (node.attributes.get(name) for name in ("start", "end"))
        first, last = (None if bound is None else bound.as_int() for bound in bounds)
        sizes = list(x.shape)[first:last]
        if not all(isinstance(size, int) for size in sizes):
            continue
        name = str(node.name)
        replace(model, node, [constant(model, node, sizes, ir.DataType.INT64, name)])
        changes += 1
    return changes
