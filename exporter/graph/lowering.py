"""Lowering of one traced part to an ONNX function: a walk over its nodes with the table ATEN."""

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from lmcast.exporter.dtypes import of_torch
from lmcast.exporter.graph.aten_towers import ATEN
from lmcast.exporter.graph.capture import SIZES, Part
from lmcast.plugins.onnx_builder import ONNX_OPSET
from lmcast.plugins.plugin import DOMAIN, REGISTRY

PARTS = f"{DOMAIN}.parts"  # the domain of the functions that are parts of one model
VARIANT = "__"  # between the name of an operator and the number of one of several bodies of it


def onnx_dtype(dtype: torch.dtype) -> ir.DataType:
    """Return the ONNX data type of a torch dtype."""
    return ir.DataType(of_torch(dtype).onnx)


class LoweringError(RuntimeError):
    """A definition uses an operator that ATEN has no entry for: a defect of lmcast."""


class Lowering:
    """The ONNX nodes of one part as they are written; entries of ATEN write through it."""

    def __init__(self, part: Part):
        self.part = part
        self.nodes: list[ir.Node] = []
        self._values: dict[fx.Node, Any] = {}
        self._names: dict[str, int] = {}
        self._axes: dict[str, str] = {}  # a symbolic size -> the axis it is
        self._constants: dict[tuple[torch.dtype, tuple[int, ...], bytes], ir.Value] = {}
        self._at: fx.Node | None = None

    # -- what the entries of ATEN use

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        main: bool = False,
    ) -> ir.Value:
        """Append a node of one output, and return it.

        main: name the node after its module, under which a person would look for it.
        """
        return self.several(op_type, inputs, attributes, outputs=1, domain=domain, main=main)[0]

    def several(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int,
        domain: str = "",
        main: bool = False,
    ) -> tuple[ir.Value, ...]:
        """Append a node of several outputs and return them; `main` as in `op`."""
        assert self._at is not None
        path = module_path(self._at)
        name = self._unique(path if main and path else ".".join(filter(None, (path, op_type))))
        node = ir.node(
            op_type, inputs, attributes or {}, domain=domain, num_outputs=outputs, name=name
        )
        for i, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}.{i}"
        self.nodes.append(node)
        return tuple(node.outputs)

    def constant(self, value: Any, dtype: torch.dtype = torch.int64) -> ir.Value:
        """Return a small constant as a tensor value."""
        tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=dtype)
        numbers = _array(tensor)
        key = (tensor.dtype, tuple(tensor.shape), numbers.tobytes())
        if key not in self._constants:
            array = ir.tensor(numbers, dtype=onnx_dtype(tensor.dtype))
            name = self._unique("constant")
            node = ir.node("Constant", [], {"value": array}, name=name)
            node.outputs[0].name = name
            node.outputs[0].type = ir.TensorType(onnx_dtype(tensor.dtype))
            node.outputs[0].shape = ir.Shape(tensor.shape)
            self.nodes.append(node)
            self._constants[key] = node.outputs[0]
        return self._constants[key]

    def value(self, arg: Any) -> Any:
        """Return the ONNX value of a traced argument, or the argument itself where it is no
        node."""
        if isinstance(arg, fx.Node):
            return self._values[arg]
        if isinstance(arg, list | tuple):
            return [self.value(a) for a in arg]
        return arg

    def cast(self, value: ir.Value, have: torch.dtype, want: torch.dtype) -> ir.Value:
        return value if have == want else self.op("Cast", [value], {"to": onnx_dtype(want)})

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the size of one axis as a tensor of shape [1]."""
        return self.op("Shape", [value], {"start": axis, "end": axis + 1})

    def reshape(self, x: ir.Value, before: Sequence[Any], after: Sequence[Any]) -> ir.Value:
        """Reshape between traced sizes: integers or symbols."""
        target: list[int] = []
        for i, size in enumerate(map(known, after)):
            if isinstance(size, int):
                target.append(size)
            elif i < len(before) and str(before[i]) == str(size):
                target.append(0)  # ONNX: copy this axis
            else:
                target.append(-1)
        if target.count(-1) > 1:
            raise self.refused("a reshape makes more than one size up")
        return self.op("Reshape", [x, self.constant(target)])

    def refused(self, why: str) -> LoweringError:
        """Return an error about the operator at hand, for the caller to raise."""
        assert self._at is not None
        module = module_path(self._at) or "the top"
        return LoweringError(
            f"{self.part.name}: {self._at.target} at {module} has no ONNX form: {why}"
        )

    # -- the walk

    def run(self) -> ir.Function:
        """Return the part as a function of its inputs, then its parameters."""
        program = self.part.program
        signature = program.graph_signature
        users = list(signature.user_inputs)
        for name, axes in zip(users, self.part.axes, strict=True):
            node = next(n for n in program.graph.nodes if n.name == name)
            for size, axis in zip(node.meta["val"].shape, axes, strict=True):
                if isinstance(axis, str) and isinstance(size, torch.SymInt):
                    self._axes[str(size)] = axis
        inputs: dict[str, ir.Value] = {}
        parameters = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        needed = _needed(program.graph)
        for node in program.graph.nodes:
            self._at = node
            if node.op == "placeholder":
                if node.name in constants:
                    self._values[node] = program.constants[constants[node.name]]
                    continue
                name = parameters.get(node.name, node.name)
                if node.name in users:
                    name = self.part.inputs[users.index(node.name)]
                self._values[node] = inputs[node.name] = ir.Value(name=name)
                self._describe(self._values[node], node)
            elif node.op == "call_function" and node in needed:
                self._values[node] = self._call(node)
                self._describe(self._values[node], node)
            elif node.op == "output":
                outputs = self.value(node.args[0])
        order = [*users, *(n for n in inputs if n not in users)]
        ordered = [inputs[n] for n in order]
        outputs = [self._output(o, outputs[:i]) for i, o in enumerate(outputs)]
        graph = ir.Graph(
            ordered, outputs, nodes=self.nodes, name=self.part.name, opset_imports=OPSETS
        )
        return ir.Function(PARTS, self.part.name, graph=graph, attributes=[])

    def _output(self, value: ir.Value, before: Sequence[ir.Value]) -> ir.Value:
        """Return a value that can be an output: no input, and no output already."""
        repeated = any(value is other for other in before)
        return self.op("Identity", [value]) if repeated or not value.producer() else value

    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        if target is operator.getitem:
            return self.value(node.args[0])[node.args[1]]
        entry = ATEN.get(target)
        if entry is not None:
            return entry(self, node, *node.args, **node.kwargs)
        namespace, _, name = str(target).partition(".")
        if namespace == DOMAIN:
            return self._plugin(node, name.partition(".")[0])
        if namespace == "onnx":
            tensors = [self.value(a) for a in node.args]
            attributes = {k: int(v) if isinstance(v, bool) else v for k, v in node.kwargs.items()}
            return self.op(name.partition(".")[0], tensors, attributes)
        raise self.refused("add it to exporter/graph/aten.py")

    def _plugin(self, node: fx.Node, name: str) -> Any:
        plugin = REGISTRY[name]
        tensors: list[ir.Value | None] = []
        plain = {}
        for argument, value in zip(plugin.schema.arguments, node.args, strict=True):
            if value is None or isinstance(value, fx.Node):
                tensors.append(self.value(value))
            else:
                plain[argument.name] = int(value) if isinstance(value, bool) else value
        while tensors and tensors[-1] is None:  # trailing inputs that are absent are not written
            tensors.pop()
        if not isinstance(node.meta["val"], tuple | list):
            return self.op(plugin.name, tensors, plain, domain=DOMAIN)
        outputs = len(node.meta["val"])
        return self.several(plugin.name, tensors, plain, domain=DOMAIN, outputs=outputs)

    def _describe(self, value: Any, node: fx.Node) -> None:
        """Give a value the dtype and shape that torch traced."""
        traced = node.meta["val"]
        if isinstance(value, tuple):
            for v, t in zip(value, traced, strict=True):
                self._describe_one(v, t)
        elif isinstance(value, ir.Value) and isinstance(traced, torch.Tensor):
            self._describe_one(value, traced)

    def _describe_one(self, value: ir.Value, traced: torch.Tensor) -> None:
        value.type = ir.TensorType(onnx_dtype(traced.dtype))
        sizes = [
            n if isinstance(n, int) else self._axes.get(str(n)) for n in map(known, traced.shape)
        ]
        value.shape = ir.Shape(sizes)

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"


OPSETS = {"": ONNX_OPSET, DOMAIN: 1}
assert len(set(SIZES.values())) == len(SIZES)


def known(size: int | torch.SymInt) -> int | torch.SymInt:
    """Return a traced size as a number where it is one, whatever it was made of: (4*s)//s."""
    symbolic = isinstance(size, torch.SymInt) and not size.node.expr.is_number
    return size if symbolic else int(size)


def _array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # which numpy itself does not have
        return tensor.view(torch.int16).numpy(force=True).view(ml_dtypes.bfloat16)
    return tensor.numpy(force=True)


def module_path(node: fx.Node) -> str:
    """Return the path of the module that called an operator: 'mixer.q'."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    if path.startswith("_"):  # torch's own wrapper
        return ""
    return re.sub(r"^(part|tables\.\d+)(\.|$)", "", path)


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that some output depends on."""
    needed: set[fx.Node] = set()
    waiting = [graph.output_node()]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    return needed
