"""Give every expert matrix products of its own, on its own range of the file.

before: y = lmcast.moe_experts(x, weights, chosen, gate, up, down)
after:  rows of x, one for each route, sorted by expert and split into one run for each expert;
        a product of each run with that expert's matrix; the runs joined, put back in the order of
        the routes, weighted and summed

A product of no rows reads nothing, so a step touches the pages of the chosen experts alone, and
nothing is copied. ONNX Runtime's own MoE kernel needs all experts in one interleaved stack, takes
SwiGLU only, and decodes no faster (tests/benchmarks/README.md).
"""

import onnx
import onnx.parser
import onnx_ir as ir

from lmcast.exporter.onnx_export import arguments
from lmcast.exporter.passes.nth import nth
from lmcast.exporter.passes.rewrite import constant, insert, nodes_of, replace
from lmcast.plugins.moe_experts import activation_text
from lmcast.plugins.plugin import HEADER

INT64 = ir.DataType.INT64


def split_experts(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "moe_experts"):
        replace(model, node, [_Split(model, node).run()])
        changes += 1
    return changes


class _Split:
    def __init__(self, model: ir.Model, node: ir.Node):
        self.model, self.node, self.name = model, node, str(node.name)
        inputs = [*node.inputs, *[None] * (9 - len(node.inputs))]
        self.x, self.weights, self.chosen = inputs[:3]
        self.matrices = dict(zip(("gate", "up", "down"), inputs[3:6], strict=True))
        self.biases = dict(zip(("gate", "up", "down"), inputs[6:9], strict=True))
        gate = self.matrices["gate"]
        assert gate is not None and gate.shape is not None
        self.experts, _, self.width = (int(n) for n in gate.shape.numpy())

    def op(self, op_type: str, *inputs: ir.Value | None, label: str = "", **attributes: object):
        name = f"{self.name}.{label or op_type}"
        return insert(self.model, self.node, op_type, inputs, attributes, name=name)[0]

    def numbers(self, values: list[int], label: str) -> ir.Value:
        return constant(self.model, self.node, values, INT64, f"{self.name}.{label}")

    def run(self) -> ir.Value:
        given = arguments(self.node)
        assert self.x is not None and self.chosen is not None and self.chosen.shape is not None
        routes = int(self.chosen.shape[-1])
        rest = self.numbers([-1], "rest")
        flat = self.op(
            "Reshape", self.x, self.numbers([-1, self.width], "flat_shape"), label="flat"
        )
        picked = self.op("Reshape", self.chosen, rest, label="picked")
        count = self.op("Shape", picked, label="count")
        top = insert(
            self.model, self.node, "TopK", [picked, count], {"largest": 0},
            name=f"{self.name}.order", outputs=2,
        )  # fmt: skip
        experts, order = top
        token = self.op("Div", order, self.numbers([routes], "routes"), label="token")
        rows = self.op("Gather", flat, token, label="rows")
        if given["scale_input"]:
            rows = self.op("Mul", rows, self.shares(rest, order), label="scaled")
        runs = self.counts(picked)

        gates = self.linear("gate", rows, runs, experts)
        ups = self.linear("up", rows, runs, experts)
        inner = self.activation(given, gates, ups)
        down = self.linear("down", inner, runs, experts)

        back = self.op("Gather", down, self.inverse(order, count), label="back")
        shape = self.numbers([-1, routes, self.width], "route_shape")
        per_route = self.op("Reshape", back, shape, label="per_route")
        if given["scale_input"]:
            total = self.op("ReduceSum", per_route, self.numbers([1], "routes_axis"), keepdims=0)
        else:
            total = self.weighted(per_route, routes)
        return self.op("Reshape", total, self.op("Shape", self.x, label="shape"), label="out")

    def counts(self, picked: ir.Value) -> ir.Value:
        """Return how many routes every expert has."""
        none = self.numbers([0] * self.experts, "none")
        one, shape = self.numbers([1], "one"), self.op("Shape", picked, label="picked_shape")
        ones = self.op("Expand", one, shape, label="ones")
        return self.op("ScatterElements", none, picked, ones, label="runs", reduction="add")

    def inverse(self, order: ir.Value, count: ir.Value) -> ir.Value:
        """Return where each route lies among the sorted ones."""
        end = self.op("Squeeze", count, label="end")
        zero, one = (
            constant(self.model, self.node, n, INT64, f"{self.name}.from_{n}") for n in (0, 1)
        )
        places = self.op("Range", zero, end, one, label="places")
        return self.op("ScatterElements", order, order, places, label="inverse")

    def shares(self, rest: ir.Value, order: ir.Value) -> ir.Value:
        """Return the weight of each sorted row, as a column in x's dtype."""
        flat = self.op("Reshape", self.weights, rest, label="flat_weights")
        own = self.op("Gather", flat, order, label="own_weights")
        column = self.op("Unsqueeze", own, self.numbers([1], "column"), label="share")
        return self.op("CastLike", column, self.x, label="typed_share")

    def weighted(self, per_route: ir.Value, routes: int) -> ir.Value:
        """Return the weighted sum over routes, taken in fp32."""
        shape = self.numbers([-1, 1, routes], "weight_shape")
        weights = self.op("Reshape", self.weights, shape, label="row_weights")
        wide = self.op("Cast", per_route, label="wide", to=ir.DataType.FLOAT)
        total = self.op("MatMul", weights, wide, label="total")
        return self.op("CastLike", total, self.x, label="typed")

    def linear(self, which: str, rows: ir.Value, runs: ir.Value, experts: ir.Value) -> ir.Value:
        """Return the product of each run of rows with the matrix of its expert, joined."""
        stack, bias = self.matrices[which], self.biases[which]
        assert stack is not None
        name = f"{self.name}.{which}"
        parts = insert(
            self.model, self.node, "Split", [rows, runs], {"axis": 0},
            name=f"{name}.runs", outputs=self.experts,
        )  # fmt: skip
        products = []
        for index, part in enumerate(parts):
            matrix = nth(self.model, self.node, stack, index)
            maker = matrix.producer()
            if maker is not None and maker.op_type == "Transpose":
                turned = maker.inputs[0]  # stored the other way round: as a product wants it
            else:
                turned = self.op("Transpose", matrix, label=f"{which}.{index}.t", perm=[1, 0])
            products.append(self.op("MatMul", part, turned, label=f"{which}.{index}"))
        joined = self.op("Concat", *products, label=which, axis=0)
        if bias is None:
            return joined
        own = self.op("Gather", bias, experts, label=f"{which}.bias")
        return self.op("Add", joined, own, label=f"{which}.biased")

    def activation(self, given: dict, gates: ir.Value, ups: ir.Value) -> ir.Value:
        """Return what the operator's own text makes of gates and ups."""
        text = f"{HEADER}act (gates, ups) => (inner) {{ {activation_text(given)} }}"
        values = {"gates": gates, "ups": ups}
        for node in ir.serde.deserialize_function(onnx.parser.parse_function(text)):
            inputs = [values[str(value.name)] for value in node.inputs if value is not None]
            (out,) = node.outputs
            label = str(out.name)
            plain = {name: a.value for name, a in node.attributes.items()}
            values[label] = self.op(node.op_type, *inputs, label=label, **plain)
        return values["inner"]
