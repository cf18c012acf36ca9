"""Reading checkpoints of Hugging Face, Mistral and GGUF, validated and never executed."""

import os
import stat
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.hub import fetch, is_model
from lmcast.exporter.checkpoint.kinds import foreign_file
from lmcast.exporter.progress import Progress, silent

if TYPE_CHECKING:
    from lmcast.exporter.checkpoint.identity import SourceFile
    from lmcast.exporter.checkpoint.tensors import Checkpoint

__all__ = ["CheckpointError", "identified", "open_checkpoint"]

# What reads tensors is imported on use: a linked engine checks its sources without torch.


def identified(
    name: str | PathLike[str], revision: str | None = None, progress: Progress = silent
) -> "tuple[Checkpoint, list[SourceFile]]":
    """Return a checkpoint, as open_checkpoint does, and the identities of its files.

    Taken now: a file that changes under the export must not pass for the one that was read.
    """
    from lmcast.exporter.checkpoint.identity import SourceFile

    source = open_checkpoint(name, revision, progress)
    files = sorted({file for stored in source.tensors.values() for file in stored.files})
    return source, [SourceFile.of(file) for file in files]


def open_checkpoint(
    name: str | PathLike[str], revision: str | None = None, progress: Progress = silent
) -> "Checkpoint":
    """Open a directory of Hugging Face's, one of Mistral's, a .gguf file, or a directory with one.

    Reads headers and texts, no weights. A text that is no path may name a model of the Hugging
    Face Hub, ORG/NAME (see checkpoint/hub.py). revision: of that a branch, tag or commit, None:
    main. progress: of its download; it is warned of files that are not read. Raises
    CheckpointError for anything unusable.
    """
    if is_model(name):
        path = fetch(str(name), revision, progress)
    elif revision is None:
        if name == "":  # as a variable of a shell that is not set; a Path of it is this directory
            raise CheckpointError("the path of the checkpoint is empty; give its directory")
        path = Path(name)
    else:
        raise CheckpointError(
            f"{name}: is no model of the Hub, and only those have revisions: {revision!r:.80}"
        )
    with progress.stage("reading headers"):
        return _open_path(path, progress)


def _open_path(path: Path, progress: Progress) -> "Checkpoint":
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened: {error.strerror}; accepted: a directory, a .gguf file, or"
            " a model of the Hugging Face Hub as ORG/NAME"
        ) from None
    except ValueError as error:  # a zero byte in the name
        raise CheckpointError(f"{str(path)!r}: is no path: {error}") from None
    if stat.S_ISDIR(mode):
        file = _only_gguf(path)
        return _open_directory(path, progress) if file is None else _open_gguf(file)
    if stat.S_ISREG(mode) and path.suffix.lower() == ".gguf":
        return _open_gguf(path)
    if kind := foreign_file(path.name):
        raise CheckpointError(f"{path}: is {kind.what}, not a checkpoint; {kind.instead}")
    raise CheckpointError(
        f"{path}: is neither a directory nor a .gguf file; give the directory with config.json"
    )


def _open_directory(path: Path, progress: Progress) -> "Checkpoint":
    from lmcast.exporter.checkpoint.huggingface import open_directory

    return open_directory(path, progress)


def _open_gguf(path: Path) -> "Checkpoint":
    from lmcast.exporter.checkpoint.gguf import open_gguf  # gguf is an extra

    return open_gguf(path)


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file, or the first part of one, of a directory without safetensors files."""
    from lmcast.exporter.checkpoint.gguf.names import models

    root = Folder.at(folder)
    names = root.names()
    found = models(names)
    if not found or any(
        name.endswith((".safetensors", ".safetensors.index.json")) for name in names
    ):
        return None
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: has {len(found)} GGUF files ({found[0]}, {found[1]}, ...); give one of them"
        )
    root.find(found[0])  # a link that leaves the directory is refused
    return root.root / found[0]
