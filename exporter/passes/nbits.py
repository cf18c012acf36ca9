"""INT4 and INT8 weights of a graph as ONNX Runtime's own operators take them.

Letters: E experts, N rows, K columns, G blocks of a row, S blocks of the whole weight.
"""

import math
from dataclasses import dataclass, replace

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import insert
from lmcast.exporter.weights.integer_forms import has_kernel


@dataclass(frozen=True)
class IntegerWeight:
    """A 4- or 8-bit integer weight with a scale per block, from exporter/weights/attach.py.

    codes: S,block UINT4 or UINT8.
    scales: S fp32, or in the dtype that the graph computes in.
    zeros: S like codes; None where the middle code stands for 0.
    shape: N,K or E,N,K.
    dtype: what the dequantized values are cast to.
    """

    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    shape: tuple[int, ...]
    dtype: ir.DataType

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
    # Without a Reshape where a row is one block.
    made = _maker(node.inputs[0]) if node.op_type == "Reshape" else node
    if made is None or made.op_type != "DequantizeLinear" or "block_size" in made.attributes:
        return None
    codes, scales, zeros = made.inputs
    if codes is None or codes.dtype not in (ir.DataType.UINT4, ir.DataType.UINT8):
        return None
    assert scales is not None and zeros is not None
    stored = isinstance(zeros.const_value, ir.ExternalTensor)
    shape, dtype = _shape(node.outputs[0]), dtype or scales.dtype
    assert dtype is not None
    return IntegerWeight(codes, scales, zeros if stored else None, shape, dtype)


def _maker(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def of_expert(model: ir.Model, stack: IntegerWeight, index: int) -> IntegerWeight:
    """Return the weight of one expert: ranges of the bytes of all."""
    experts, *shape = stack.shape
    blocks = _shape(stack.codes)[0] // experts

    def part(value: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
        return bytes_of(model, value, value.dtype, sizes, index, experts)

    return replace(
        stack,
        codes=part(stack.codes, (blocks, stack.block)),
        scales=part(stack.scales, (blocks,)),
        zeros=None if stack.zeros is None else part(stack.zeros, (blocks,)),
        shape=tuple(shape),
    )


def scales(model: ir.Model, at: ir.Node, weight: IntegerWeight, name: str) -> ir.Value:
    """Return the scales of a weight in what kernels compute in."""
    have, want = weight.scales.dtype, weight.computed
    assert have is not None
    return cast(model, at, weight.scales, have, want, f"{name}.scales")


def cast(
    model: ir.Model, at: ir.Node, value: ir.Value, have: ir.DataType, want: ir.DataType, name: str
) -> ir.Value:
    """Return a value in another dtype, if it is one."""
    if have == want:
        return value
    out = insert(model, at, "Cast", [value], {"to": want}, name=name)[0]
    out.type, out.shape = ir.TensorType(want), value.shape
    return out


def bytes_of(
    model: ir.Model,
    value: ir.Value,
    kind: ir.DataType | None,
    shape: tuple[int, ...],
    index: int = 0,
    parts: int = 1,
) -> ir.Value:
    """Return one of `parts` equal parts of a weight's bytes as a weight of this shape."""
    whole = value.const_value
    assert isinstance(whole, ir.ExternalTensor)
    assert whole.offset is not None and whole.length is not None and kind is not None
    size = whole.length // parts
    assert size * parts == whole.length and size == math.ceil(math.prod(shape) * kind.itemsize)
    name = f"{value.name}.{index}" if parts > 1 else f"{value.name}.{'x'.join(map(str, shape))}"
    if name not in model.graph.initializers:
        sizes = ir.Shape(shape)
        out = ir.Value(name=name, type=ir.TensorType(kind), shape=sizes)
        out.const_value = ir.ExternalTensor(
            whole.location, whole.offset + index * size, size, kind,
            shape=sizes, name=name, base_dir=whole.base_dir,
        )  # fmt: skip
        model.graph.initializers[name] = out
    return model.graph.initializers[name]


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())
