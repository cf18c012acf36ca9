"""Fuse products with 4- and 8-bit weights into MatMulNBits, which reads the codes as stored.

before: MatMul(x, Transpose(Reshape(DequantizeLinear(codes, scales, zeros))))
after:  com.microsoft.MatMulNBits(x, codes, scales)
before: MatMul(x, Transpose(Reshape(Add(DequantizeLinear(codes, scales, zeros), offsets))))
after:  MatMulNBits(x, codes, scales) + MatMul(sums of blocks of x, Transpose(offsets))

The kernel for CPUs rounds each block of x to int8 (ROUNDED). Where the model rounds x itself
it multiplies in fp32; with 8 bits it has no fast way to do that, and the weight is dequantized.
"""

from collections.abc import Iterator

import onnx_ir as ir

from lmcast.exporter.graph.requirements import require
from lmcast.exporter.passes.nbits import IntegerWeight, integer_weight
from lmcast.exporter.passes.nbits_inputs import (
    bytes_of,
    cast,
    in_matrix,
    require_constants,
    scales,
)
from lmcast.exporter.passes.rewrite import MICROSOFT, constant, insert, nodes_of, replace
from lmcast.graphs.weights.quantized_parts import parameters_of
from lmcast.plugins.quantize.quantize_input import quantize_input

# How MatMulNBits multiplies: in fp32; or with each block of inputs rounded to int8 by its largest
# value, which is 4 times as fast with 4 bits and the only fast way with 8.
EXACT, ROUNDED = 0, 4


def nbits_matmul(model: ir.Model) -> int:
    changes = 0
    for node, x, weight in products(model):
        maker = x.producer()
        rounded = maker is not None and maker.op_type == quantize_input.name
        if rounded and weight.bits == 8:
            continue
        accuracy = EXACT if rounded else ROUNDED
        replace(model, node, [multiply(model, node, x, weight, accuracy, str(node.name))])
        changes += 1
    return changes


def products(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value, IntegerWeight]]:
    """Yield the products with a transposed weight that has a kernel: x, and the weight."""
    for node in nodes_of(model, "MatMul"):
        x, transposed = node.inputs
        producer = transposed.producer() if transposed is not None else None
        if x is None or producer is None or producer.op_type != "Transpose":
            continue
        weight = integer_weight(producer.inputs[0])
        if weight is None or not weight.has_kernel or len(weight.shape) != 2:
            continue
        if tuple(producer.attributes["perm"].as_ints()) == (1, 0):
            yield node, x, weight


def multiply(
    model: ir.Model, at: ir.Node, x: ir.Value, weight: IntegerWeight, accuracy: int, name: str
) -> ir.Value:
    """Return x ...,K times the transpose of a weight N,K that has a kernel.

    The kernel is fast in a layout of its own alone, which is made at load.
    """
    n, k = weight.shape
    of_row = k // weight.block
    byte, kind = ir.DataType.UINT8, weight.computed
    width = weight.block * weight.bits // 8
    wide = cast(model, at, x, weight.dtype, kind, f"{name}.wide")
    inputs = [
        wide,
        bytes_of(model, weight.codes, byte, (n, of_row, width)),
        scales(model, at, weight, name),
    ]
    if weight.zeros is not None:
        inputs.append(bytes_of(model, weight.zeros, byte, (n, of_row * weight.bits // 8)))
    given = {"K": k, "N": n, "bits": weight.bits, "block_size": weight.block}
    given["accuracy_level"] = accuracy
    label = name if weight.dtype == kind and weight.offsets is None else f"{name}.product"
    out = insert(model, at, "MatMulNBits", inputs, given, name=label, domain=MICROSOFT)[0]
    require(model, prepack=True)
    require_constants(model, weight)
    if weight.offsets is not None:
        sums = sums_of_blocks(model, at, wide, weight, name)
        more = product_with_offsets(model, at, sums, weight, name)
        label = name if weight.dtype == kind else f"{name}.total"
        out = insert(model, at, "Add", [out, more], name=label)[0]
    return cast(model, at, out, kind, weight.dtype, name)


def sums_of_blocks(
    model: ir.Model, at: ir.Node, x: ir.Value, weight: IntegerWeight, name: str
) -> ir.Value:
    """Return the sums of x ...,K over the blocks of a weight: ...,G."""
    assert x.shape is not None
    block = weight.block
    sizes = [0] * (len(x.shape) - 1) + [weight.shape[-1] // block, block]  # 0: as it is
    split = constant(model, at, sizes, ir.DataType.INT64, f"{name}.sizes")
    last = constant(model, at, [-1], ir.DataType.INT64, f"{name}.last")
    (blocks,) = insert(model, at, "Reshape", [x, split], name=f"{name}.blocks")
    given = {"keepdims": 0}
    return insert(model, at, "ReduceSum", [blocks, last], given, name=f"{name}.sums")[0]


def product_with_offsets(
    model: ir.Model, at: ir.Node, sums: ir.Value, weight: IntegerWeight, name: str
) -> ir.Value:
    """Return the product of x with what is added to the numbers of blocks, from its sums."""
    offsets = weight.offsets
    assert offsets is not None and offsets.dtype is not None
    matrix = in_matrix(model, at, weight, offsets, f"{name}.offsets")
    matrix = cast(model, at, matrix, offsets.dtype, weight.computed, f"{name}.wide_offsets")
    turn = {"perm": [1, 0]}
    (turned,) = insert(model, at, "Transpose", [matrix], turn, name=f"{name}.turned")
    return insert(model, at, "MatMul", [sums, turned], name=f"{name}.more")[0]


def rounded_products(graph: ir.Model) -> dict[str, int]:
    """Return the parameters whose products round their inputs, and how many share a scale."""
    found = dict[str, int]()
    for node in graph.graph:
        if node.op_type == "MatMulNBits" and node.attributes["accuracy_level"].as_int() == ROUNDED:
            codes = node.inputs[1]
            assert codes is not None
            block = node.attributes["block_size"].as_int()
            found |= dict.fromkeys(parameters_of(str(codes.name)), block)
    return found
