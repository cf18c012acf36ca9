"""Files that are split for tensor parallelism (xai-org/grok-2): parts of tensors, by rank.

`NAME-TP-common.safetensors` holds whole tensors, `NAME-TP-000.safetensors` and its siblings the
part of every rank under one name; no index can say where such a name lies.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.tensors import StoredTensor
from lmcast.graphs.weights.experts import part_name

FILE = re.compile(r"(.+)-TP-(common|\d{3})\.safetensors")
Tensors = dict[str, StoredTensor]


def is_split(names: Iterable[str]) -> bool:
    """Return whether file names are of a checkpoint that is split for tensor parallelism."""
    return any(FILE.fullmatch(name) for name in names)


def read_split(
    folder: Folder, names: Iterable[str], read: Callable[[Folder, str], Tensors]
) -> Tensors:
    """Return whole tensors by name and parts by `part_name`; raises CheckpointError.

    Every group of files must have all ranks, as many as any other, with the same tensors in each.
    """
    found: Tensors = {}
    ranks: dict[str, dict[int, str]] = {}  # group -> rank -> file
    for name in sorted(names):
        match = FILE.fullmatch(name)
        if match is not None and match[2] != "common":
            ranks.setdefault(match[1], {})[int(match[2])] = name
        elif match is not None:
            _add(folder, found, name, read(folder, name))
    count = max((max(files) + 1 for files in ranks.values()), default=0)
    for group, files in sorted(ranks.items()):
        missing = [rank for rank in range(count) if rank not in files]
        if missing:
            raise CheckpointError(
                f"{folder.root}: the file {group}-TP-{missing[0]:03}.safetensors is missing; the"
                f" checkpoint is split for {count} ranks, and every one holds a part"
            )
        parts = [read(folder, files[rank]) for rank in range(count)]
        for rank, part in enumerate(parts):
            _require_alike(folder, files[0], parts[0], files[rank], part)
            renamed = {
                part_name(n, rank): replace(s, name=part_name(n, rank)) for n, s in part.items()
            }
            _add(folder, found, files[rank], renamed)
    for name in found:
        whole = name.rpartition(".TP-")[0]
        if whole in found:
            raise CheckpointError(
                f"{found[name].file}: holds a part of tensor {whole!r}, which"
                f" {found[whole].file.name} holds as a whole"
            )
    return found


def _add(folder: Folder, found: Tensors, file: str, tensors: Tensors) -> None:
    for name in tensors:
        if name in found:
            raise CheckpointError(
                f"{folder.root / file}: holds tensor {name!r}, as does {found[name].file.name}"
            )
    found |= tensors


def _require_alike(folder: Folder, first: str, one: Tensors, file: str, other: Tensors) -> None:
    """Refuse ranks that hold other tensors, or parts of another shape or dtype."""
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name), other.get(name)
        if a is None or b is None:
            has, lacks = (first, file) if b is None else (file, first)
            raise CheckpointError(
                f"{folder.root / lacks}: lacks a part of tensor {name!r}, which {has} has"
            )
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            raise CheckpointError(
                f"{folder.root / file}: its part of tensor {name!r} is {b.dtype} {list(b.shape)},"
                f" that of {first} is {a.dtype} {list(a.shape)}; parts are alike"
            )
