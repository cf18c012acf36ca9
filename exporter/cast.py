"""The graphs of an engine: traced, their weights attached, and rewritten for a target."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from lmcast.exporter import passes
from lmcast.exporter.activations import settle
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import DType
from lmcast.exporter.engine.names import MODEL, TOWERS, own_files
from lmcast.exporter.graph.assemble import assemble
from lmcast.exporter.graph.capture import capture
from lmcast.exporter.graph.context import set_context
from lmcast.exporter.graph.graphs import Graphs
from lmcast.exporter.graph.requirements import require
from lmcast.exporter.graph.tower import tower_graph
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.targets import Target
from lmcast.exporter.weights.attach import attach
from lmcast.exporter.weights.made import place_made
from lmcast.exporter.weights.place import Placement
from lmcast.graphs import Definition, of_tower


def trace(found: Definition, source: Checkpoint, format: DType) -> ir.Model:
    """Return the portable graph of a definition's text; its weights have no data yet."""
    model = found.shape_for(format.torch, _dtypes(source))
    return assemble(model, capture(model))


def trace_towers(found: Definition, source: Checkpoint, format: DType) -> dict[str, ir.Model]:
    """Return those of its towers, by name."""
    dtypes = _dtypes(source)
    return {
        name: tower_graph(tower.shape_for(format.torch, dtypes), of_tower(name))
        for name, tower in found.towers.items()
    }


def _dtypes(source: Checkpoint) -> dict[str, torch.dtype]:
    return {name: stored.dtype for name, stored in source.tensors.items()}


def cast(
    found: Definition,
    source: Checkpoint,
    target: Target,
    format: DType,
    placement: Placement,
    directory: Path,
    fields: Mapping[str, Any],
    activations: str | None = None,
    progress: Progress = silent,
) -> tuple[Graphs, Placement]:
    """Write and return the graphs of a definition for a target, with their weights attached.

    fields: of engine.json: context, and sms where there is machine code. The placement that is
    returned has the hashes of files with weights of the graphs' own, too. activations: as settled.
    """
    sms, hashes = tuple(fields.get("sms", ())), dict(placement.hashes)
    with progress.stage("tracing"):
        found.model.limit(fields["context"])
        graphs = Graphs(trace(found, source, format), trace_towers(found, source, format))
        set_context(graphs.text, fields["context"])
        anew, whole = found.anew_beyond(fields["context"]), found.same_up_to or 0
        require(graphs.text, anew_beyond=anew, whole_beyond=whole)
        files = {MODEL: graphs.text, **{TOWERS[name]: g for name, g in graphs.towers.items()}}
        for file, graph in files.items():
            attach(graph, found.weights, placement, source, directory)
            require(graph, **target.carried.requires)
            passes.run(graph, target.carried.passes())
            if graph is graphs.text:
                settle(graph, activations)
            target.embed(graph, sms)
            hashes |= place_made(graph, directory, own_files(file))
            data = ir.to_proto(graph).SerializeToString(deterministic=True)
            (directory / file).write_bytes(data)
    return graphs, replace(placement, hashes=hashes)
