"""The description of an engine in engine.json: architecture, graph contract, sources."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import onnx_ir as ir

from lmcast.exporter.checkpoint.hub import origin
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import COMPUTED, OF_ONNX, DType
from lmcast.exporter.engine.names import MODEL, TOWERS
from lmcast.exporter.graph.graphs import Graphs
from lmcast.exporter.graph.oldest_onnxruntime import oldest_onnxruntime, opsets
from lmcast.exporter.graph.requirements import requirements
from lmcast.exporter.vision.processor import Processor
from lmcast.exporter.weights.place import Placement
from lmcast.graphs import Definition
from lmcast.graphs.definition import PICTURES
from lmcast.graphs.weights.quantized_parts import parameter_of

PAST = ".past"  # how inputs that are states end


def describe(
    found: Definition,
    source: Checkpoint,
    target: str,
    format: DType,
    placement: Placement,
    graphs: Graphs,
    identities: Sequence[SourceFile],
) -> dict[str, Any]:
    """Return the fields of engine.json."""
    made_from, hashes = origin(source.path), placement.linked_hashes
    linked = {p.file for p in placement.placed.values()} if placement.mode == "link" else set()
    return {
        "architecture": found.arch.name,
        "config": dict(source.config),
        "vocab_size": found.config.vocab_size,
        "parameters": found.parameters,
        "active_parameters": found.active,
        "layers": len(found.model.layers),
        "weights": count_weights(graphs, placement),
        "dtype": format.name,
        "target": target,
        "graph": contract(placement, graphs.text),
        **({} if made_from is None else {"hub": made_from}),
        "source": [
            {"name": s.path.name, "size": s.size, "header_sha256": s.header_sha256}
            for s in identities
        ],
        "linked": [
            {**asdict(s), "path": path, **({"sha256": hashes[path]} if path in hashes else {})}
            for s in identities
            if (path := str(s.path)) in linked
        ],
    }


def count_weights(graphs: Graphs, placement: Placement) -> dict[str, dict[str, int]]:
    """Return tensors and bytes by format, as the graphs have them; quantized ones with scales."""
    counted: dict[str, dict[str, int]] = {}
    for name, weight in placement.packed.items():
        entry = counted.setdefault(weight.format, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += sum(placement.placed[part.of(name)].nbytes for part in weight.parts)
    for name, value in chain(*(graph.graph.initializers.items() for graph in graphs)):
        if parameter_of(name) in placement.packed:
            continue
        tensor = value.const_value
        assert tensor is not None
        known = OF_ONNX.get(int(tensor.dtype))
        plain = known is not None and known.name in COMPUTED
        format = known.name if known and plain else tensor.dtype.name.lower()
        entry = counted.setdefault(format, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor.nbytes
    return counted


def tower_contracts(
    graphs: Graphs, found: Definition, processor: Processor | None
) -> dict[str, Any]:
    """Return the fields of engine.json about the graphs of towers, none where there are none."""
    fields: dict[str, Any] = {}
    for name, graph in graphs.towers.items():
        required = requirements(graph)
        fields[name] = {
            "file": TOWERS[name],
            **_ends(graph),
            "parameters": found.towers[name].parameters,
            "optimized": required.optimized,
            "folded": required.folded,
            "onnxruntime": oldest_onnxruntime(graph),
            "opsets": opsets(graph),
        }
    if processor is not None:
        given = {"text_inputs": list(found.model.image_inputs), "processor": asdict(processor)}
        fields[PICTURES] |= given
    return fields


def _ends(graph: ir.Model) -> dict[str, list[Any]]:
    """Return the inputs and outputs of a graph, with their axes."""
    ends = {"inputs": graph.graph.inputs, "outputs": graph.graph.outputs}
    return {
        what: [[v.name, list(map(str, v.shape or []))] for v in values]
        for what, values in ends.items()
    }


def contract(placement: Placement, graph: ir.Model) -> dict[str, Any]:
    """Return the contract of the graph: what a runtime must know to run it."""
    return {
        "file": MODEL,
        "weights": placement.mode,
        **requirements(graph).as_json(),
        "onnxruntime": oldest_onnxruntime(graph),
        "opsets": opsets(graph),
        **_ends(graph),
        "states": [
            {
                "name": str(value.name).removesuffix(PAST),
                "shape": [n if isinstance(n, int) else str(n) for n in value.shape or ()],
                "dtype": OF_ONNX[int(value.dtype or 0)].name,
            }
            for value in graph.graph.inputs
            if str(value.name).endswith(PAST)
        ],
    }
