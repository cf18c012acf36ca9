"""The end of an export: the manifest, what is measured, and what other programs look for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmcast.exporter.clients.card import write_card
from lmcast.exporter.clients.write import write_clients
from lmcast.exporter.engine.manifest import write_manifest
from lmcast.exporter.graph.bodies import with_bodies


def finish(
    directory: Path,
    graph: ir.Model,
    fields: dict[str, Any],
    hashes: Mapping[str, str],
    clients: bool,
    proof: Callable[[], bool] | None,
) -> None:
    """Write engine.json, what `proof` measures of the engine, and what other programs look for.

    graph: that of the engine, as it was just made.
    """
    if clients:
        fields |= write_clients(directory, fields, with_bodies(graph))
    write_manifest(directory, fields, hashes)
    proven = proof is not None and proof()
    if write_card(directory, fields) or proven:
        write_manifest(directory, fields, hashes)


def open_to_others(directory: Path, fields: dict[str, Any]) -> None:
    """Write what other programs look for into an engine whose other files are there."""
    fields |= write_clients(directory, fields)
    write_card(directory, fields)
