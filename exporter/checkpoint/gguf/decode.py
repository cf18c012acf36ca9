"""The bytes of tensors in a GGUF file -> values in Hugging Face's layouts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from lmcast.exporter.checkpoint.gguf.header import Entry
from lmcast.exporter.checkpoint.tensors import Coded, StoredTensor, read_rows
from lmcast.exporter.dtypes import COMPUTED
from lmcast.graphs.layouts.ggml import KINDS, Blocks

PLAIN = {dtype.safetensors: dtype.torch for dtype in COMPUTED.values()}  # ggml has these names too


@dataclass(frozen=True)
class Step:
    """What undoes one thing that the converter to GGUF did, on rows of axis 0.

    change: values [n, ...] -> values of as many rows in all. rows: how many it takes at a time.
    computes: new numbers, which plain 16 bits would round. moves: whole rows, and that is all.
    """

    change: Callable[[Tensor], Tensor]
    rows: int = 1
    computes: bool = False
    moves: bool = False


MINUS_ONE = Step(lambda values: values - 1, computes=True)  # of norms that multiply by 1 + weight
LOG_NEGATIVE = Step(lambda values: torch.log(-values), computes=True)  # of -exp(A_log)
TRANSPOSED = Step(lambda values: values.mT)  # each matrix of a stack


def halves(head_dim: int) -> Step:
    """Heads whose rows are pairs that rotate, back to halves: row 2i + j of a head is row
    j * head_dim / 2 + i of Hugging Face's."""

    def change(values: Tensor) -> Tensor:
        pairs = values.reshape(-1, head_dim // 2, 2, *values.shape[1:])
        return pairs.transpose(1, 2).reshape(values.shape)

    return Step(change, rows=head_dim, moves=True)


@dataclass(frozen=True)
class Decode:
    """Stored rows of axis 0 -> values."""

    kind: GGMLQuantizationType
    row: tuple[int, ...]  # shape of one row as stored
    steps: tuple[Step, ...] = ()

    @property
    def format(self) -> str:
        return self.kind.name

    def __call__(self, raw: np.ndarray) -> Tensor:
        values = self._values(raw).reshape(-1, *self.row)
        for step in self.steps:
            values = step.change(values)
        return values

    def _values(self, raw: np.ndarray) -> Tensor:
        if self.kind.name in PLAIN:
            values = torch.from_numpy(raw).view(PLAIN[self.kind.name])
            return values.float() if any(step.computes for step in self.steps) else values
        with np.errstate(all="ignore"):  # scales that are not finite are found by whoever reads
            shape = quants.quant_shape_to_byte_shape((-1, self.row[-1]), self.kind)
            return torch.from_numpy(quants.dequantize(raw.reshape(shape), self.kind))


@dataclass(frozen=True)
class Moved:
    """Stored rows of axis 0 -> their bytes, in another order."""

    kind: GGMLQuantizationType
    size: int  # bytes of a row
    steps: tuple[Step, ...]

    @property
    def format(self) -> str:
        return self.kind.name

    def __call__(self, raw: np.ndarray) -> Tensor:
        rows = torch.from_numpy(raw).reshape(-1, self.size)
        for step in self.steps:
            rows = step.change(rows)
        return rows.contiguous()


def viewed(entry: Entry, *shape: int) -> Entry:
    """Return a tensor of plain numbers with other axes, of which one may be -1."""
    known = math.prod(axis for axis in shape if axis > 0)
    whole = tuple(math.prod(entry.shape) // known if axis < 0 else axis for axis in shape)
    if math.prod(whole) != math.prod(entry.shape) or entry.kind.name not in PLAIN:
        raise ValueError(
            f"tensor {entry.name!r} is {entry.kind.name} {list(entry.shape)}; accepted: plain"
            f" numbers that make {list(shape)}"
        )
    return replace(entry, shape=whole)


def stored(
    name: str, entry: Entry, steps: Sequence[Step] = (), rows: range | None = None
) -> StoredTensor:
    """Return a tensor of the file, or some of its rows, under a name of Hugging Face's.

    Raises ValueError where a step does not fit the shape.
    """
    rows = rows or range(entry.shape[0])
    shape = torch.empty(len(rows), *entry.shape[1:], device="meta")
    for step in steps:
        if step.rows < 1 or len(rows) % step.rows:
            raise ValueError(
                f"tensor {entry.name!r} has {len(rows)} rows, not a multiple of the head's"
                f" {step.rows}"
            )
        try:
            shape = step.change(shape)
        except RuntimeError:
            raise ValueError(
                f"tensor {entry.name!r} has shape {list(entry.shape)}, which does not fit the"
                " sizes that the metadata say"
            ) from None
    plain = PLAIN.get(entry.kind.name)
    computes = plain is None or any(step.computes for step in steps)
    decode = Decode(entry.kind, entry.shape[1:], tuple(steps)) if plain is None or steps else None
    row_bytes = entry.nbytes // entry.shape[0]
    found = StoredTensor(
        name=name,
        dtype=torch.float32 if computes or plain is None else plain,
        shape=tuple(shape.shape),
        file=entry.path,
        offset=entry.offset + rows.start * row_bytes,
        nbytes=len(rows) * row_bytes,
        decode=decode,
        row_multiple=math.lcm(*(step.rows for step in steps)),
    )
    return replace(found, coded=_coded(found, entry.kind, row_bytes, tuple(steps)))


def _coded(
    tensor: StoredTensor, kind: GGMLQuantizationType, row_bytes: int, steps: tuple[Step, ...]
) -> Coded | None:
    """Return a matrix as its codes, None where those are not known or not in whole rows."""
    known = KINDS.get(kind.name)
    if known is None or len(tensor.shape) != 2 or not all(step.moves for step in steps):
        return None
    name = f"{tensor.name}.{kind.name}"
    decode = Moved(kind, row_bytes, steps) if steps else None
    shape = tensor.shape[0], row_bytes
    raw = replace(tensor, name=name, dtype=torch.uint8, shape=shape, decode=decode)
    return Coded(raw, Blocks(name, known))


def as_bytes(entry: Entry) -> StoredTensor:
    """Return the stored bytes of a tensor, the last axis of which is a row of blocks."""
    rows = math.prod(entry.shape[:-1])
    shape = (*entry.shape[:-1], entry.nbytes // rows)
    return StoredTensor(entry.name, torch.uint8, shape, entry.path, entry.offset, entry.nbytes)


def matrices(name: str, entry: Entry, steps: Sequence[Step] = ()) -> list[StoredTensor]:
    """Return the members of a stack as tensors of their own; '{e}' in `name` counts them.

    Raises ValueError where it is no stack.
    """
    if len(entry.shape) < 2:
        raise ValueError(f"tensor {entry.name!r} has one axis; accepted: a stack of matrices")
    size = entry.nbytes // entry.shape[0]
    ones = (
        replace(entry, shape=entry.shape[1:], offset=entry.offset + e * size, nbytes=size)
        for e in range(entry.shape[0])
    )
    return [stored(name.replace("{e}", str(e)), one, steps) for e, one in enumerate(ones)]


@dataclass(frozen=True)
class Several:
    """What is put together from several tensors."""

    parts: tuple[StoredTensor, ...]

    @property
    def format(self) -> str:
        return _format(self.parts)

    @property
    def files(self) -> frozenset[Path]:
        return frozenset[Path]().union(*(part.files for part in self.parts))


@dataclass(frozen=True)
class Chained(Several):
    """Tensors one after the other along axis 0."""

    dtype: torch.dtype

    def __call__(self, start: int, stop: int) -> Tensor:
        found, at = [], 0
        for part in self.parts:
            first, last = max(start - at, 0), min(stop - at, part.shape[0])
            if first < last:
                found.append(read_rows(part, first, last))
            at += part.shape[0]
        return torch.cat([rows.to(self.dtype) for rows in found])


@dataclass(frozen=True)
class ByUnit(Several):
    """Tensors that are put together unit by unit (heads, experts).

    Each part's axis 0 divides into `units` equal runs; `join` takes the same units of all parts,
    each [n, rows of a unit, ...], and returns [n, `rows`, ...].
    """

    units: int
    rows: int
    join: Callable[..., Tensor]

    def __call__(self, start: int, stop: int) -> Tensor:
        first, last = start // self.rows, stop // self.rows
        parts = []
        for part in self.parts:
            size = part.shape[0] // self.units
            rows = read_rows(part, first * size, last * size)
            parts.append(rows.reshape(last - first, size, *part.shape[1:]))
        return self.join(*parts).flatten(0, 1).contiguous()


def chained(name: str, *parts: StoredTensor) -> StoredTensor:
    """Return tensors of equal rows, one after the other."""
    rows = sum(part.shape[0] for part in parts)
    assembly = Chained(parts, _dtype(parts))
    return _assembled(name, assembly, (rows, *parts[0].shape[1:]), 1)


def by_unit(
    name: str, units: int, join: Callable[..., Tensor], *parts: StoredTensor
) -> StoredTensor:
    """Return what `join` makes of the units of several tensors, as ByUnit says.

    Raises ValueError where a tensor has no such units, or they do not fit together.
    """
    shapes = []
    for part in parts:
        if units < 1 or part.shape[0] % units:
            raise ValueError(
                f"tensor {part.name!r} has {part.shape[0]} rows, not {units} runs of equal length"
            )
        size = part.shape[0] // units
        shapes.append(torch.empty(1, size, *part.shape[1:], dtype=part.dtype, device="meta"))
    try:
        one = tuple(join(*shapes).shape[1:])
    except RuntimeError as error:
        raise ValueError(f"the parts of tensor {name!r} do not fit together: {error}") from None
    assembly = ByUnit(parts, units, one[0], join)
    return _assembled(name, assembly, (units * one[0], *one[1:]), one[0])


def _assembled(
    name: str, assembly: Chained | ByUnit, shape: tuple[int, ...], multiple: int
) -> StoredTensor:
    parts = assembly.parts
    return StoredTensor(
        name=name,
        dtype=_dtype(parts),
        shape=shape,
        file=parts[0].file,
        offset=parts[0].offset,
        # Of bytes that are taken apart each goes into one tensor.
        nbytes=math.prod(shape)
        if _dtype(parts) == torch.uint8
        else sum(part.nbytes for part in parts),
        row_multiple=multiple,
        assembly=assembly,
    )


def _dtype(parts: tuple[StoredTensor, ...]) -> torch.dtype:
    kinds = {part.dtype for part in parts}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def _format(parts: tuple[StoredTensor, ...]) -> str:
    """The name of the stored format: of bytes, which are taken as they are, of what they hold."""
    names = dict.fromkeys(part.format or str(part.dtype).removeprefix("torch.") for part in parts)
    return "+".join(names)
