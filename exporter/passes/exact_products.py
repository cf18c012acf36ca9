"""Products with 4- and 8-bit weights that do not round their inputs (export --activations exact).

before: com.microsoft.MatMulNBits with accuracy_level ROUNDED
after:  the same with EXACT, which multiplies in fp32
"""

import onnx_ir as ir

from lmcast.exporter.passes.nbits_matmul import EXACT, ROUNDED
from lmcast.exporter.passes.rewrite import nodes_of


def exact_products(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "MatMulNBits"):
        if node.attributes["accuracy_level"].as_int() == ROUNDED:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", EXACT)
            changes += 1
    return changes
