"""Rewrite quantized weights into forms that TensorRT builds, without changing a value.

Power-of-two scales become BF16, which represents them all: TensorRT has no initializers of E8M0,
and as bytes they would become fp16, which ends at 2^-24. A scale per row or per matrix takes the
dtype of the cast after it; block scales and those of 4-bit codes do not, and keep the cast. A block
that is a whole row is a scale per row. Partial blocks at the last column become TensorRT's
TRT_BlockDequantize.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from lmcast.exporter.backends.tensorrt.formats import NUMBERS, Weight, weights
from lmcast.exporter.backends.tensorrt.request import Request
from lmcast.exporter.dtypes import OF_ONNX
from lmcast.exporter.passes.quantized_products import TRT
from lmcast.exporter.passes.rewrite import insert, replace
from lmcast.graphs.weights.elements import E2M1

MADE = "made"  # the key of Made among what is known of an initializer
CHUNK = 16 << 20  # codes that are looked up at once: each takes 8 bytes of indices meanwhile


@dataclass(frozen=True)
class Made:
    """An initializer whose bytes are looked up from those of its file, one by one.

    table: 256 entries, each the number for a byte, or two numbers.
    """

    table: np.ndarray

    def compute(self, stored: np.ndarray) -> np.ndarray:
        out = np.empty((len(stored), *self.table.shape[1:]), self.table.dtype)
        for start in range(0, len(stored), CHUNK):
            part = slice(start, start + CHUNK)
            out[part] = self.table[stored[part]]
        return out


def rewrite(graph: ir.Model, request: Request) -> None:
    """Rewrite all quantized weights; widen those that an SM has no arithmetic for, if asked."""
    for weight in list(weights(graph)):
        if request.widen and weight.lacking(request.sms):
            widen(weight)
        if weight.scales.dtype == ir.DataType.FLOAT8E8M0:
            in_bfloat16(graph, weight)
            continue
        if _one_block(weight):
            by_rows(weight)
        if _cut_off(weight):
            in_blocks(graph, weight)
        elif "block_size" not in weight.node.attributes:
            with_cast(graph, weight)


def widen(weight: Weight) -> None:
    """Store E2M1 codes as E4M3, which has all their values, in twice the bytes."""
    numbers = E2M1.decode(torch.arange(256, dtype=torch.uint8)[:, None]).numpy()
    wider = NUMBERS[weight.kind].wider
    assert wider is not None
    _make(weight.codes, wider, Made(numbers.astype(wider.numpy())))


def in_bfloat16(graph: ir.Model, weight: Weight) -> None:
    """Store power-of-two scales as BF16, and cast the dequantized weight afterwards."""
    if MADE not in weight.scales.meta:
        powers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)
        wide = powers.astype(np.float32).astype(ml_dtypes.bfloat16)
        _make(weight.scales, ir.DataType.BFLOAT16, Made(wide))
    (out,) = weight.node.outputs
    (made,) = _dequantized(graph, weight, {})
    made.type, made.shape = ir.TensorType(ir.DataType.BFLOAT16), out.shape
    if out.dtype != ir.DataType.BFLOAT16:
        to = {"to": out.dtype}
        (made,) = insert(graph, weight.node, "Cast", [made], to, name=f"{weight.node.name}.cast")
    replace(graph, weight.node, [made])


def by_rows(weight: Weight) -> None:
    """Turn block scales of whole rows into one scale per row: for INT8, TensorRT for RTX 1.7
    compiles nothing else ('operand.h: CHECK(is_value()) failed')."""
    tensor, attributes = weight.scales.const_value, weight.node.attributes
    assert isinstance(tensor, ir.ExternalTensor)
    del attributes["block_size"]
    attributes["axis"] = ir.AttrInt64("axis", 0)
    weight.scales.shape = ir.Shape(_sizes(weight.scales)[:1])
    weight.scales.const_value = _external(tensor, tensor.dtype, weight.scales.shape)


def in_blocks(graph: ir.Model, weight: Weight) -> None:
    """Dequantize blocks of which the last is partial."""
    node = weight.node
    along = [1] * (len(_sizes(weight.codes)) - 1)
    shape = {"block_shape": [*along, node.attributes["block_size"].as_int()]}
    name = f"{node.name}.blocks"
    made = insert(graph, node, "TRT_BlockDequantize", node.inputs, shape, name=name, domain=TRT)
    replace(graph, node, made)


def with_cast(graph: ir.Model, weight: Weight) -> None:
    """Dequantize a weight with one scale per row directly into the dtype that it is cast to; for
    4 bits, TensorRT for RTX 1.7 compiles only scales of that same dtype."""
    if OF_ONNX[weight.kind].bits == 4:
        return
    users = [user for user, _ in weight.node.outputs[0].uses()]
    if [user.op_type for user in users] == ["Cast"]:
        to = users[0].attributes["to"].as_int()
        replace(graph, users[0], _dequantized(graph, weight, {"output_dtype": to}))
        graph.graph.remove(weight.node, safe=True)


def _dequantized(graph: ir.Model, weight: Weight, more: dict[str, int]) -> list[ir.Value]:
    """Insert the node of a weight again, in the format of its scales or as `more` says."""
    node = weight.node
    attributes = {k: v.as_int() for k, v in node.attributes.items() if k != "output_dtype"}
    return insert(
        graph, node, node.op_type, node.inputs, attributes | more, name=f"{node.name}.numbers"
    )


def _make(value: ir.Value, kind: ir.DataType, made: Made) -> None:
    """Have an initializer in another format, made of the bytes it is stored as."""
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    value.meta[MADE] = made
    value.type = ir.TensorType(kind)
    value.const_value = _external(tensor, kind, tensor.shape)


def _external(tensor: ir.ExternalTensor, kind: ir.DataType, shape: ir.Shape) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, kind,
        shape=shape, name=tensor.name, base_dir=tensor.base_dir,
    )  # fmt: skip


def _one_block(weight: Weight) -> bool:
    """Whether every row of a matrix is one block."""
    block = weight.node.attributes.get("block_size")
    sizes = _sizes(weight.codes)
    whole = block is not None and len(sizes) == 2 and block.as_int() >= sizes[1]
    return whole and weight.scales.is_initializer()


def _cut_off(weight: Weight) -> bool:
    """Whether the last block of a row ends before it is full."""
    block = weight.node.attributes.get("block_size")
    return block is not None and bool(_sizes(weight.codes)[-1] % block.as_int())


def _sizes(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())
