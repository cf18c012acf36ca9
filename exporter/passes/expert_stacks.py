"""Stacks of the matrices of experts in few bits, as QMoE takes them.

Letters: E experts, N rows, K columns.
"""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.passes.nbits import integer_weight
from lmcast.exporter.passes.nbits_inputs import bytes_of
from lmcast.graphs.weights.elements import E2M1

BYTE = ir.DataType.UINT8
FP4 = ir.DataType(DTYPES[E2M1.dtype].onnx)
BLOCKS = (32, 64, 128)  # columns that share a scale
# What widths are a multiple of: tiles of the kernel for integers, and blocks of MXFP4.
TILES = {"int": 64, "fp4": 32}


@dataclass(frozen=True)
class Stack:
    """A stack of matrices E,N,K as the kernel takes it.

    kind: its name there; form: attributes that those of a layer share.
    """

    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    kind: str
    shape: tuple[int, ...]
    form: tuple[tuple[str, Any], ...]


def together(gate: ir.Value | None, up: ir.Value | None) -> tuple[ir.Value | None, int]:
    """Return what two values are the rows of, and how: 1 in turns, 2 one half behind the other."""
    found = [_rows(value) for value in (gate, up)]
    if found[0] is None or found[1] is None or found[0][0] is not found[1][0]:
        return None, 0
    (whole, *first), (_, *second) = found[0], found[1]
    assert whole.shape is not None
    rows = int(whole.shape.numpy()[1])
    if (first[0], first[2], second[0], second[2]) == (0, 2, 1, 2):
        return whole, 1
    halves = first == [0, rows // 2, 1] and second == [rows // 2, rows, 1]
    return (whole, 2) if halves else (None, 0)


def _rows(value: ir.Value | None) -> tuple[ir.Value, int, int, int] | None:
    """Return what a value is a slice of along axis 1, and where it starts, stops, and its step."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Slice" or node.inputs[0] is None:
        return None
    given = [ir.convenience.get_const_tensor(bound) for bound in node.inputs[1:] if bound]
    numbers = [tensor.numpy().tolist() for tensor in given if tensor is not None]
    if len(numbers) != 4 or numbers[2] != [1]:
        return None
    (start,), (stop,), _, (step,) = numbers
    return node.inputs[0], start, stop, step


def stack_of(model: ir.Model, value: ir.Value | None, dtype: ir.DataType | None) -> Stack | None:
    """Return the stack that a value is dequantized from, where the kernel takes it."""
    found = _integers(model, value, dtype) or _fp4(model, value)
    if found is None or any(size % TILES[found.kind] for size in found.shape[1:]):
        return None
    return found


def _integers(model: ir.Model, value: ir.Value | None, dtype: ir.DataType | None) -> Stack | None:
    weight = integer_weight(value)
    if weight is None or weight.scales.dtype != dtype or weight.block not in BLOCKS:
        return None
    experts, rows, columns = weight.shape
    blocks, bits = columns // weight.block, weight.bits
    form = {
        "quant_type": "int", "expert_weight_bits": bits, "block_size": weight.block,
        "weights_prepacked": 0,
    }  # fmt: skip
    zeros = None
    if weight.zeros is not None:
        zeros = bytes_of(model, weight.zeros, BYTE, (experts, rows, blocks * bits // 8))
    return Stack(
        bytes_of(model, weight.codes, BYTE, (experts, rows, columns * bits // 8)),
        bytes_of(model, weight.scales, dtype, (experts, rows, blocks)),
        zeros, "int", weight.shape, tuple(form.items()),
    )  # fmt: skip


def _fp4(model: ir.Model, value: ir.Value | None) -> Stack | None:
    """Return a stack of MXFP4 in columns."""
    turn = value.producer() if value is not None else None
    if turn is None or turn.op_type != "Transpose" or turn.inputs[0] is None:
        return None
    node = turn.inputs[0].producer()
    codes = node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None
    if node is None or codes is None or codes.dtype != FP4 or node.inputs[1] is None:
        return None
    turned = node.inputs[1].producer()
    if turned is None or turned.op_type != "Transpose" or turned.inputs[0] is None:
        return None
    assert codes.shape is not None
    experts, columns, rows = (int(n) for n in codes.shape.numpy())
    form = {"quant_type": "fp4", "expert_weight_bits": 4, "block_size": 32}
    bytes_ = bytes_of(model, codes, BYTE, (experts, rows, columns // 2))
    shape = (experts, rows, columns)
    return Stack(bytes_, turned.inputs[0], None, "fp4", shape, tuple(form.items()))
