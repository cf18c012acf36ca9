"""The end of an export: the manifest, what is measured, and what other programs look for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmcast.exporter.clients.card import write_card
from lmcast.exporter.clients.write import write_clients
from lmcast.exporter.engine.manifest import write_manifest


def finish(
    directory: Path,
    fields: dict[str, Any],
    hashes: Mapping[str, str],
    clients: bool,
    proof: Callable[[], bool] | None,
) -> None:
    """Write engine.json, what `proof` measures of the engine, and what other programs look for."""
    if clients:
        fields |= write_clients(directory, fields)
    write_manifest(directory, fields, hashes)
    proven = proof is not None and proof()
    if write_card(directory, fields) or proven:
        write_manifest(directory, fields, hashes)


def open_to_others(directory: Path, fields: dict[str, Any]) -> None:
    """Write what other programs look for into an engine whose other files are there."""
    fields |= write_clients(directory, fields)
    write_card(directory, fields)
