"""Weights in files of an engine, of a linked one those that no checkpoint has, as arrays over them.

It needs no torch.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lmcast.exporter.dtypes import OF_SAFETENSORS
from lmcast.exporter.engine.manifest import EngineError, Manifest
from lmcast.exporter.engine.names import MODEL, is_read_by


def own_weights(manifest: Manifest, graph: str = MODEL) -> dict[str, np.ndarray]:
    """Return those of a graph by name, without reading them; raises EngineError for a damaged file.

    graph: one of GRAPHS. Of an engine that is not linked, those of the others are among them.
    """
    found: dict[str, np.ndarray] = {}
    for file in manifest.files:
        if not is_read_by(file.path, graph):
            continue
        path = manifest.directory / file.path
        try:
            found |= _arrays(path)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise EngineError(f"{path}: is not as lmcast has written it; export again") from None
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {error.strerror}") from None
    return found


def _arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the array of each tensor of a safetensors file."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    for name, entry in json.loads(data[8:start].tobytes()).items():
        begin, end = entry["data_offsets"]
        bytes_of = data[start + begin : start + end]
        yield name, bytes_of.view(OF_SAFETENSORS[entry["dtype"]].numpy).reshape(entry["shape"])
