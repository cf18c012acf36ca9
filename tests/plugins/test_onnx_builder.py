"""What bodies of operators are written with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from lmcast.exporter.graph.assemble import IR_VERSION
from lmcast.plugins.onnx_builder import ONNX_OPSET, Attribute, Builder, DataType, Value

FP32, INTEGERS = (DataType.FLOAT, "N"), (DataType.INT64, "N")


def graph(write: Callable[..., Any], *types: tuple[DataType, str]) -> ir.Graph:
    """Return what `write` writes, with inputs of these types."""
    op = Builder()
    inputs = [op.input(f"x{i}", typed) for i, typed in enumerate(types)]
    outputs = op.outputs(write(op, *inputs))
    return ir.Graph(
        [x.ir for x in inputs], outputs, nodes=op.nodes, name="g", opset_imports={"": ONNX_OPSET}
    )


def run(write: Callable[..., Any], given: np.ndarray, *outputs: DataType) -> list[np.ndarray]:
    kind = INTEGERS if given.dtype == np.int64 else FP32
    found = graph(write, kind)
    for value, dtype in zip(found.outputs, outputs, strict=True):
        value.type = ir.TensorType(dtype)
    proto = ir.to_proto(ir.Model(found, ir_version=IR_VERSION))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(out) for out in session.run(None, {"x0": given})]


def kinds(found: ir.Graph) -> list[str]:
    return sorted(node.op_type for node in found.all_nodes())


def test_python_operators_are_those_of_onnx():
    def write(op: Builder, x: Value) -> tuple[Value, ...]:
        return x + 3, x - 3, x * 3, x / 3, x % 3, x < 3, x <= 3, x > 3, x >= 3

    given = np.array([-7, 2, 3, 8])
    expected = [
        given + 3, given - 3, given * 3, np.trunc(given / 3), given % 3,
        given < 3, given <= 3, given > 3, given >= 3,
    ]  # fmt: skip
    found = run(write, given, *[DataType.INT64] * 5, *[DataType.BOOL] * 4)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_logic_and_products_are_those_of_onnx():
    def write(op: Builder, x: Value) -> tuple[Value, ...]:
        low, high = x < 3, x > 0
        rows = op.Cast(op.reshape(x, 1, -1), to=DataType.FLOAT)
        return low & high, low | high, ~low, rows @ op.Transpose(rows, perm=[1, 0])

    given = np.array([-7, 2, 3, 8])
    both, either, neither, product = run(write, given, *[DataType.BOOL] * 3, DataType.FLOAT)
    np.testing.assert_array_equal(both, (given < 3) & (given > 0))
    np.testing.assert_array_equal(either, (given < 3) | (given > 0))
    np.testing.assert_array_equal(neither, given >= 3)
    assert product.item() == 126


def test_what_is_written_twice_is_one_node():
    found = graph(lambda op, x: op.Exp(x * 2.0) + op.Exp(x * 2.0), FP32)
    assert kinds(found) == ["Add", "Constant", "Exp", "Mul"]


@pytest.mark.parametrize("other", [2, 2.5, True])
def test_constants_of_another_dtype_are_others(other: Any):
    found = graph(lambda op, x: (op.constant(2.0), op.constant(other)), FP32)
    assert kinds(found) == ["Constant", "Constant"]


def test_a_branch_sees_what_was_written_before_and_hides_what_it_writes():
    def write(op: Builder, x: Value) -> tuple[Value, Value]:
        before = op.Exp(x)
        condition = op.Squeeze(op.size(x, 0) > 2)
        (out,) = op.branch(condition, lambda: op.Exp(x) + op.Neg(x), lambda: before)
        return out, op.Neg(x)

    found = graph(write, FP32)
    assert kinds(found).count("Exp") == 1
    assert kinds(found).count("Neg") == 2
    for given in ([1.0, 2.0, 3.0], [1.0, 2.0]):
        x = np.array(given, np.float32)
        out, last = run(write, x, DataType.FLOAT, DataType.FLOAT)
        want = np.exp(x) - x if len(x) > 2 else np.exp(x)
        np.testing.assert_allclose(out, want, rtol=1e-6)  # one rounding of fp32, and exp's own
        np.testing.assert_array_equal(last, -x)


def test_a_scan_returns_last_states_and_all_outputs():
    def write(op: Builder, x: Value) -> tuple[Value, ...]:
        def step(total: Value, one: Value) -> tuple[Value, Value]:
            return total + one, total * one

        return op.scan(step, {"total": (op.constant(1.0), "")}, {"one": (x, "")})

    last, each = run(write, np.array([2, 3, 4], np.float32), DataType.FLOAT, DataType.FLOAT)
    assert last == 10
    assert each.tolist() == [2, 9, 24]


def test_a_loop_counts_its_steps():
    def write(op: Builder, x: Value) -> Value:
        def step(number: Value, total: Value) -> Value:
            return total + op.Cast(number, to=DataType.FLOAT) * x

        return op.loop(step, op.constant(4), op.Neg(x), "N")

    (out,) = run(write, np.array([1, 2], np.float32), DataType.FLOAT)
    assert out.tolist() == [5, 10]


def test_outputs_are_written_and_each_its_own():
    def write(op: Builder, x: Value) -> tuple[Value, ...]:
        y = op.Neg(x)
        return y, y, x

    assert kinds(graph(write, FP32)) == ["Identity", "Identity", "Neg"]


def test_an_attribute_is_a_reference():
    scale = Attribute("scale", ir.AttributeType.FLOAT, 0.5)
    found = graph(lambda op, x: op.LeakyRelu(x * scale, alpha=scale), FP32)
    assert [a.ref_attr_name for n in found for a in n.attributes.values()] == ["scale"] * 2


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda op, x: op.Softmax(x, axes=-1), "Softmax has no attribute \\['axes'\\]"),
        (lambda op, x: op.MatMul(x), "MatMul takes 2 to 2 inputs, not 1"),
        (lambda op, x: op.node("TopK", x, [1]), "TopK has 2 outputs or more, not 1"),
    ],
)
def test_what_the_standard_does_not_have_is_refused(write: Callable[..., Any], message: str):
    with pytest.raises(TypeError, match=message):
        graph(write, FP32)


def test_an_operator_that_the_standard_does_not_have_is_refused():
    with pytest.raises(onnx.defs.SchemaError, match="No schema registered for 'Softmaxx'"):
        graph(lambda op, x: op.Softmaxx(x), FP32)
