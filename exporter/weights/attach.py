"""Attach the weights of a graph: as ranges of files, or computed by nodes from several of them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.engine.names import ROOT
from lmcast.exporter.graph.lowering import onnx_dtype
from lmcast.exporter.weights.place import Placed, Placement, location
from lmcast.exporter.weights.quantized import PackedWeight
from lmcast.graphs.weights.bind import Binding
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.graphs.weights.sources import Joined, Packed, Source, Stack, View, in_runs


def attach(
    graph: ir.Model, binding: Binding, placement: Placement, checkpoint: Checkpoint, directory: Path
) -> None:
    """Attach the stored bytes to the weights of `graph`.

    A weight that is stored in another layout than the graph needs (a stack of experts, a transposed
    or interleaved matrix, a quantized weight) is computed by nodes from the stored tensors.
    """
    _Attaching(graph.graph, binding, placement, checkpoint, directory).run()


class _Attaching:
    def __init__(
        self,
        graph: ir.Graph,
        binding: Binding,
        placement: Placement,
        checkpoint: Checkpoint,
        directory: Path,
    ):
        self.graph, self.sources, self.checkpoint = graph, binding.sources, checkpoint
        self.placed, self.packed = placement.placed, placement.packed
        self.within, self.wholes = placement.within, dict[str, ir.Value]()
        self.linked = placement.mode == "link"  # then `packed` has the quantized weights of sources
        self.directory = str(directory)
        self.first = graph[0] if len(graph) else None
        self.param, self.dtype, self.count = "", ir.DataType.FLOAT, 0

    def run(self) -> None:
        for name, value in list(self.graph.initializers.items()):
            if name in self.placed:
                value.const_value = self._external(value, self.placed[name])
                continue
            assert value.dtype is not None
            self.param, self.dtype, self.count = name, value.dtype, 0
            if name in self.within:
                derived = self.part(*self.within[name], _shape(value))
            elif name in self.packed and not self.linked:
                derived = self.unpack(name, _shape(value), self.packed[name])
            else:
                derived = self.emit(self.sources[name])
            del self.graph.initializers[name]
            value.replace_all_uses_with(derived)
            derived.name = name

    def part(self, name: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> ir.Value:
        """Return what a parameter of this shape is of one that it is stored together with."""
        if name not in self.wholes:
            sizes = (shape[0], 2 * shape[1], *shape[2:])
            found = self.packed.get(name)
            self.wholes[name] = (
                self.initializer(name, sizes, self.dtype)
                if found is None
                else self.unpack(name, sizes, found)
            )
        return self.select(self.wholes[name], index)

    def emit(self, source: Source) -> ir.Value:
        """Return the values of a source, computed by new nodes at the start of the graph."""
        if isinstance(source, View | Packed):
            view = source if isinstance(source, View) else source.values
            found = self.select(self.whole(source), view.index)
            if view.transposed:
                axes = list(range(len(_shape(found))))
                axes[-2:] = axes[:-3:-1]
                shape = [_shape(found)[axis] for axis in axes]
                found = self.node("Transpose", [found], {"perm": axes}, shape)
            return found
        parts = [self.emit_row(part) for part in source.parts] if isinstance(source, Stack) else [
            self.emit(part) for part in source.parts
        ]  # fmt: skip
        axis = source.axis if isinstance(source, Joined) else 0
        shape = list(_shape(parts[0]))
        shape[axis] *= len(parts)
        return self.node("Concat", parts, {"axis": axis}, shape)

    def emit_row(self, part: Source) -> ir.Value:
        """Return an entry of a stack, with the axis of the stack in front."""
        if isinstance(part, View) and part.whole:
            shape = self.checkpoint.tensors[part.tensor].shape
            return self.initializer(part.tensor, (1, *shape))
        found = self.emit(part)
        return self.node("Unsqueeze", [found, self.numbers([0])], {}, [1, *_shape(found)])

    def whole(self, source: View | Packed) -> ir.Value:
        """Return the value that a view selects from."""
        if isinstance(source, Packed):
            name = source.values.tensor
            weight = self.packed[name]
            return self.unpack(name, weight.parts[Part.CODES].shape, weight)
        stored = self.checkpoint.tensors[source.tensor].shape
        if source.runs is not None:
            stored = in_runs(source.tensor, stored, source.runs)
        return self.initializer(source.tensor, stored)

    def unpack(self, name: str, shape: tuple[int, ...], weight: PackedWeight) -> ir.Value:
        """Dequantize a weight from its codes and scales."""
        parts = {
            part: self.initializer(part.of(name), given.shape, ir.DataType(given.dtype.onnx))
            for part, given in weight.parts.items()
        }
        if weight.form == "standard":
            return self.cast(self.dequantize_parts(parts, shape, weight), self.dtype)
        if weight.form == "columns":
            return self.dequantize_columns(parts, shape, weight)
        codes, scales = parts[Part.CODES], self.factors(parts, weight, Part.SCALES, Part.SHARED)
        sizes, wide = list(_shape(codes)), scales.dtype
        assert wide is not None
        if weight.form == "numbers":
            out = self.node("Mul", [self.cast(codes, wide), scales], {}, sizes, wide)
        else:
            zeros = parts.get(Part.ZEROS) or self.fill(_shape(scales), weight.offset, codes.dtype)
            taken = [codes, scales, zeros]
            out = self.node("DequantizeLinear", taken, {"axis": 0}, sizes, wide)
        if Part.MINIMA in parts:
            offsets = self.offsets(parts, weight, scales)
            out = self.node("Add", [out, offsets], {}, sizes, wide)
        if sizes != list(shape):
            out = self.node("Reshape", [out, self.numbers(list(shape))], {}, list(shape), wide)
        return self.cast(out, self.dtype)

    def factors(
        self, parts: Mapping[Part, ir.Value], weight: PackedWeight, of_blocks: Part, of_runs: Part
    ) -> ir.Value:
        """Return numbers of blocks, which may be multiples of what runs of them share."""
        blocks = parts[of_blocks]
        if weight.computed is None:
            return blocks
        wide = ir.DataType(weight.computed.onnx)
        if of_runs not in parts:
            return self.cast(blocks, wide)
        sizes = list(_shape(blocks))
        taken = [self.cast(blocks, wide), self.cast(parts[of_runs], wide)]
        out, rows = self.node("Mul", taken, {}, sizes, wide), math.prod(sizes)
        return self.node("Reshape", [out, self.numbers([rows])], {}, [rows], wide)

    def offsets(
        self, parts: Mapping[Part, ir.Value], weight: PackedWeight, scales: ir.Value
    ) -> ir.Value:
        """Return what is added to numbers that are multiples of the scales: of blocks, S,1.

        In fp32, as ONNX Runtime computes constants at load by kernels of CPUs, which take no fp16.
        """
        minima = self.factors(parts, weight, Part.MINIMA, Part.SHARED_MINIMA)
        kind, wide, sizes = minima.dtype, ir.DataType.FLOAT, list(_shape(minima))
        assert kind is not None
        least = ir.tensor(float(-weight.scheme.least), dtype=wide)
        by = self.node("Constant", [], {"value": least}, [], wide)
        lift = self.node("Mul", [self.cast(scales, wide), by], {}, sizes, wide)
        total = self.node("Add", [self.cast(minima, wide), lift], {}, sizes, wide)
        column = [sizes[0], 1]
        found = self.node("Reshape", [total, self.numbers(column)], {}, column, wide)
        return self.cast(found, kind)

    def dequantize_parts(
        self, parts: Mapping[Part, ir.Value], shape: tuple[int, ...], weight: PackedWeight
    ) -> ir.Value:
        """Dequantize a weight in the standard form, by DequantizeLinear."""
        scales = parts[Part.SCALES]
        kind = scales.dtype
        if Part.SHARED in parts:
            scales, kind = self.shared(parts, weight.divides), ir.DataType.FLOAT
        taken = [parts[Part.CODES], scales]
        if Part.ZEROS in parts:
            taken.append(parts[Part.ZEROS])
        attributes: dict[str, Any] = {"axis": 0}
        if len(_shape(scales)) == len(shape):
            attributes = {"axis": len(shape) - 1, "block_size": weight.block or shape[-1]}
        if kind == ir.DataType.FLOAT8E8M0:
            kind = attributes["output_dtype"] = self.dtype
        return self.node("DequantizeLinear", taken, attributes, list(shape), kind)

    def dequantize_columns(
        self, parts: Mapping[Part, ir.Value], shape: tuple[int, ...], weight: PackedWeight
    ) -> ir.Value:
        """Dequantize a stack whose codes are transposed, and its scales not."""
        turn, scales = {"perm": [0, 2, 1]}, parts[Part.SCALES]
        kind, (experts, rows, blocks) = scales.dtype, _shape(scales)
        of_columns = self.node("Transpose", [scales], turn, [experts, blocks, rows], kind)
        attributes = {"axis": 1, "block_size": weight.block, "output_dtype": self.dtype}
        codes = parts[Part.CODES]
        columns = self.node(
            "DequantizeLinear", [codes, of_columns], attributes, list(_shape(codes))
        )
        return self.node("Transpose", [columns], turn, list(shape))

    def shared(self, parts: Mapping[Part, ir.Value], divides: bool) -> ir.Value:
        """Return block scales times the shared scale of their matrix, or divided by it."""
        scales, shared = parts[Part.SCALES], parts[Part.SHARED]
        shape, kind = list(_shape(scales)), ir.DataType.FLOAT
        if not divides:
            return self.node("DequantizeLinear", [scales, shared], {"axis": 0}, shape, kind)
        one = self.node("Constant", [], {"value_float": 1.0}, [], kind)
        wide = self.node("DequantizeLinear", [scales, one], {}, shape, kind)
        if len(shape) == 3:
            sizes = self.numbers([-1, 1, 1])
            shared = self.node("Reshape", [shared, sizes], {}, [shape[0], 1, 1], kind)
        return self.node("Div", [wide, shared], {}, shape, kind)

    def fill(self, shape: tuple[int, ...], code: int, kind: ir.DataType | None) -> ir.Value:
        """Return one code for every block; ONNX Runtime's ConstantOfShape has no 4-bit types."""
        assert kind is not None
        one = ir.tensor([code], dtype=ir.DataType.UINT8)
        sizes = self.numbers(list(shape))
        value = {"value": one}
        out = self.node("ConstantOfShape", [sizes], value, list(shape), ir.DataType.UINT8)
        return self.cast(out, kind)

    def cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        if value.dtype == kind:
            return value
        return self.node("Cast", [value], {"to": kind}, list(_shape(value)), kind)

    def select(self, value: ir.Value, index: tuple[slice, ...]) -> ir.Value:
        """Slice the leading axes of a value."""
        before = _shape(value)
        ranges = [range(*part.indices(n)) for part, n in zip(index, before, strict=False)]
        axes = [i for i, r in enumerate(ranges) if r != range(before[i])]
        if not axes:
            return value
        bounds = [
            self.numbers([ranges[i].start for i in axes]),
            self.numbers([ranges[i].stop for i in axes]),
            self.numbers(axes),
            self.numbers([ranges[i].step for i in axes]),
        ]
        shape = [len(r) for r in ranges] + list(before[len(ranges) :])
        return self.node("Slice", [value, *bounds], {}, shape)

    def initializer(
        self, tensor: str, shape: tuple[int, ...], dtype: ir.DataType | None = None
    ) -> ir.Value:
        """Return a stored tensor, or a part of a quantized weight, as an initializer.

        dtype: None for that of the checkpoint.
        """
        if tensor not in self.graph.initializers:
            kind = dtype or onnx_dtype(self.checkpoint.tensors[tensor].dtype)
            value = ir.Value(name=tensor, type=ir.TensorType(kind), shape=ir.Shape(shape))
            value.const_value = self._external(value, self.placed[tensor])
            self.graph.initializers[tensor] = value
        return self.graph.initializers[tensor]

    def numbers(self, values: list[int]) -> ir.Value:
        tensor = ir.tensor(values, dtype=ir.DataType.INT64)
        return self.node("Constant", [], {"value": tensor}, [len(values)], ir.DataType.INT64)

    def node(
        self,
        op_type: str,
        inputs: list[ir.Value],
        attributes: Mapping[str, Any],
        shape: list[int],
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        self.count += 1
        name = f"{self.param}.{op_type}.{self.count}"
        node = ir.node(op_type, inputs, attributes, name=name)
        (out,) = node.outputs
        out.name = name
        out.type, out.shape = ir.TensorType(dtype or self.dtype), ir.Shape(shape)
        if self.first is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.first, node)
        return out

    def _external(self, value: ir.Value, placed: Placed) -> ir.ExternalTensor:
        assert value.dtype is not None and value.shape is not None
        folder = ROOT if placed.file.startswith(ROOT) else self.directory
        return ir.ExternalTensor(
            location(placed), placed.offset, placed.nbytes, value.dtype,
            shape=value.shape, name=str(value.name), base_dir=folder,
        )  # fmt: skip


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())
