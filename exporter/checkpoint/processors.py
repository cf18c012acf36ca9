"""The files of a Hugging Face directory that say how pictures, videos and sounds are prepared."""

from collections.abc import Mapping
from typing import Any

from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.strict_json import parse_object

WHOLE = "processor_config.json"  # since transformers 5 with the others in it
PICTURES = "preprocessor_config.json"
VIDEOS = "video_preprocessor_config.json"
JSON_BYTES = 16 << 20


def read_processors(folder: Folder) -> dict[str, Mapping[str, Any]]:
    """Return what each of the files says that is there, by name; raises CheckpointError."""
    found = {name: folder.read(name, JSON_BYTES) for name in (WHOLE, PICTURES, VIDEOS)}
    return {
        name: parse_object(data, folder.root / name)
        for name, data in found.items()
        if data is not None
    }
