"""The header of a GGUF file: metadata and where each tensor lies, with every length bounded.

The `gguf` package's own reader is not used for this: it builds several arrays for every token of a
vocabulary (10 s for Gemma's 262,144), and follows whatever counts and lengths a file claims.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, quants

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import open_regular, read_into

PIECE = 4 << 20  # bytes read at a time
LARGEST_HEADER = 64 << 20  # bytes; Gemma's 262,144 tokens take 6.5 MB
MOST_KEYS = 10_000
MOST_TENSORS = 100_000
MOST_ELEMENTS = 1 << 22  # of all arrays together: the tokens, scores, types and merges
KINDS = {kind.value: kind for kind in GGMLQuantizationType}
VALUES = {kind.value: kind for kind in GGUFValueType}
SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "?",
}


def _decodes(kind: GGMLQuantizationType) -> bool:
    """Tell whether the gguf package decodes a kind of numbers: some it only names."""
    with np.errstate(all="ignore"):
        try:
            quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except (NotImplementedError, KeyError):
            return False
    return True


READABLE = tuple(kind.name for kind in GGMLQuantizationType if _decodes(kind))


@dataclass(frozen=True)
class Entry:
    """One tensor as the file lists it."""

    path: Path
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # in PyTorch's order: the file lists the fastest axis first
    offset: int  # of the first byte, from the start of the file
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Everything a GGUF file says before its tensors' bytes."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Entry]


class _Cursor:
    """Reads a file from its start, never past its end or LARGEST_HEADER."""

    def __init__(self, descriptor: int, path: Path):
        self.descriptor, self.path = descriptor, path
        self.size = os.fstat(descriptor).st_size
        self.data, self.at, self.elements = bytearray(), 0, 0

    def take(self, count: int, what: str) -> bytearray:
        end = self.at + count
        if end > len(self.data):
            self._fill(end, what)
        out, self.at = self.data[self.at : end], end
        return out

    def number(self, code: str, what: str) -> int:
        """Return one integer of struct format `code`."""
        value: int = struct.unpack(code, self.take(struct.calcsize(code), what))[0]
        return value

    def text(self, what: str) -> str:
        try:
            return self.take(self.number("<Q", what), what).decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8; the file is damaged") from None

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def _fill(self, end: int, what: str) -> None:
        if end > self.size:
            raise self.error(
                f"ends inside {what} (needs {end} bytes, has {self.size}); download it again"
            )
        if end > LARGEST_HEADER:
            raise self.error(
                f"{what} lies beyond byte {LARGEST_HEADER}, the largest header accepted"
            )
        start = len(self.data)
        stop = min(self.size, LARGEST_HEADER, max(end, start + PIECE))
        self.data.extend(bytes(stop - start))
        read_into(self.descriptor, memoryview(self.data)[start:], start, self.path)


def read_header(path: Path) -> Header:
    """Return the validated header of a GGUF file, or raise CheckpointError; reads no tensor."""
    with open_regular(path) as descriptor:
        cursor = _Cursor(descriptor, path)
        tensors, keys = _counts(cursor)
        metadata = _metadata(cursor, keys)
        entries = _entries(cursor, tensors, metadata.get("general.alignment", 32))
    return Header(path, metadata, entries)


def _counts(cursor: _Cursor) -> tuple[int, int]:
    magic = bytes(cursor.take(4, "its first bytes"))
    if magic != b"GGUF":
        raise cursor.error(f"starts with {magic!r}, not with b'GGUF'; it is not a GGUF file")
    version = cursor.number("<I", "its version")
    if version and not version & 0xFFFF:
        raise cursor.error("is a big-endian GGUF file; only little-endian ones are accepted")
    if version not in (2, 3):
        raise cursor.error(f"is GGUF version {version}; accepted: 2 and 3; convert the model again")
    tensors, keys = (cursor.number("<Q", "its counts") for _ in range(2))
    for count, most, what in (
        (tensors, MOST_TENSORS, "tensors"),
        (keys, MOST_KEYS, "metadata keys"),
    ):
        if count > most:
            raise cursor.error(f"claims {count} {what}; at most {most} are accepted")
    return tensors, keys


def _metadata(cursor: _Cursor, keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(keys):
        key = cursor.text(f"metadata key {index}")
        if key in metadata:
            raise cursor.error(f"metadata key {key!r} is there twice")
        metadata[key] = _value(cursor, key)
    return metadata


def _kind(cursor: _Cursor, key: str) -> GGUFValueType:
    number = cursor.number("<I", key)
    if number not in VALUES:
        raise cursor.error(f"{key} is of unknown value type {number}; the file is damaged")
    return VALUES[number]


def _value(cursor: _Cursor, key: str) -> Any:
    kind = _kind(cursor, key)
    if kind == GGUFValueType.STRING:
        return cursor.text(key)
    if kind != GGUFValueType.ARRAY:
        value = np.frombuffer(cursor.take(np.dtype(SCALARS[kind]).itemsize, key), SCALARS[kind])[0]
        # The decimal that was meant: 1e-05, not 9.999999747378752e-06.
        return float(str(value)) if kind == GGUFValueType.FLOAT32 else value.item()
    kind, count = _kind(cursor, key), cursor.number("<Q", key)
    cursor.elements += count
    if cursor.elements > MOST_ELEMENTS:
        raise cursor.error(f"{key} claims {count} elements; {MOST_ELEMENTS} in all are accepted")
    if kind == GGUFValueType.STRING:
        return [cursor.text(key) for _ in range(count)]
    if kind == GGUFValueType.ARRAY:
        raise cursor.error(f"{key} is an array of arrays; only flat arrays are accepted")
    dtype = np.dtype(SCALARS[kind])
    return np.frombuffer(cursor.take(count * dtype.itemsize, key), dtype).tolist()


def _entries(cursor: _Cursor, tensors: int, alignment: Any) -> dict[str, Entry]:
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise cursor.error(f"general.alignment is {alignment!r}; only a power of two is accepted")
    found: dict[str, Entry] = {}
    for index in range(tensors):
        entry = _entry(cursor, cursor.text(f"the name of tensor {index}"), alignment)
        if entry.name in found:
            raise cursor.error(f"tensor {entry.name!r} is there twice")
        found[entry.name] = entry
    start = -(-cursor.at // alignment) * alignment
    placed = {name: replace(entry, offset=start + entry.offset) for name, entry in found.items()}
    end, before = start, "the header"
    for entry in sorted(placed.values(), key=lambda e: e.offset):
        if entry.offset < end:
            raise cursor.error(f"tensor {entry.name!r} overlaps {before}")
        end, before = entry.offset + entry.nbytes, repr(entry.name)
        if end > cursor.size:
            raise cursor.error(
                f"tensor {entry.name!r} ends at byte {end}, beyond the file's {cursor.size}; it was"
                " truncated: download it again"
            )
    return placed


def _entry(cursor: _Cursor, name: str, alignment: int) -> Entry:
    """Return one tensor with its offset still relative to the first tensor's byte."""
    what = f"tensor {name!r}"
    rank = cursor.number("<I", what)
    if not 1 <= rank <= 4:
        raise cursor.error(f"{what} has {rank} axes; accepted: 1 to 4")
    shape = tuple(cursor.number("<Q", what) for _ in range(rank))[::-1]
    number, offset = cursor.number("<I", what), cursor.number("<Q", what)
    label = KINDS[number].name if number in KINDS else f"number {number}"
    if label not in READABLE:
        raise cursor.error(f"{what} is of type {label}; accepted: {', '.join(READABLE)}")
    block, block_bytes = GGML_QUANT_SIZES[KINDS[number]]
    if 0 in shape or shape[-1] % block:
        raise cursor.error(
            f"{what} has shape {list(shape)}; rows of {label} come in blocks of {block}"
        )
    if block > 1 and rank == 1:
        raise cursor.error(f"{what} has one axis and type {label}; accepted there: F32, F16, BF16")
    if offset % alignment:
        raise cursor.error(f"{what} is at offset {offset}, not a multiple of {alignment}")
    nbytes = math.prod(shape) // block * block_bytes
    return Entry(cursor.path, name, KINDS[number], shape, offset, nbytes)
