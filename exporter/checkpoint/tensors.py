"""What every kind of checkpoint offers: a config, tensors by Hugging Face name, and texts."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lmcast.exporter.checkpoint.files import open_regular, read_into
from lmcast.graphs.weights.quantized import Layout

# 4 MiB: large enough to stream at disk speed; a block and what it is converted to are small enough
# for the allocator to reuse, where larger ones are fresh pages every time.
BLOCK_BYTES = 4 << 20


class Decoder(Protocol):
    """Stored bytes (uint8, whole rows of axis 0) -> values."""

    @property
    def format(self) -> str:
        """The name of the stored format: 'Q4_1'."""
        ...

    def __call__(self, raw: np.ndarray) -> Tensor: ...


class Assembly(Protocol):
    """Rows of axis 0 that are put together from several stored tensors."""

    @property
    def format(self) -> str:
        """The name of the stored format: 'Q4_1'."""
        ...

    @property
    def files(self) -> frozenset[Path]: ...

    def __call__(self, start: int, stop: int) -> Tensor: ...


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies and what reading it gives. No byte of it has been read."""

    name: str
    dtype: torch.dtype  # of the values that reading gives
    shape: tuple[int, ...]
    file: Path  # resolved; a regular file
    offset: int  # of the first byte, from the start of the file
    nbytes: int  # as stored
    decode: Decoder | None = None  # None: the bytes are the values
    row_multiple: int = 1  # decode and assembly take rows of axis 0 in multiples of this
    assembly: Assembly | None = None  # where the bytes are no one run; then offset says nothing
    coded: "Coded | None" = None  # where what is stored are codes, which a kernel may take

    @property
    def linkable(self) -> bool:
        """Whether a graph may point at the stored bytes themselves."""
        return self.decode is None and self.assembly is None

    @property
    def files(self) -> frozenset[Path]:
        """All files that reading this tensor reads."""
        return frozenset({self.file}) if self.assembly is None else self.assembly.files

    @property
    def format(self) -> str | None:
        """The name of the stored format, None where the bytes are the values."""
        made_by = self.assembly or self.decode
        return None if made_by is None else made_by.format


@dataclass(frozen=True)
class Coded:
    """The same tensor without a number decoded: its bytes, in the rows of the values, and what they
    mean."""

    raw: StoredTensor
    layout: Layout


@dataclass(frozen=True)
class Texts:
    """What a checkpoint says about text; absent parts are None or empty."""

    tokenizer: bytes | None = None  # contents of tokenizer.json
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # by name; mostly "default"
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, ...
    generation: Mapping[str, Any] = field(default_factory=dict)  # generation_config.json
    problem: str | None = None  # why there is no tokenizer although the checkpoint has one
    notes: tuple[str, ...] = ()  # what an export warns of: sources that contradict each other
    # What is said of processors of pictures, videos and sounds, by the name of its file.
    processors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A validated checkpoint: headers only, no tensor loaded."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    texts: Texts

    def blocks(self, name: str, limit: int = BLOCK_BYTES) -> Iterator[Tensor]:
        """Yield runs of rows (axis 0) that concatenate to the tensor; each about `limit` bytes.

        Raises CheckpointError if the file is gone or ends early.
        """
        stored = self.tensors[name]
        if not stored.nbytes:
            yield torch.empty(stored.shape, dtype=stored.dtype)
            return
        rows = stored.shape[0] if stored.shape else 1
        row_bytes = stored.nbytes // rows
        value_bytes = stored.dtype.itemsize * math.prod(stored.shape[1:])
        unit = stored.row_multiple
        step = max(1, limit // max(row_bytes, value_bytes) // unit) * unit
        for start in range(0, rows, step):
            block = read_rows(stored, start, min(start + step, rows))
            yield block if stored.shape else block.reshape(())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows start..stop-1 (axis 0) of a tensor."""
        return read_rows(self.tensors[name], start, stop)

    def read(self, name: str) -> Tensor:
        """Return the whole tensor, in its dtype and in private memory."""
        stored = self.tensors[name]
        whole = torch.empty(stored.shape, dtype=stored.dtype)
        flat, done = whole.reshape(-1), 0
        for block in self.blocks(name):
            flat[done : done + block.numel()] = block.reshape(-1)
            done += block.numel()
        return whole


def read_rows(stored: StoredTensor, start: int, stop: int) -> Tensor:
    """Return rows start..stop-1 (axis 0) of a tensor with axes, in private memory.

    Raises CheckpointError if the file is gone or ends early.
    """
    unit = stored.row_multiple
    if start % unit or stop % unit:  # what lies across their ends is read whole
        first = start - start % unit
        return read_rows(stored, first, -(-stop // unit) * unit)[start - first : stop - first]
    if stored.assembly is not None:
        return stored.assembly(start, stop)
    row_bytes = stored.nbytes // (stored.shape[0] if stored.shape else 1)
    part = np.empty((stop - start) * row_bytes, np.uint8)
    with open_regular(stored.file) as descriptor:
        # Read, not mapped: a map crashes the process when the file is truncated meanwhile.
        read_into(descriptor, part.data, stored.offset + start * row_bytes, stored.file)
    if stored.decode is not None:
        return stored.decode(part)
    return torch.from_numpy(part).view(stored.dtype).reshape(stop - start, *stored.shape[1:])
