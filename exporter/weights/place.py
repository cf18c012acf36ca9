"""Placement of weights: linked to the checkpoint, or streamed into the engine."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.finite import FiniteReport, check_finite
from lmcast.exporter.checkpoint.tensors import Checkpoint, StoredTensor
from lmcast.exporter.dtypes import OF_SAFETENSORS, DType, computed, of_torch
from lmcast.exporter.engine.names import ROOT, STORED, WEIGHTS
from lmcast.exporter.targets import WeightForm
from lmcast.exporter.weights.joined import together
from lmcast.exporter.weights.quantized import PackedWeight
from lmcast.exporter.weights.quantized_forms import packed_weight
from lmcast.exporter.weights.values import values
from lmcast.graphs.weights.bind import Binding, not_a_copy, require_zeros
from lmcast.graphs.weights.quantized import Blocks
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.graphs.weights.sources import Packed, Source, View, alike, leaves, tensors_of
from lmcast.plugins.errors import InputError

Mode = Literal["link", "copy"]
Progress = Callable[[int], None]
SHARD_BYTES = 4 << 30  # 4 GiB: most file systems and transports take files of this size
ALIGNMENT = 64  # of the first byte of data: a cache line
# For longer writes Linux takes pages of 2 MB. Those that a virtual machine has given back to its
# host, as it does with free ones, take many times as long.
WRITE_BYTES = 1 << 20


class WeightsError(InputError):
    """Weights that cannot be linked or copied as asked."""


@dataclass(frozen=True)
class Placed:
    """The place of one weight's bytes. `file` is relative to the engine, absolute if linked."""

    file: str
    offset: int
    nbytes: int


def location(placed: Placed) -> str:
    """Return a weight's file as ONNX names it: below the engine, or below the root if linked."""
    return placed.file.removeprefix(ROOT)


@dataclass(frozen=True)
class Entry:
    """One tensor to write: its header line and its bytes as they come."""

    name: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    nbytes: int
    blocks: Callable[[], Iterator[memoryview]]


@dataclass(frozen=True)
class Placement:
    """All weights of an engine, and the hashes of the files written for them.

    placed: by parameter, where it is stored as the graph takes it; of linked parameters in another
        layout the stored tensors, by the checkpoint's names; of quantized weights their parts
        (Part.of).
    hashes: relative path -> sha256; linked_hashes: of linked files, by their paths, where they
        were read in full.
    finite: how linked weights were checked; copied ones are read in full.
    packed: the quantized weights, by the same names.
    within: of parameters that are stored together, the name of the whole and what they are of it.
    """

    mode: Mode
    placed: Mapping[str, Placed]
    hashes: Mapping[str, str]  # relative path -> sha256
    finite: FiniteReport | None  # how linked weights were looked at; copied ones are read in full
    packed: Mapping[str, PackedWeight] = field(default_factory=dict)
    linked_hashes: Mapping[str, str] = field(default_factory=dict)
    within: Mapping[str, tuple[str, tuple[slice, ...]]] = field(default_factory=dict)


def check_copies(binding: Binding, checkpoint: Checkpoint) -> None:
    """Refuse a tensor that is stored again under a tie with other values, and a bias beside a layer
    without one that is not all zeros; raises WeightsError or WeightError."""
    for name in binding.zeros:
        for block in checkpoint.blocks(name):
            require_zeros(name, block)
    for copy, original in binding.copies:
        pairs = zip(checkpoint.blocks(copy), checkpoint.blocks(original), strict=False)
        same = checkpoint.tensors[copy].shape == checkpoint.tensors[original].shape
        if not same or not all(alike(a, b) for a, b in pairs):
            file = checkpoint.tensors[copy].file
            raise WeightsError(f"{file}: {not_a_copy(copy, original)}")


def choose_mode(
    binding: Binding,
    checkpoint: Checkpoint,
    format: DType,
    asked: Mode | None,
    links_codes: bool,
    computed: bool = True,
) -> Mode:
    """Return "link" if a graph can point at the stored bytes of all weights, else "copy".

    asked: what the user wants instead of the default; raises WeightsError where "link" is
        impossible. By default, quantized weights are copied.
    links_codes: whether a graph may point at MXFP4 weights too: ONNX Runtime's CPU has no kernel.
    computed: whether a graph may make a weight of several tensors, or of another layout.
    """
    # Quantized ones first: of all reasons it is the one that no --dtype changes.
    packed = [name for name, source in binding.sources.items() if _packed(source)]
    for name in (*packed, *binding.sources):
        source = binding.sources[name]
        found = _not_linkable(name, source, binding, checkpoint, format, links_codes)
        if found is None and not computed and not (isinstance(source, View) and source.whole):
            stored = checkpoint.tensors[next(iter(tensors_of(source)))]
            found = (
                stored,
                "is not laid out as the graph needs it, which would be done in every call",
            )
        if found is None:
            continue
        if asked == "link":
            stored, why = found
            raise WeightsError(
                f"{stored.file}: tensor {stored.name} {why}, so weights in {format.name} cannot be"
                " linked to it; use --weights copy"
            )
        return "copy"
    return asked or ("copy" if packed else "link")


def _packed(source: Source) -> list[Packed]:
    """Return the quantized leaves of a source."""
    return [leaf for leaf in leaves(source) if isinstance(leaf, Packed)]


def _as_in_onnx(leaf: Packed) -> bool:
    """Whether a graph can point at the bytes of a quantized weight: those of MXFP4, a type of
    ONNX too. A recipe's weights are in no file of the checkpoint."""
    layout = leaf.layout
    stored = layout.scheme is not None and layout.scheme.name == "mxfp4"
    return stored and leaf.values.runs is None and not isinstance(layout, Blocks)


DECODED = "needs decoding"


def _not_linkable(
    name: str,
    source: Source,
    binding: Binding,
    checkpoint: Checkpoint,
    format: DType,
    links_codes: bool,
) -> tuple[StoredTensor, str] | None:
    """Return a tensor of a source that no graph can point at, and why; None if there is none."""
    for leaf in _packed(source):
        stored, name = checkpoint.tensors[leaf.layout.tensors[0]], leaf.layout.format.name
        if not _as_in_onnx(leaf):
            return stored, f"is quantized ({name})"
        if not links_codes:
            return stored, f"is {name.upper()}, which ONNX Runtime's CPU has no kernel for"
        for tensor in leaf.layout.tensors:
            if not checkpoint.tensors[tensor].linkable:
                return checkpoint.tensors[tensor], DECODED
    if _packed(source):
        return None
    for tensor in tensors_of(source):
        stored = checkpoint.tensors[tensor]
        if not stored.linkable:
            return stored, DECODED
        if stored.dtype != binding.dtype(name, stored.dtype, format.torch):
            return stored, f"is stored as {_name(stored)}"
    return None


def place(
    binding: Binding,
    shapes: Mapping[str, tuple[int, ...]],
    checkpoint: Checkpoint,
    format: DType,
    mode: Mode,
    directory: Path,
    *,
    form: WeightForm = "standard",
    full_check: bool | None = None,
    advance: Progress | None = None,
) -> Placement:
    """Link or stream every parameter.

    binding, shapes, checkpoint: the sources and shapes of parameters, and what is read.
    format: the dtype of parameters in the graph; form: of quantized ones.
    mode, directory: "link", or "copy" into this engine directory.
    full_check: as in `export`; advance: called with numbers of bytes.

    Raises CheckpointError on NaN, Inf or a lossy overflow.
    """
    if mode == "link":
        report = check_finite(_typed(binding, checkpoint), binding.tensors(), full_check, advance)
        return _linked(binding, checkpoint, format, report)
    entries, packed = [], {}
    joint = together(binding.sources, checkpoint, format.torch) if form == "gpu_kernels" else []
    within = {part: (one.name, index) for one in joint for part, index in one.parts.items()}
    found = {
        n: (source, shapes[n], packed_weight(checkpoint, source, shapes[n], format.torch, form))
        for n, source in binding.sources.items()
        if n not in within
    }
    found |= {one.name: (one.source, one.shape, one.stored) for one in joint}
    for name, (source, shape, weight) in found.items():
        if weight is not None:
            packed[name] = weight
            entries += _parts(name, weight, checkpoint)
            continue
        stored = checkpoint.tensors[tensors_of(source)[0]]
        kept = of_torch(binding.dtype(name, stored.dtype, format.torch))
        size = kept.bytes * math.prod(shape)
        blocks = _converted(checkpoint, source, kept)
        assert kept.safetensors is not None
        entries.append(Entry(name, kept.safetensors, shape, size, blocks))
    entries = ordered(entries)
    if packed:
        entries = aligned(entries)
    placed, hashes = write(entries, directory, advance)
    return Placement(mode, placed, hashes, None, packed, within=within)


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """Return matrices, parts of quantized ones by their kind, and vectors.

    Those that are multiplied with one input then lie side by side.
    """
    kinds: dict[str, int] = {part: number for number, part in enumerate(Part)}

    def place(entry: Entry) -> tuple[bool, int]:
        kind = kinds.get(entry.name.rpartition(".")[2], -1)
        return kind < 0 and len(entry.shape) < 2, kind

    return sorted(entries, key=place)


def aligned(entries: Iterable[Entry]) -> list[Entry]:
    """Return numbers of many bytes first, of 1 last: all then begin at a multiple of their size."""
    return sorted(entries, key=lambda entry: -OF_SAFETENSORS[entry.dtype].bytes)


def _linked(
    binding: Binding, checkpoint: Checkpoint, format: DType, report: FiniteReport
) -> Placement:
    """Link whole parameters where possible, else the stored tensors of their sources."""
    placed: dict[str, Placed] = {}
    packed: dict[str, PackedWeight] = {}

    def at(tensor: str) -> Placed:
        stored = checkpoint.tensors[tensor]
        assert stored.linkable
        return Placed(str(stored.file), stored.offset, stored.nbytes)

    for name, source in binding.sources.items():
        for leaf in leaves(source):
            if isinstance(leaf, View):
                placed[name if leaf is source and leaf.whole else leaf.tensor] = at(leaf.tensor)
                continue
            weight, layout = leaf.values.tensor, leaf.layout
            shape = layout.shape({n: checkpoint.tensors[n].shape for n in layout.tensors})
            whole = Packed(View(weight), layout)
            found = packed_weight(checkpoint, whole, shape, format.torch, "standard")
            assert found is not None, f"{weight}: linked, but not in a form of ONNX"
            packed[weight] = found
            for part, tensor in zip(found.parts, layout.tensors, strict=True):
                placed[part.of(weight)] = at(tensor)
    return Placement("link", placed, {}, report, packed)


def _parts(name: str, weight: PackedWeight, checkpoint: Checkpoint) -> list[Entry]:
    def stream(part: Part) -> Callable[[], Iterator[memoryview]]:
        return lambda: map(as_bytes, weight.blocks(checkpoint, part))

    return [
        Entry(part.of(name), *given.stored, given.nbytes, stream(part))
        for part, given in weight.parts.items()
    ]


def _typed(binding: Binding, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the scales of MXFP4 typed as E8M0, which has a NaN."""
    packed = (leaf for source in binding.sources.values() for leaf in _packed(source))
    scales = [leaf.layout.tensors[1] for leaf in packed]
    typed = {n: replace(checkpoint.tensors[n], dtype=torch.float8_e8m0fnu) for n in scales}
    return replace(checkpoint, tensors={**checkpoint.tensors, **typed})


def write(
    entries: Iterable[Entry],
    directory: Path,
    advance: Progress | None = None,
    prefix: str = STORED,
) -> tuple[dict[str, Placed], dict[str, str]]:
    """Stream tensors into safetensors files under `directory`/weights, which are named by a prefix;
    memory holds one block.

    Returns where each lies and the sha256 of each file.
    """
    placed: dict[str, Placed] = {}
    hashes: dict[str, str] = {}
    (directory / WEIGHTS).mkdir(exist_ok=True)
    for number, shard in enumerate(_shards(entries), 1):
        file = f"{WEIGHTS}/{prefix}-{number:05}.safetensors"
        header, begins = _header(shard)
        digest = hashlib.sha256(header)
        with open(directory / file, "wb", buffering=0) as out:
            write_all(out.fileno(), memoryview(header))
            for entry, begin in zip(shard, begins, strict=True):
                written = 0
                for block in entry.blocks():
                    digest.update(block)
                    write_all(out.fileno(), block)
                    written += len(block)
                    if advance is not None:
                        advance(len(block))
                assert written == entry.nbytes, f"{entry.name}: {written} of {entry.nbytes} bytes"
                placed[entry.name] = Placed(file, len(header) + begin, entry.nbytes)
        hashes[file] = digest.hexdigest()
    return placed, hashes


def _converted(
    checkpoint: Checkpoint, source: Source, format: DType
) -> Callable[[], Iterator[memoryview]]:
    def blocks() -> Iterator[memoryview]:
        for block in values(checkpoint, source):
            out = block.to(format.torch).contiguous()
            if out.dtype.itemsize < block.dtype.itemsize and not out.isfinite().all():
                stored = checkpoint.tensors[tensors_of(source)[0]]
                raise CheckpointError(
                    f"{stored.file}: tensor {stored.name} has values above what {format.name} can"
                    " hold; use --dtype float32 or bfloat16"
                )
            yield as_bytes(out)

    return blocks


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _shards(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    size = 0
    for entry in entries:
        if shard and size + entry.nbytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += entry.nbytes
    yield shard


def _header(entries: list[Entry]) -> tuple[bytes, list[int]]:
    """Return a safetensors header with its length, and where each tensor begins after it."""
    lines: dict[str, object] = {}
    begins, begin = [], 0
    for entry in entries:
        end = begin + entry.nbytes
        lines[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
        begins.append(begin)
        begin = end
    text = json.dumps(lines, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, begins


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of it, by parts of WRITE_BYTES."""
    while data:
        data = data[os.write(descriptor, data[:WRITE_BYTES]) :]


def _name(stored: StoredTensor) -> str:
    known = computed(stored.dtype)
    return str(stored.dtype) if known is None else known.name
