"""Which ONNX Runtime a graph needs, by its operators; onnxruntimes.py tries it with those."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from lmcast.exporter.graph import oldest_onnxruntime as oldest
from lmcast.exporter.graph.requirements import require

DOCUMENT = Path(__file__).parents[2] / "docs/gpus.md"
CALL = """<ir_version: 11, opset_import: ["" : 24, "com.microsoft" : 1, "own" : 1]>
g (float[2] x, bool b) => (float[2] y) {{ {} }}
<domain: "own", opset_import: ["" : 24]> f (x) => (y) {{ y = TensorScatter(x, x) }}"""
GRAPHS = {
    "y = Relu(x)": "1.25",  # by the function beside it
    "y = com.microsoft.LinearAttention(x)": "1.25",
    "y = com.microsoft.GroupQueryAttention(x)": "1.25",
    "y = com.microsoft.GroupQueryAttention <sliding_window_cache = 1> (x)": "1.29",
    "y = If (b) <then_branch = t () => (float[2] z) { z = com.microsoft.LinearAttention(x) },"
    " else_branch = e () => (float[2] z) { z = Relu(x) }>": "1.25",
}


def model(nodes: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(CALL.format(nodes)))


@pytest.mark.parametrize("nodes", GRAPHS)
def test_newest_operator_decides(nodes: str):
    assert oldest.oldest_onnxruntime(model(nodes)) == GRAPHS[nodes]


def test_opset_alone():
    graph = model("y = Relu(x)")
    graph.functions.clear()
    assert oldest.oldest_onnxruntime(graph) == "1.24"
    assert oldest.opsets(graph) == {"ai.onnx": 24, "com.microsoft": 1, "own": 1}


@pytest.mark.parametrize(("asked", "found"), [("1.4", "1.25"), ("1.31", "1.31")])
def test_versions_are_numbers_and_more_may_be_required(asked: str, found: str):
    graph = model("y = Relu(x)")
    require(graph, onnxruntime=asked)
    assert oldest.oldest_onnxruntime(graph) == found


def test_document_says_the_same():
    rows = [f"| `{operator}` | {version} |" for (_, operator), version in oldest.SINCE.items()] + [
        f"| `GroupQueryAttention` with `{oldest.RING}` | {oldest.RING_SINCE} |"
    ]
    assert set(rows) <= set(DOCUMENT.read_text().splitlines())
