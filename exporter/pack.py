"""Make a linked engine self-contained: its weights are copied from the checkpoint."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch

from lmcast.exporter.checkpoint.files import open_regular, read_into
from lmcast.exporter.checkpoint.finite import check_block
from lmcast.exporter.checkpoint.tensors import BLOCK_BYTES, StoredTensor
from lmcast.exporter.clients.finish import open_to_others
from lmcast.exporter.clients.layouts import LAYOUTS
from lmcast.exporter.clients.names import Program
from lmcast.exporter.clients.write import FIELD
from lmcast.exporter.dtypes import COMPUTED, OF_ONNX
from lmcast.exporter.engine.manifest import EngineError, changed_sources, write_manifest
from lmcast.exporter.engine.names import ENGINE_JSON, GRAPHS, ROOT, SIGNATURE, WEIGHTS
from lmcast.exporter.engine.output import check_apart, check_outside, check_replaced
from lmcast.exporter.engine.staging import carry, staged
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.weights.place import Entry, location, ordered, write
from lmcast.plugins.arguments import checked

INNER = "engine"  # where an engine lies while files are taken from it


@checked
def pack(
    engine: Path, output: Path | None = None, progress: Progress = silent, force: bool = False
) -> Engine:
    """Write `engine` with its weights inside to `output`, by default in its own place.

    A signature is not kept: it is of other files. force: replace an engine of another checkpoint.
    Raises EngineError if the engine is not linked, or its checkpoint has moved or changed.
    """
    source = Engine(engine)
    if not source.linked:
        raise EngineError(f"{engine}: is not linked; its weights are inside already")
    if output is not None:
        require_free(output, source, force)
    with staged(output or engine, progress) as directory:
        fields, hashes = contain(source, directory, progress)
        if fields.get(FIELD):  # asked for, and not possible until now
            open_to_others(directory, fields)
        # Recorded hashes stay: what is too large to be hashed at load may be damaged.
        write_manifest(directory, fields, hashes)
    if output is not None:
        warn_unsigned(output, engine, progress)
    return Engine(output or engine)


@dataclass(frozen=True)
class Packed:
    """The result of `lmcast pack --for`, for a person and for a machine."""

    path: str
    program: str
    files: dict[str, int]  # path -> bytes

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        size = sum(self.files.values())
        return f"{self.path}: for {self.program}, {len(self.files)} files, {size:,} bytes"


@checked
def pack_for(
    engine: Path,
    program: Program,
    output: Path,
    progress: Progress = silent,
    force: bool = False,
) -> Packed:
    """Write an engine to `output` as a program opens it; weights inside are hard links if they can
    be, those of a checkpoint copies.

    Raises EngineError for what the program cannot hold, and as `pack`.
    """
    source, layout = Engine(engine), LAYOUTS[program]
    require_free(output, source, force, stays_engine=layout.place is None)
    with staged(output, progress) as directory:
        inner = directory if layout.place is None else directory / INNER
        inner.mkdir(exist_ok=True)
        fields, hashes = (contain if source.linked else link)(source, inner, progress)
        if fields.get(FIELD, {}).get(layout.contract.name) != "":  # else they are there
            open_to_others(inner, fields)
        if why := fields[FIELD][layout.contract.name]:
            raise EngineError(f"{engine}: cannot be packed for {program}: {why}")
        write_manifest(inner, fields, hashes)
        if layout.place is not None:
            layout.place(inner, directory)
            shutil.rmtree(inner)
    warn_unsigned(output, engine, progress)
    found = {str(f.relative_to(output)): f for f in sorted(output.rglob("*")) if f.is_file()}
    return Packed(str(output), program, {path: f.stat().st_size for path, f in found.items()})


def link(
    source: Engine, directory: Path, progress: Progress
) -> tuple[dict[str, Any], dict[str, str]]:
    """Hard-link an engine into a directory, but for engine.json; returns as `contain`."""
    for file in source.manifest.files:
        carry(source.directory / file.path, directory / file.path)
    weights = f"{WEIGHTS}/"  # all others are small, and some are written again
    hashes = {f.path: f.sha256 for f in source.manifest.files if f.path.startswith(weights)}
    return dict(source.manifest.fields), hashes


def require_free(output: Path, source: Engine, force: bool, stays_engine: bool = True) -> None:
    """Refuse an output that is in the way; raises EngineError.

    stays_engine: what is written is an engine, which may take the place of the one it is made of.
    """
    fields, kind = source.manifest.fields, ENGINE_JSON if stays_engine else ""
    if not (stays_engine and os.path.realpath(output) == os.path.realpath(source.directory)):
        check_apart(output, source.directory, "engine")
    check_outside(output)
    for linked in source.manifest.linked:
        check_apart(output, checkpoint_of(Path(linked.path)))
    if not force:
        check_replaced(output, kind, fields["source"], fields["config"])


def warn_unsigned(output: Path, engine: Path, progress: Progress) -> None:
    """Say that a signature has not come along, but of an engine that was replaced: that is said."""
    if (engine / SIGNATURE).exists():
        progress.warn(f"{output} is not signed, as {engine} is: sign it too")


def contain(
    source: Engine, directory: Path, progress: Progress
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write a linked engine into a directory with its weights inside, but for engine.json.

    Returns the fields of that, and the hashes of files. Raises EngineError where the checkpoint has
    moved or changed.
    """
    engine, fields = source.directory, dict(source.manifest.fields)
    # Those within a graph and the engine stay there: machine code, and what passes have made.
    own = {file.path for file in source.manifest.files}
    graphs = {file: ir.load(engine / file) for file in GRAPHS if file in own}
    all_weights = (v for graph in graphs.values() for v in graph.graph.initializers.values())
    weights = [value for value in all_weights if is_linked(value, own)]
    entries = ordered(map(_entry, weights))
    total = sum(entry.nbytes for entry in entries)
    with progress.stage("copying weights", total) as step:
        placed, hashes = write(entries, directory, step)
    read = sum(linked.size for linked in source.manifest.linked if linked.sha256)
    with progress.stage("hashing weights", read) as step:  # now: of what has been copied
        if problems := changed_sources(source.manifest, advance=step):
            raise EngineError(f"{engine}: {problems[0]}")
    for value in weights:
        name, tensor = str(value.name), cast(ir.ExternalTensor, value.const_value)
        value.const_value = ir.ExternalTensor(
            location(placed[name]), placed[name].offset, placed[name].nbytes, tensor.dtype,
            shape=tensor.shape, name=name, base_dir=str(directory),
        )  # fmt: skip
    for file, graph in graphs.items():
        data = ir.to_proto(graph).SerializeToString(deterministic=True)
        (directory / file).write_bytes(data)
    carried = {f.path: f.sha256 for f in source.manifest.files if f.path not in graphs}
    for path in carried:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(engine / path, directory / path)
    fields |= {"linked": [], "graph": {**fields["graph"], "weights": "copy"}}
    return fields, {**carried, **hashes}


def is_linked(value: ir.Value, own: Collection[str]) -> bool:
    """Whether a weight of a linked graph is in a file of the checkpoint.

    own: the files of the engine.
    """
    tensor = value.const_value
    return isinstance(tensor, ir.ExternalTensor) and tensor.location not in own


def checkpoint_of(file: Path) -> Path:
    """Return the checkpoint of a file of weights: a GGUF file itself, else its directory."""
    return file.parent if file.suffix == ".safetensors" else file


def _entry(value: ir.Value) -> Entry:
    tensor = cast(ir.ExternalTensor, value.const_value)
    offset, length = tensor.offset, tensor.length
    assert offset is not None
    assert length is not None
    file = Path(ROOT) / tensor.location
    shape = tuple(tensor.shape.numpy())
    dtype, name = torch.uint8, "U8"
    known = OF_ONNX.get(int(tensor.dtype))
    if known is not None and known.name in COMPUTED and known.safetensors is not None:
        dtype, name = known.torch, known.safetensors
    else:  # codes and scales: their bytes
        shape = (length,)
    stored = StoredTensor(str(value.name), dtype, shape, file, offset, length)
    return Entry(stored.name, name, shape, length, _blocks(stored))


def _blocks(stored: StoredTensor) -> Callable[[], Iterator[memoryview]]:
    def blocks() -> Iterator[memoryview]:
        with open_regular(stored.file) as descriptor:
            for start in range(0, stored.nbytes, BLOCK_BYTES):
                part = np.empty(min(BLOCK_BYTES, stored.nbytes - start), np.uint8)
                read_into(descriptor, part.data, stored.offset + start, stored.file)
                values = torch.from_numpy(part).view(stored.dtype)
                check_block(stored, values, start // stored.dtype.itemsize)
                yield part.data

    return blocks
