"""Common subexpression elimination: nodes of equal operator, inputs and attributes are one.

before: a = Cast(n), b = Cast(n), f(a, b)
after:  a = Cast(n), f(a, a)
"""

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass


def merge_equal(model: ir.Model) -> int:
    before = len(model.graph)
    CommonSubexpressionEliminationPass()(model)
    return before - len(model.graph)
