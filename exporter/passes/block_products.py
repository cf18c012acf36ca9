"""Fuse products with FP8 and NVFP4 weights into the kernels that read their codes.

before: MatMul(x, Transpose(Cast(DequantizeLinear(codes, scales))))
after:  com.microsoft.MatMulBlockQuantizedFp8Weight(x, codes, scales)
        com.microsoft.MatMulBlockQuantizedFp4Weight(x, codes, scales, shared)
"""

from dataclasses import dataclass

import onnx_ir as ir

from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.passes.nbits_inputs import bytes_of
from lmcast.exporter.passes.rewrite import MICROSOFT, insert, nodes_of, replace
from lmcast.graphs.weights.elements import E2M1, E4M3

SHORT = ir.DataType.FLOAT16, ir.DataType.BFLOAT16  # what the kernels compute in
FP8, FP4 = (ir.DataType(DTYPES[element.dtype].onnx) for element in (E4M3, E2M1))


@dataclass(frozen=True)
class BlockWeight:
    """A weight N,K with a scale for each block of a row, from exporter/weights/attach.py.

    scales: N,G: fp32, or E4M3 that `shared` () multiplies.
    """

    codes: ir.Value
    scales: ir.Value
    shared: ir.Value | None
    block: int


def block_products(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "MatMul"):
        x, transposed = node.inputs
        turn = transposed.producer() if transposed is not None else None
        if x is None or turn is None or turn.op_type != "Transpose" or turn.inputs[0] is None:
            continue
        weight = _weight(turn.inputs[0])
        if weight is None or turn.inputs[0].dtype not in SHORT:
            continue
        replace(model, node, [_product(model, node, x, weight)])
        changes += 1
    return changes


def _weight(value: ir.Value | None) -> BlockWeight | None:
    """Return the weight that a value is dequantized from, None for anything else."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Cast":
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) > 2:
        return None
    codes, scales = node.inputs
    block = node.attributes.get("block_size")
    if codes is None or scales is None or block is None or len(codes.shape or ()) != 2:
        return None
    if codes.dtype == FP8 and scales.is_initializer() and scales.dtype == ir.DataType.FLOAT:
        return BlockWeight(codes, scales, None, block.as_int())
    maker = scales.producer()
    if codes.dtype != FP4 or maker is None or maker.op_type != "DequantizeLinear":
        return None
    stored, shared = maker.inputs
    if stored is None or shared is None or not shared.is_initializer():
        return None
    return BlockWeight(codes, stored, shared, block.as_int())


def _product(model: ir.Model, at: ir.Node, x: ir.Value, weight: BlockWeight) -> ir.Value:
    given, name = {"block_size": weight.block}, str(at.name)
    if weight.shared is None:
        operator, inputs = "MatMulBlockQuantizedFp8Weight", [x, weight.codes, weight.scales]
    else:
        rows, columns = (int(n) for n in (weight.codes.shape or ir.Shape(())).numpy())
        blocks = tuple(int(n) for n in (weight.scales.shape or ir.Shape(())).numpy())
        byte = ir.DataType.UINT8
        codes = bytes_of(model, weight.codes, byte, (rows, columns // 2))
        scales = bytes_of(model, weight.scales, byte, blocks)
        operator, inputs = "MatMulBlockQuantizedFp4Weight", [x, codes, scales, weight.shared]
    return insert(model, at, operator, inputs, given, name=name, domain=MICROSOFT)[0]
