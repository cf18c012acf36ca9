"""The oldest ONNX Runtime whose CPU provider runs a graph, by its operators.

`python tests/backends/onnxruntimes.py` tries what is said here with those versions themselves.
"""

import onnx_ir as ir

from lmcast.exporter.graph.requirements import requirements

# Operators that came, or took the form that our passes write, after the opset of our graphs did.
SINCE = {
    ("", "TensorScatter"): "1.25",
    ("com.microsoft", "LinearAttention"): "1.25",
}
RING = "sliding_window_cache"  # an attribute of GroupQueryAttention
RING_SINCE = "1.29"


def oldest_onnxruntime(graph: ir.Model) -> str:
    """Return the version, as '1.25': at least what a graph requires (graph/requirements.py)."""
    parts: list[ir.Graph | ir.Function] = [graph.graph, *graph.functions.values()]
    nodes = [node for part in parts for node in part.all_nodes()]
    found = [SINCE[key] for node in nodes if (key := (node.domain, node.op_type)) in SINCE]
    found += [RING_SINCE for node in nodes if RING in node.attributes]
    return max([requirements(graph).onnxruntime, *found], key=_numbers)


def opsets(graph: ir.Model) -> dict[str, int]:
    """Return the versions of the sets of operators that a graph imports, by their domains."""
    return {domain or "ai.onnx": number for domain, number in graph.opset_imports.items()}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
