"""The header of a safetensors file: 8 bytes of length, then JSON; checked in full, no tensor read.

As strict as the safetensors library (0.8), and stricter in two points: it keeps the last of two
tensors with one name and ignores fields that the format does not define; both are refused here.
"""

import os
import struct
from pathlib import Path
from typing import Any

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import GIT_LFS, open_regular, read_into
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensors import StoredTensor
from lmcast.exporter.dtypes import OF_SAFETENSORS

LONGEST_HEADER = 100_000_000  # bytes; the library's own limit
MOST_AXES = 64  # numpy's limit
LARGEST = 2**63 - 1  # elements or bytes; torch counts in int64
FIELDS = {"dtype", "shape", "data_offsets"}


def read_header(file: Path, shown: Path | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name; errors name `shown`.

    Raises CheckpointError if the file is not whole and consistent, at a cost bounded by the header.
    """
    shown = shown or file
    with open_regular(file, shown) as descriptor:
        size = os.fstat(descriptor).st_size
        if size < 8:
            raise CheckpointError(f"{shown}: is {size} bytes; a safetensors file has 8 or more")
        start = bytearray(min(size, len(GIT_LFS)))
        read_into(descriptor, memoryview(start), 0, shown)
        if start == GIT_LFS:
            raise CheckpointError(
                f"{shown}: is a Git LFS pointer, not the weights; run `git lfs pull`"
            )
        (length,) = struct.unpack_from("<Q", start)
        if length > LONGEST_HEADER:
            raise CheckpointError(
                f"{shown}: states a header of {length} bytes; at most {LONGEST_HEADER} are "
                "accepted (is this a safetensors file?)"
            )
        if 8 + length > size:
            raise CheckpointError(
                f"{shown}: is truncated in its header: it has {size} bytes, the header alone needs "
                f"{8 + length}; download it again"
            )
        raw = bytearray(length)
        read_into(descriptor, memoryview(raw), 8, shown)
    return parse_header(bytes(raw), size - 8 - length, file, shown)


def parse_header(raw: bytes, data_bytes: int, file: Path, shown: Path) -> dict[str, StoredTensor]:
    """Return the tensors that a header describes in a file with `data_bytes` bytes behind it."""
    if not raw.startswith(b"{"):
        raise CheckpointError(
            f"{shown}: its header begins with {raw[:1]!r}; the format demands b'{{', without spaces"
            " before it (is this a safetensors file?)"
        )
    header = parse_object(raw, shown)
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    ):
        raise CheckpointError(f"{shown}: __metadata__ must map strings to strings")
    base = 8 + len(raw)
    tensors = {name: _tensor(name, entry, base, file, shown) for name, entry in header.items()}
    _require_cover(tensors, base, data_bytes, shown)
    return tensors


def _tensor(name: str, entry: Any, base: int, file: Path, shown: Path) -> StoredTensor:
    where = f"{shown}: tensor {name!r}"
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        found = sorted(entry) if isinstance(entry, dict) else entry
        raise CheckpointError(f"{where}: has {found!r}; exactly {sorted(FIELDS)} are needed")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in OF_SAFETENSORS:
        raise CheckpointError(
            f"{where}: dtype is {code!r}; accepted are {', '.join(OF_SAFETENSORS)}"
        )
    if not _counts(shape) or len(shape) > MOST_AXES:
        raise CheckpointError(
            f"{where}: shape is {shape!r}; up to {MOST_AXES} whole numbers from 0 are accepted"
        )
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where}: data_offsets is {offsets!r}; two numbers [begin, end] are needed"
        )
    dtype = OF_SAFETENSORS[code].torch
    extent = dtype.itemsize  # of the axes that are not empty: torch multiplies those too
    for size in shape:
        extent *= max(1, size)
        if extent > LARGEST:
            raise CheckpointError(f"{where}: shape is {shape!r}, more than 2**63 bytes")
    needed = extent if all(shape) else 0
    begin, end = offsets
    if end - begin != needed:
        raise CheckpointError(
            f"{where}: {code} of shape {shape} takes {needed} bytes, its data_offsets {offsets} "
            f"hold {end - begin}"
        )
    return StoredTensor(name, dtype, tuple(shape), file, base + begin, needed)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= LARGEST for v in value)


def _require_cover(
    tensors: dict[str, StoredTensor], base: int, data_bytes: int, shown: Path
) -> None:
    """Refuse overlaps, holes, missing and surplus bytes: the format demands none of each."""
    ordered = sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes))
    needed = max((t.offset + t.nbytes - base for t in ordered), default=0)
    if needed > data_bytes:
        raise CheckpointError(
            f"{shown}: is truncated: its header promises {needed} bytes of tensors, "
            f"{needed - data_bytes} of them are missing; download it again"
        )
    end, before = base, "the header"
    for tensor in ordered:
        if tensor.offset < end:
            raise CheckpointError(f"{shown}: tensor {tensor.name!r} overlaps {before}")
        if tensor.offset > end:
            raise CheckpointError(
                f"{shown}: {tensor.offset - end} bytes before tensor {tensor.name!r} belong to no "
                "tensor; the format allows no holes"
            )
        end, before = end + tensor.nbytes, f"tensor {tensor.name!r}"
    if needed < data_bytes:
        raise CheckpointError(
            f"{shown}: has {data_bytes - needed} bytes after its last tensor; none are allowed"
        )
