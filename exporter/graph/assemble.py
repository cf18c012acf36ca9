"""Assembly of the traced parts: one ONNX graph in which every layer is a call of its kind."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from lmcast.exporter.graph.capture import INPUTS, Call, Captured, Part, image_inputs
from lmcast.exporter.graph.lowering import OPSETS, PARTS, VARIANT, Lowering, onnx_dtype
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.plugins.plugin import DOMAIN, REGISTRY

IR_VERSION = 11  # the first that knows opset 24


def assemble(model: Decoder, captured: Captured) -> ir.Model:
    """Return the portable graph of a model; its weights are initializers without data."""
    return _Text(model, captured).run()


class Assembly:
    """A graph as it grows, call by call of traced parts.

    prefix: of the names of its weights.
    """

    def __init__(
        self, model: nn.Module, parts: Iterable[Part], inputs: Iterable[ir.Value], prefix: str = ""
    ):
        self.functions = {part.name: Lowering(part).run() for part in parts}
        self.inputs, self.nodes = list(inputs), list[ir.Node]()
        self.given = {str(value.name): value for value in self.inputs}
        self.weights = {
            id(parameter): value_of(prefix + name, parameter.dtype, tuple(parameter.shape))
            for name, parameter in model.named_parameters()
        }

    def call(self, call: Call, name: str, given: Mapping[str, ir.Value]) -> list[ir.Value]:
        """Call a part on the values of these names and on the parameters of its module."""
        function = self.functions[call.part.name]
        taken = []
        for value in function.inputs:
            own = str(value.name)
            if own in given:
                taken.append(given[own])
            else:
                parameter = call.module.get_parameter(own.removeprefix("part."))
                taken.append(self.weights[id(parameter)])
        count = len(function.outputs)
        node = ir.node(function.name, taken, domain=PARTS, num_outputs=count, name=name)
        labels = call.part.outputs
        for out, inner, label in zip(node.outputs, function.outputs, labels, strict=True):
            out.name, out.type, out.shape = f"{name}.{label}", inner.type, inner.shape
        self.nodes.append(node)
        return list(node.outputs)

    def finish(self, outputs: Sequence[ir.Value], name: str) -> ir.Model:
        """Return the graph with these outputs, and the bodies of all operators."""
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.weights.values()),
            name=name,
            opset_imports={**OPSETS, PARTS: 1},
        )
        functions = list(self.functions.values())
        out = ir.Model(graph, ir_version=IR_VERSION, producer_name="lmcast", functions=functions)
        attach_bodies(out)
        return out


class _Text(Assembly):
    """The graph of a text model."""

    def __init__(self, model: Decoder, captured: Captured):
        given = [value_of(name, torch.int64, axes) for name, axes in INPUTS.items()]
        given += [value_of(name, dtype, axes) for name, axes, dtype in image_inputs(model)]
        super().__init__(model, captured.parts, given)
        self.captured, self.dtype = captured, next(model.parameters()).dtype
        self.outputs = list[ir.Value]()

    def run(self) -> ir.Model:
        captured = self.captured
        (x,) = self.call(captured.embed, "embed", self.given)
        if captured.positions:
            tables = self.call(captured.positions, "positions", self.given)
            self.given.update(zip(captured.positions.part.outputs, tables, strict=True))
        if captured.side:
            given = self.call(captured.side, "side", {**self.given, "x": x})
            self.give(captured.side, given)
        for layer in captured.layers:
            x = self.layer(layer, x)
        (logits,) = self.call(captured.final, "final", {**self.given, "x": x})
        logits.name = "logits"
        return self.finish([logits, *self.outputs], "model")

    def give(self, call: Call, values: list[ir.Value]) -> None:
        """Keep the outputs of a part under the names that later parts ask for."""
        for value, name in zip(values, call.gives, strict=True):
            value.name = name
            self.given[name] = value

    def layer(self, layer: Call, x: ir.Value) -> ir.Value:
        """Call a layer with states of its own; return its output."""
        past = {}
        for state in layer.states:
            name, kind = f"{layer.prefix}.{state.name}.past", state.dtype or self.dtype
            past[f"{state.name}.past"] = value_of(name, kind, state.shape)
        # What this layer takes, under the names that its kind was traced with.
        traced = layer.part.inputs[3 : 3 + len(layer.takes)]
        taken = {own: self.given[n] for own, n in zip(traced, layer.takes, strict=True)}
        y, *rest = self.call(layer, layer.prefix, {**self.given, **taken, **past, "x": x})
        present = rest[: len(past)]
        for value, old in zip(present, past.values(), strict=True):
            value.name, value.shape = str(old.name).removesuffix("past") + "present", old.shape
        self.give(layer, rest[len(past) :])
        self.inputs.extend(past.values())
        self.outputs.extend(present)
        return y


def attach_bodies(model: ir.Model) -> None:
    """Add the bodies of all custom operators in use, for runtimes that have no kernels for them.

    Calls whose attributes need another body than earlier ones get a name of their own,
    'quantize_input__1': ONNX Runtime 1.31 ignores overloads within functions.
    """
    bodies: dict[str, dict[bytes, ir.Function]] = {}  # by what they serialize to
    for node in chain(model.graph, *model.functions.values()):
        if node.domain == DOMAIN:
            body = REGISTRY[node.op_type].function(arguments(node))
            known = bodies.setdefault(node.op_type, {})
            digest = ir.to_proto(body).SerializeToString(deterministic=True)
            known.setdefault(digest, body)
            if number := list(known).index(digest):
                node.op_type = f"{node.op_type}{VARIANT}{number}"
    for name, found in sorted(bodies.items()):
        for number, body in enumerate(found.values()):
            body.name = f"{name}{VARIANT}{number}" if number else name
            model.functions[body.identifier()] = body


def arguments(node: ir.Node) -> dict[str, Any]:
    """Return the arguments of an operator of ours as Plugin.function takes them."""
    tensors = (value is not None or None for value in node.inputs)
    plain = {name: attribute.value for name, attribute in node.attributes.items()}
    return {
        a.name: plain[a.name] if a.name in plain else next(tensors, None)
        for a in REGISTRY[node.op_type.partition(VARIANT)[0]].schema.arguments
    }


def value_of(name: str, dtype: torch.dtype, shape: tuple[int | str, ...]) -> ir.Value:
    """Return a value of a graph; axes that are no numbers have names."""
    return ir.Value(name=name, type=ir.TensorType(onnx_dtype(dtype)), shape=ir.Shape(shape))
