"""Write ONNX nodes from Python: bodies of operators, and what passes put into a graph.

    def body(op: Builder, x: Value, scale: Attribute) -> Value:
        return op.Softmax(x * scale, axis=-1)

Every standard operator is a method of Builder: inputs by position, attributes by name, both checked
against the standard's schema. Numbers stand for constants: bool, int (int64) and float (fp32) for
scalars, lists of them for tensors of one axis. What is computed twice from the same is one node.
"""

from collections import ChainMap
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import DataType as DataType  # for bodies: only this file imports onnx_ir

ONNX_OPSET = 24  # of the standard operators that bodies and graphs are written in
KINDS = {"b": DataType.BOOL, "i": DataType.INT64, "f": DataType.FLOAT}  # of numbers of Python


def _writes(op_type: str) -> "Callable[..., Value]":
    return lambda first, *others: first.op.node(op_type, first, *others)


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the graph that `op` writes. Python's operators are those of ONNX: `/` of integers
    rounds towards zero."""

    op: "Builder"
    ir: ir.Value

    __add__, __sub__ = _writes("Add"), _writes("Sub")
    __mul__, __truediv__ = _writes("Mul"), _writes("Div")
    __mod__, __matmul__ = _writes("Mod"), _writes("MatMul")
    __lt__, __le__ = _writes("Less"), _writes("LessOrEqual")
    __gt__, __ge__ = _writes("Greater"), _writes("GreaterOrEqual")
    __and__, __or__, __invert__ = _writes("And"), _writes("Or"), _writes("Not")


@dataclass(frozen=True)
class Attribute:
    """An attribute of the operator whose body is written.

    As an input or an attribute of a node it is a reference, and the body fits every value; whoever
    reads `value` writes a body for that value alone.
    """

    name: str
    type: ir.AttributeType
    value: Any


Size = Value | Attribute | int
Input = Value | Attribute | bool | int | float | list[int] | list[bool] | None
Block = Callable[..., Value | Sequence[Value]]  # writes nodes, and returns what comes of them
Typed = tuple[DataType, str]  # a dtype and a shape, each axis a letter
Key = tuple[Hashable, ...]  # what a node computes: nodes of equal keys are one


class Builder:
    """The nodes of one graph as they are written, `nodes` those of the innermost subgraph."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.domains: dict[str, int] = {}  # of operators beside the standard ones -> version
        self._written: ChainMap[Key, tuple[Value, ...]] = ChainMap()  # -> outputs
        self._names: dict[str, int] = {}

    def input(self, name: str, typed: Typed | None = None) -> Value:
        """Return a value that comes in from outside."""
        value = ir.Value(name=self._unique(name))
        if typed is not None:
            value.type, value.shape = ir.TensorType(typed[0]), ir.Shape(list(typed[1]))
        return Value(self, value)

    def outputs(self, results: Value | Sequence[Value]) -> list[ir.Value]:
        """Return results as outputs of the innermost graph: each its own, and written in it."""
        found: list[ir.Value] = []
        for value in [results] if isinstance(results, Value) else results:
            own = value.ir.producer() in self.nodes and value.ir not in found
            made = value if own else self._append("Identity", [value.ir], {}, "", 1)[0]
            found.append(made.ir)
        return found

    # -- operators

    def __getattr__(self, op_type: str) -> Callable[..., Value]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)
        return partial(self.node, op_type)

    def TopK(self, *inputs: Input, **attributes: Any) -> tuple[Value, ...]:
        """Return the largest values along an axis, and their indices."""
        return self.several("TopK", 2, *inputs, **attributes)

    def node(self, op_type: str, *inputs: Input, domain: str = "", **attributes: Any) -> Value:
        """Write a node of one output, and return that; raises TypeError where a standard operator
        has no such attribute, or another number of inputs or outputs."""
        return self.several(op_type, 1, *inputs, domain=domain, **attributes)[0]

    def several(
        self, op_type: str, outputs: int, *inputs: Input, domain: str = "", **attributes: Any
    ) -> tuple[Value, ...]:
        """Write a node of several outputs, and return them; raises TypeError as `node`."""
        if not domain:
            _check(op_type, len(inputs), outputs, attributes)
        given = [x if x is None or isinstance(x, Value) else self.constant(x) for x in inputs]
        values = [None if x is None else x.ir for x in given]
        key = (domain, op_type, tuple(map(id, values)), repr(sorted(attributes.items())))
        if key not in self._written:
            self._written[key] = self._append(op_type, values, attributes, domain, outputs)
        return self._written[key]

    def _append(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        domain: str,
        outputs: int,
    ) -> tuple[Value, ...]:
        given = [
            ir.RefAttr(name, value.name, value.type)
            if isinstance(value, Attribute)
            else ir.convenience.convert_attributes({name: value})[0]
            for name, value in attributes.items()
        ]
        name = self._unique(op_type)
        node = ir.Node(domain, op_type, inputs, given, num_outputs=outputs, name=name)
        for i, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}.{i}"
        self.nodes.append(node)
        if domain:
            self.domains[domain] = 1
        return tuple(Value(self, value) for value in node.outputs)

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"

    def constant(self, value: Any, dtype: DataType | None = None) -> Value:
        """Return a constant: an Attribute, a number, or an array or nested lists of numbers."""
        if isinstance(value, Attribute):
            kind = "value_float" if value.type == ir.AttributeType.FLOAT else "value_int"
            return self.node("Constant", **dict[str, Any]({kind: value}))
        numbers = np.asarray(value)
        dtype = KINDS[numbers.dtype.kind] if dtype is None else dtype
        numbers = numbers.astype(dtype.numpy())
        key = ("constant", dtype, numbers.shape, numbers.tobytes())
        if key not in self._written:
            made = self._append("Constant", [], {"value": ir.tensor(numbers, dtype)}, "", 1)
            made[0].ir.type, made[0].ir.shape = ir.TensorType(dtype), ir.Shape(numbers.shape)
            self._written[key] = made
        return self._written[key][0]

    # -- sizes, int64

    def size(self, x: Value, axis: int) -> Value:
        """Return the size of one axis, [1]."""
        return self.Shape(x, start=axis, **({} if axis == -1 else {"end": axis + 1}))

    def dims(self, *sizes: Size) -> Value:
        """Return sizes, each a number, an attribute or a tensor [n], as one tensor."""

        def part(size: Size) -> Value:
            if isinstance(size, Attribute):
                return self.Reshape(size, [-1])
            return size if isinstance(size, Value) else self.constant([size])

        parts = [part(size) for size in sizes]
        return parts[0] if len(parts) == 1 else self.Concat(*parts, axis=0)

    def reshape(self, x: Value, *sizes: Size) -> Value:
        return self.Reshape(x, self.dims(*sizes))

    def range(self, count: Value) -> Value:
        """Return 0 .. count - 1; count [1]."""
        return self.Range(0, self.Squeeze(count), 1)

    def slice(self, x: Value, axis: int, start: Input, end: Input) -> Value:
        """Return the part of x along an axis; start and end are [1]."""
        return self.Slice(x, start, end, [axis])

    # -- operators with subgraphs

    def branch(self, condition: Value, then: Block, otherwise: Block) -> tuple[Value, ...]:
        """Return what `then` or, where the condition [] is false, `otherwise` returns."""
        taken, other = self._subgraph("then", then, {}), self._subgraph("else", otherwise, {})
        graphs = {"then_branch": taken, "else_branch": other}
        return self._append("If", [condition.ir], graphs, "", len(taken.outputs))

    def scan(
        self,
        step: Block,
        states: Mapping[str, tuple[Value, str]],
        scanned: Mapping[str, tuple[Value, str]],
    ) -> tuple[Value, ...]:
        """Return the last states, then, stacked along a new axis 0, what else `step` returns.

        It takes the states and an entry along axis 0 of each of `scanned`, and returns the next
        states first. All are fp32; each has a name, and a shape with a letter for every axis.
        """
        given = {**states, **scanned}
        types = {name: (DataType.FLOAT, axes) for name, (_, axes) in given.items()}
        body = self._subgraph("step", step, types)
        inputs = [value.ir for value, _ in given.values()]
        attributes = {"body": body, "num_scan_inputs": len(scanned)}
        return self._append("Scan", inputs, attributes, "", len(body.outputs))

    def loop(
        self, step: Callable[[Value, Value], Value], count: Value, state: Value, axes: str
    ) -> Value:
        """Return an fp32 state after `count` [] steps, which take their number and the state."""

        def body(number: Value, go: Value, before: Value) -> tuple[Value, Value]:
            return go, step(number, before)

        given = {"number": (DataType.INT64, ""), "go": (DataType.BOOL, "")}
        graph = self._subgraph("step", body, {**given, "before": (DataType.FLOAT, axes)})
        inputs = [count.ir, self.constant(True).ir, state.ir]
        return self._append("Loop", inputs, {"body": graph}, "", 1)[0]

    def _subgraph(self, name: str, block: Block, given: Mapping[str, Typed]) -> ir.Graph:
        """A subgraph sees what was written before it; what it writes is visible to it alone."""
        inputs = [self.input(own, typed) for own, typed in given.items()]
        outer, known = self.nodes, self._written
        self.nodes, self._written = [], known.new_child()
        outputs = self.outputs(block(*inputs))
        nodes, self.nodes, self._written = self.nodes, outer, known
        return ir.Graph([x.ir for x in inputs], outputs, nodes=nodes, name=self._unique(name))


def _check(op_type: str, inputs: int, outputs: int, attributes: Mapping[str, Any]) -> None:
    """Raise TypeError for what a standard operator does not have."""
    schema = onnx.defs.get_schema(op_type, ONNX_OPSET)
    if unknown := sorted(set(attributes) - set(schema.attributes)):
        raise TypeError(f"{op_type} has no attribute {unknown}; its: {sorted(schema.attributes)}")
    least, most = schema.min_input, schema.max_input
    if not least <= inputs <= most:
        raise TypeError(f"{op_type} takes {least} to {most} inputs, not {inputs}")
    if outputs < schema.min_output:
        raise TypeError(f"{op_type} has {schema.min_output} outputs or more, not {outputs}")
