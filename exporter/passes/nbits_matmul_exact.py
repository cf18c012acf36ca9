"""Fuse products with 4- and 8-bit weights into MatMulNBits, which multiplies in the dtype of x.

before: MatMul(x, Transpose(Reshape(DequantizeLinear(codes, scales, zeros))))
after:  com.microsoft.MatMulNBits(x, codes, scales)

So does the kernel for GPUs, in any case; that for CPUs is slow at it (nbits_matmul).
"""

import onnx_ir as ir

from lmcast.exporter.passes.nbits_matmul import EXACT, multiply, products
from lmcast.exporter.passes.rewrite import replace


def nbits_matmul_exact(model: ir.Model) -> int:
    found = list(products(model))
    for node, x, weight in found:
        replace(model, node, [multiply(model, node, x, weight, EXACT, str(node.name))])
    return len(found)
