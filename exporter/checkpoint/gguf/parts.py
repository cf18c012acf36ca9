"""A GGUF file that is split into parts: `NAME-00001-of-00003.gguf` and its siblings."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.gguf.header import Header, read_header
from lmcast.exporter.checkpoint.gguf.names import PART

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
SHARED = ("general.", "split.")  # keys that further parts repeat, or have of their own


def read_whole(path: Path) -> Header:
    """Return the header of a GGUF file, of all of its parts where it is one of several.

    Any part stands for the whole. Raises CheckpointError that names the parts that are missing, or
    what does not fit together.
    """
    header = read_header(Path(os.path.realpath(path)))
    count = header.metadata.get(COUNT, 1)
    if type(count) is not int or not 1 <= count <= 99_999:
        raise CheckpointError(f"{path}: {COUNT} is {count!r:.80}; accepted: 1 to 99999 parts")
    if count == 1:
        return header
    match = PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{path}: is one of the {count} parts of a split GGUF, but is not named so; accepted:"
            f" NAME-00001-of-{count:05}.gguf and its siblings in one directory"
        )
    folder = Folder.at(path.parent)
    names = [f"{match[1]}-{number + 1:05}-of-{match[3]}{path.suffix}" for number in range(count)]
    found = [folder.find(name) for name in names]
    missing = [name for name, file in zip(names, found, strict=True) if file is None]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise CheckpointError(
            f"{path.parent}: {len(missing)} of {count} parts of a split GGUF are missing:"
            f" {', '.join(missing[:3])}{more}; download them into this directory"
        )
    return _joined([read_header(file) for file in found if file is not None])


def _joined(parts: list[Header]) -> Header:
    first = parts[0]
    tensors = dict(first.tensors)
    for number, part in enumerate(parts):
        said = part.metadata.get(NUMBER), part.metadata.get(COUNT)
        if said != (number, len(parts)):
            raise CheckpointError(
                f"{part.path}: {NUMBER} and {COUNT} are {said[0]!r:.40} and {said[1]!r:.40}; by its"
                f" name they are {number} and {len(parts)}: the parts are not of one model"
            )
        if number == 0:
            continue
        _require_same(first, part)
        for name, entry in part.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{part.path}: holds tensor {name!r}, as does {tensors[name].path.name}"
                )
            tensors[name] = entry
    total = first.metadata.get(TENSORS, len(tensors))
    if total != len(tensors):
        raise CheckpointError(
            f"{first.path}: {TENSORS} is {total!r:.40}, but its parts hold {len(tensors)}; they are"
            " not of one model"
        )
    return replace(first, tensors=tensors)


def _require_same(first: Header, part: Header) -> None:
    """Refuse a further part that says of the model what the first does not."""
    for key, value in part.metadata.items():
        known: Any = first.metadata.get(key)
        if not key.startswith(SHARED) and known != value:
            raise CheckpointError(
                f"{part.path}: sets {key} = {value!r:.80}, where the first part has"
                f" {known!r:.80}; the parts are not of one model"
            )
