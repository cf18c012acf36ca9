"""A graph as a value of JSON, in which two are compared; its weights have no numbers in it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import onnx_ir as ir

from lmcast.exporter.diff.values import ABSENT, Change, changes

MOST_NUMBERS = 64  # of a constant that is written out: tables of positions have millions
QUANTIZED = ("bits", "block_size", "expert_weight_bits")  # attributes that say how codes are read


def graph_changes(before: ir.Model, after: ir.Model) -> Iterator[Change]:
    """Yield what differs: operators by how many there are, then inputs, outputs and functions, then
    node by node."""
    old, new = ({n: _described(g) for n, g in _graphs(model)} for model in (before, after))
    for name in (*old, *(name for name in new if name not in old)):
        if name not in old or name not in new:
            yield Change(name, *("present" if name in side else ABSENT for side in (old, new)))
            continue
        counts = [Counter(node["operator"] for node in side[name]["nodes"].values())
                  for side in (old, new)]  # fmt: skip
        for operator in sorted(counts[0].keys() | counts[1].keys()):
            if counts[0][operator] != counts[1][operator]:
                many = (count[operator] for count in counts)
                yield Change(f"{name}: nodes of {operator}", *many)
        yield from changes(old[name], new[name], name)


def versions(model: ir.Model) -> dict[str, Any]:
    """Return the versions that a graph is written in."""
    return {"ir": model.ir_version, "opsets": dict(model.opset_imports)}


def formats(model: ir.Model) -> dict[str, str]:
    """Return of each weight its dtype and shape, and how its codes are read."""
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        read = {
            attribute: node.attributes[attribute].value
            for node in value.consumers()
            for attribute in QUANTIZED
            if attribute in node.attributes
        }
        codes = "".join(f", {name} {number}" for name, number in sorted(read.items()))
        found[str(name)] = f"{_type(tensor)}{codes}" if tensor is not None else "no numbers"
    return found


def _graphs(model: ir.Model) -> Iterator[tuple[str, ir.Graph | ir.Function]]:
    yield "graph", model.graph
    for key, function in model.functions.items():
        yield f"function {'::'.join(filter(None, key))}", function


def _described(graph: ir.Graph | ir.Function) -> dict[str, Any]:
    """Return what a graph says."""
    nodes: dict[str, Any] = {}
    for index, node in enumerate(graph):
        name = node.name or f"unnamed {index}"
        nodes[name if name not in nodes else f"{name} again at {index}"] = _node(node)
    return {
        "inputs": {value.name: _type(value) for value in graph.inputs},
        "outputs": {value.name: _type(value) for value in graph.outputs},
        "nodes": nodes,
        "metadata": dict(graph.metadata_props),
    }


def _node(node: ir.Node) -> dict[str, Any]:
    operator = node.op_identifier()
    attributes = {name: _plain(attribute.value) for name, attribute in node.attributes.items()}
    return attributes | {
        "operator": "::".join(filter(None, operator)),
        "inputs": [None if value is None else value.name for value in node.inputs],
        "outputs": [f"{value.name} {_type(value)}" for value in node.outputs],
    }


def _type(value: ir.Value | ir.TensorProtocol) -> str:
    dtype, shape = value.dtype, value.shape
    axes = "..." if shape is None else ",".join(str(axis) for axis in shape)
    return f"{'unknown' if dtype is None else dtype.name.lower()} [{axes}]"


def _plain(value: Any) -> Any:
    """Return the value of an attribute as one of JSON."""
    if isinstance(value, ir.Graph):
        return _described(value)
    if isinstance(value, ir.TensorProtocol):
        numbers = value.numpy()
        written = (
            numbers.tolist()
            if numbers.size <= MOST_NUMBERS
            else f"numbers of SHA-256 {sha256(value.tobytes()).hexdigest()}"
        )
        return {"type": _type(value), "numbers": written}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
