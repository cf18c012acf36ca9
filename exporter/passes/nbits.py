"""INT4 and INT8 weights of a graph as ONNX Runtime's own operators take them.

Letters: E experts, N rows, K columns, G blocks of a row, S blocks of the whole weight.
"""

from dataclasses import dataclass

import onnx_ir as ir

from lmcast.exporter.weights.integer_forms import has_kernel


@dataclass(frozen=True)
class IntegerWeight:
    """A 4- or 8-bit integer weight with a scale per block, from exporter/weights/attach.py.

    codes: S,block UINT4 or UINT8.
    scales: S fp32, or in the dtype that the graph computes in; stored, or computed at load.
    zeros: S like codes; None where the middle code stands for 0.
    shape: N,K or E,N,K.
    dtype: what the dequantized values are cast to.
    offsets: S,1 like scales, which are added to the numbers of a block; None for none.
    """

    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    shape: tuple[int, ...]
    dtype: ir.DataType
    offsets: ir.Value | None = None

    @property
    def block(self) -> int:
        return _shape(self.codes)[1]

    @property
    def bits(self) -> int:
        return 4 if self.codes.dtype == ir.DataType.UINT4 else 8

    @property
    def computed(self) -> ir.DataType:
        """What kernels compute in: what its scales are in, or fp32 where it is wider than those."""
        wide = ir.DataType.FLOAT
        return wide if wide in (self.dtype, self.scales.dtype) else self.dtype

    @property
    def has_kernel(self) -> bool:
        return has_kernel(self.block, self.shape[-1], self.bits, self.zeros is not None)


def integer_weight(value: ir.Value | None) -> IntegerWeight | None:
    """Return the weight that a value is dequantized from; None for anything else."""
    node, dtype = _maker(value), None
    while node is not None and node.op_type == "Cast":
        dtype = dtype or ir.DataType(node.attributes["to"].as_int())
        node = _maker(node.inputs[0])
    if node is None:
        return None
    made: ir.Node | None = node
    offsets = None
    if node.op_type == "Reshape":  # there is none where a row is one block
        made = _maker(node.inputs[0])
    if (lifted := made) is not None and lifted.op_type == "Add":
        made, offsets = _maker(lifted.inputs[0]), lifted.inputs[1]
    if made is None or made.op_type != "DequantizeLinear" or "block_size" in made.attributes:
        return None
    codes, scales, zeros = made.inputs
    if codes is None or codes.dtype not in (ir.DataType.UINT4, ir.DataType.UINT8):
        return None
    assert scales is not None and zeros is not None
    stored = isinstance(zeros.const_value, ir.ExternalTensor)
    shape, dtype = _shape(node.outputs[0]), dtype or scales.dtype
    assert dtype is not None
    return IntegerWeight(codes, scales, zeros if stored else None, shape, dtype, offsets)


def _maker(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())
