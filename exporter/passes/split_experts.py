"""Split the experts into one matrix product each, over its own range of the weight file.

before: y = lmcast.moe_experts(x, weights, chosen, gate, up, down), with or without a gate
after:  x as columns, one for each route, sorted by expert and split into one run for each expert;
        a product of that expert's matrix with each run; the runs joined, put back in the order of
        the routes, weighted and summed

A product with no columns reads nothing, so a step touches the pages of the chosen experts alone,
and nothing is copied. Columns, because ONNX Runtime repacks the right factor of a product: with the
weight on the left it reads that once, as it lies (1.4 to 1.7 times as fast from 2 to 32 columns).
Its own MoE kernel wants all experts in one interleaved stack and knows SwiGLU only; that for
quantized experts computes the same whatever its quant_type says.
"""

from typing import Any

import onnx_ir as ir

from lmcast.exporter.graph.assemble import arguments
from lmcast.exporter.graph.requirements import require
from lmcast.exporter.passes.expert_products import products
from lmcast.exporter.passes.rewrite import constant, insert, nodes_of, replace, written
from lmcast.plugins.experts.moe_experts import ACTIVATIONS
from lmcast.plugins.onnx_builder import Builder, Value

INT64 = ir.DataType.INT64


def split_experts(model: ir.Model) -> int:
    found = list(nodes_of(model, "moe_experts"))
    for node in found:
        replace(model, node, [_Split(model, node).run()])
        require(model, split_experts=True)
    return len(found)


class _Split:
    def __init__(self, model: ir.Model, node: ir.Node):
        self.model, self.node, self.name = model, node, str(node.name)
        inputs = [*node.inputs, *[None] * (9 - len(node.inputs))]
        self.x, self.weights, self.chosen = inputs[:3]
        self.matrices = dict(zip(("gate", "up", "down"), inputs[3:6], strict=True))
        self.biases = dict(zip(("gate", "up", "down"), inputs[6:9], strict=True))
        up = self.matrices["up"]
        assert up is not None and up.shape is not None
        self.experts, _, self.width = (int(n) for n in up.shape.numpy())

    def op(
        self, op_type: str, *inputs: ir.Value | None, label: str = "", **attributes: Any
    ) -> ir.Value:
        name = f"{self.name}.{label or op_type}"
        return insert(self.model, self.node, op_type, inputs, attributes, name=name)[0]

    def numbers(self, values: list[int], label: str) -> ir.Value:
        return constant(self.model, self.node, values, INT64, f"{self.name}.{label}")

    def run(self) -> ir.Value:
        given = arguments(self.node)
        assert self.x is not None and self.chosen is not None and self.chosen.shape is not None
        routes = self.chosen.shape[-1]
        assert isinstance(routes, int)
        rest = self.numbers([-1], "rest")
        flat = self.op("Reshape", self.x, self.numbers([-1, self.width], "sizes"), label="flat")
        columns = self.op("Transpose", flat, label="columns", perm=[1, 0])
        picked = self.op("Reshape", self.chosen, rest, label="picked")
        count = self.op("Shape", picked, label="count")
        experts, order = insert(
            self.model, self.node, "TopK", [picked, count], {"largest": 0},
            name=f"{self.name}.order", outputs=2,
        )  # fmt: skip
        token = self.op("Div", order, self.numbers([routes], "routes"), label="token")
        own = self.op("Gather", columns, token, label="own", axis=1)
        if given["scale_input"]:
            flat_weights = self.op("Reshape", self.weights, rest, label="flat_weights")
            shares = self.op("Gather", flat_weights, order, label="own_weights", axis=0)
            typed = self.op("CastLike", shares, self.x, label="typed_weights")
            own = self.op("Mul", own, typed, label="scaled")
        runs = self.counts(picked)

        ups = self.linear("up", own, runs, experts)
        gates = ups if self.matrices["gate"] is None else self.linear("gate", own, runs, experts)
        inner = self.activation(given, gates, ups)
        down = self.linear("down", inner, runs, experts)
        rows = self.op("Transpose", down, label="rows", perm=[1, 0])
        back = self.op("Gather", rows, self.inverse(order, count), label="back", axis=0)
        shape = self.numbers([-1, routes, self.width], "route_shape")
        per_route = self.op("Reshape", back, shape, label="per_route")
        if given["scale_input"]:
            total = self.op("ReduceSum", per_route, self.numbers([1], "routes_axis"), keepdims=0)
        else:
            total = self.weighted(per_route, routes)
        return self.op("Reshape", total, self.op("Shape", self.x, label="shape"), label="out")

    def counts(self, picked: ir.Value) -> ir.Value:
        """Return the number of routes of every expert."""
        none = self.numbers([0] * self.experts, "none")
        ones = self.op("Expand", self.numbers([1], "one"), self.op("Shape", picked), label="ones")
        return self.op("ScatterElements", none, picked, ones, label="runs", reduction="add")

    def inverse(self, order: ir.Value, count: ir.Value) -> ir.Value:
        """Return where each route lies among the sorted ones."""
        at = self.model, self.node
        zero, one = (constant(*at, n, INT64, f"{self.name}.{n}") for n in (0, 1))
        places = self.op("Range", zero, self.op("Squeeze", count, label="end"), one, label="places")
        return self.op("ScatterElements", order, order, places, label="inverse")

    def weighted(self, per_route: ir.Value, routes: int) -> ir.Value:
        """Return the weighted sum over routes, taken in fp32."""
        shape = self.numbers([-1, 1, routes], "weight_shape")
        weights = self.op("Reshape", self.weights, shape, label="row_weights")
        wide = self.op("Cast", per_route, label="wide", to=ir.DataType.FLOAT)
        total = self.op("MatMul", weights, wide, label="total")
        return self.op("CastLike", total, self.x, label="typed")

    def linear(self, which: str, columns: ir.Value, runs: ir.Value, experts: ir.Value) -> ir.Value:
        """Return the product of the matrix of each expert with its run of columns, joined."""
        stack, bias = self.matrices[which], self.biases[which]
        assert stack is not None
        name = f"{self.name}.{which}"
        joined = products(self.model, self.node, columns, runs, stack, name)
        if bias is None:
            return joined
        rows = self.op("Gather", bias, experts, label=f"{which}.bias", axis=0)
        transposed = self.op("Transpose", rows, label=f"{which}.bias_columns", perm=[1, 0])
        return self.op("Add", joined, transposed, label=f"{which}.biased")

    def activation(self, given: dict[str, Any], gates: ir.Value, ups: ir.Value) -> ir.Value:
        """Return what the operator's own body makes of gates and ups."""
        write, numbers = ACTIVATIONS[given["activation"]][1], (given["alpha"], given["limit"])

        def both(op: Builder, gate: Value, up: Value) -> Value:
            return write(op, gate, up, *map(float, numbers))

        return written(self.model, self.node, both, gates, ups)[0]
