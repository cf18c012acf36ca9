"""Products whose weights are dequantized once for all calls, some rows of them at a time.

before: com.microsoft.MatMulNBits(x, codes, scales, zeros)
after:  MatMul(x, Transpose(com.microsoft.GatherBlockQuantized(codes, rows, scales, zeros)))

A kernel that does not round its inputs dequantizes its weight in every call, which takes 20 times
as long as to multiply one token with it. Both operators read the same bytes.

Letters: N rows of a weight, K columns, G blocks of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmcast.exporter.passes.nbits_inputs import bytes_of
from lmcast.exporter.passes.rewrite import MICROSOFT, constant, insert, nodes_of, replace

CODES, SCALES, ZEROS = 1, 2, 3  # among the inputs of MatMulNBits


@dataclass(frozen=True)
class Piece:
    """Some rows of a weight, N int64. bytes: of their numbers, once they are dequantized."""

    rows: np.ndarray
    bytes: int


def wide_bytes(model: ir.Model) -> int:
    """Return how many bytes the weights are, dequantized, that `dequantize` would."""
    return sum(_bytes(node) * node.attributes["N"].as_int() for node in _products(model))


def dequantize(model: ir.Model, most: int) -> dict[str, Piece]:
    """Rewrite products so that weights are dequantized in pieces of up to `most` bytes.

    Returns the pieces, whose rows are inputs of the graph from then on, by the names of those.
    """
    pieces = dict[str, Piece]()
    for node in list(_products(model)):
        n, most_rows, parts = node.attributes["N"].as_int(), max(1, most // _bytes(node)), []
        for begin in range(0, n, most_rows):
            name = f"{node.name}.rows.{begin}"
            taken = np.arange(begin, min(n, begin + most_rows))
            shape = ir.Shape([len(taken)])
            rows = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=shape)
            model.graph.inputs.append(rows)
            pieces[name] = Piece(taken, len(taken) * _bytes(node))
            parts.append(_product(model, node, rows, name))
        if len(parts) > 1:
            parts = insert(model, node, "Concat", parts, {"axis": -1}, name=f"{node.name}.pieces")
        replace(model, node, parts)
    return pieces


def _products(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the products whose weights are as GatherBlockQuantized takes them, too."""
    for node in nodes_of(model, "MatMulNBits"):
        stored = (value for value in (*node.inputs[CODES:SCALES], *node.inputs[ZEROS:]) if value)
        if len(node.inputs) <= ZEROS + 1 and all(
            isinstance(value.const_value, ir.ExternalTensor) for value in stored
        ):
            yield node


def _bytes(node: ir.Node) -> int:
    """Return how many bytes a row is, dequantized: in fp32, if not in what scales are in."""
    scales = node.inputs[SCALES]
    assert scales is not None
    size = 4 if scales.dtype is None else scales.dtype.itemsize
    return int(node.attributes["K"].as_int() * size)


def _product(model: ir.Model, node: ir.Node, rows: ir.Value, name: str) -> ir.Value:
    """Return x times these rows of a weight, transposed."""
    n, k, bits, block = (node.attributes[a].as_int() for a in ("N", "K", "bits", "block_size"))
    x, codes, scales, *zeros = node.inputs
    assert codes is not None and scales is not None
    byte, of_row = ir.DataType.UINT8, k // block
    inputs = [bytes_of(model, codes, byte, (n, k * bits // 8)), rows]
    if isinstance(scales.const_value, ir.ExternalTensor):
        inputs.append(bytes_of(model, scales, scales.dtype, (n, of_row)))
    else:
        sizes = constant(model, node, [n, of_row], ir.DataType.INT64, f"{name}.sizes")
        inputs += insert(model, node, "Reshape", [scales, sizes], name=f"{name}.scales")
    inputs += [bytes_of(model, z, byte, (n, of_row * bits // 8)) for z in zeros if z is not None]
    given = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    wide = insert(
        model, node, "GatherBlockQuantized", inputs, given, name=f"{name}.wide", domain=MICROSOFT
    )
    turned = insert(model, node, "Transpose", wide, {"perm": [1, 0]}, name=f"{name}.turned")
    return insert(model, node, "MatMul", [x, *turned], name=f"{name}.product")[0]
