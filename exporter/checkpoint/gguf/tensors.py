"""The tensors of a GGUF file under Hugging Face's names, in Hugging Face's layouts."""

import re
from collections.abc import Iterable, Iterator

from lmcast.exporter.checkpoint.gguf.architecture import Architecture, Names, To
from lmcast.exporter.checkpoint.gguf.decode import stored
from lmcast.exporter.checkpoint.gguf.header import Entry
from lmcast.exporter.checkpoint.gguf.model import Model
from lmcast.exporter.checkpoint.tensors import StoredTensor

LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.(.+)")
MODULE = re.compile(r"(.+)(\.weight|\.bias)")
Parts = dict[str, Entry]


def hugging_face_tensors(m: Model, arch: Architecture) -> dict[str, StoredTensor]:
    """Return every tensor of the file but the few that the config holds.

    Those of layers that predict further tokens have names below 'mtp', which nothing reads. Raises
    CheckpointError for a tensor that the architecture does not have.
    """
    outer: Parts = {}
    layers: dict[int, Parts] = {}
    for entry in m.header.tensors.values():
        match = LAYER.fullmatch(entry.name)
        if match is not None:
            layers.setdefault(int(match[1]), {})[match[2]] = entry
        elif entry.name not in m.held:
            outer[entry.name] = entry
    tensors: dict[str, StoredTensor] = {}

    def add(found: Iterable[StoredTensor], what: str) -> None:
        try:
            for one in found:
                if one.name in tensors:
                    raise ValueError(f"{what} is there twice, as {one.name!r}")
                tensors[one.name] = one
        except ValueError as error:
            raise m.error(str(error)) from None

    add(_renamed(m, outer, arch.outer, ""), "a tensor")
    for layer, parts in layers.items():
        if m.layers <= layer < m.integer("block_count"):
            add((stored(f"mtp.{e.name}", e) for e in parts.values()), f"layer {layer}")
            continue
        prefix = arch.within.replace("{i}", str(layer))
        add(_joined(m, parts, arch, prefix), f"layer {layer}")
        add(_renamed(m, parts, arch.layer, prefix), f"layer {layer}")
    return tensors


def _joined(m: Model, parts: Parts, arch: Architecture, prefix: str) -> Iterator[StoredTensor]:
    """Yield what several tensors make together, and take those out of `parts`."""
    for join in arch.joined:
        missing = [name for name in join.parts if name not in parts]
        if len(missing) == len(join.parts):
            continue
        if missing:
            (near, *_) = (parts[name] for name in join.parts if name in parts)
            raise ValueError(f"tensor {near.name!r} is there without {', '.join(missing)}")
        yield from join.make(m, prefix, *(parts.pop(name) for name in join.parts))


def _renamed(m: Model, parts: Parts, names: Names, prefix: str) -> Iterator[StoredTensor]:
    for part, entry in parts.items():
        rule, suffix, match = names.get(part), "", MODULE.fullmatch(part)
        if rule is None and match is not None:
            rule, suffix = names.get(match[1]), match[2]
        if rule is None:
            raise ValueError(
                f"tensor {entry.name!r} is none of {m.metadata.architecture}'s; lmcast does not"
                " know this model in GGUF: use the original Hugging Face checkpoint"
            )
        rule = To(rule) if isinstance(rule, str) else rule
        yield from rule.tensors(m, entry, prefix, suffix)
