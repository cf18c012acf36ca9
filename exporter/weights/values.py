"""The values of a parameter as a stream of blocks; memory holds a block, or at most one expert.
And rows of a matrix, of which memory holds no others."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.finite import check_block
from lmcast.exporter.checkpoint.tensors import BLOCK_BYTES, Checkpoint
from lmcast.graphs.weights.quantized import Layout
from lmcast.graphs.weights.sources import (
    Joined,
    Packed,
    Source,
    Stack,
    View,
    in_runs,
    pieces,
    shape_of,
)


def values(checkpoint: Checkpoint, source: Source) -> Iterator[Tensor]:
    """Yield the values of a source in order (C), in the dtypes they are stored in, all finite.

    Quantized numbers become fp32. Raises CheckpointError on NaN and Inf.
    """
    if isinstance(source, View) and source.whole:
        yield from _whole(checkpoint, source)
    elif isinstance(source, View | Packed):
        yield from _part(checkpoint, source)
    elif isinstance(source, Stack) or source.axis == 0:
        for part in source.parts:
            yield from values(checkpoint, part)
    else:
        yield from _side_by_side(checkpoint, source)


def rows_of(checkpoint: Checkpoint, source: Source, begin: int, end: int) -> Tensor:
    """Return rows begin..end-1 of the values of a source, in the dtype and as `values` yields them.

    Only these are read, but of what is stored in columns, or in runs, all. Raises CheckpointError
    as `values` does.
    """
    if isinstance(source, Joined) and source.axis != 0:
        parts = [rows_of(checkpoint, part, begin, end) for part in source.parts]
        return torch.cat(parts, source.axis)
    if isinstance(source, Joined):
        each = _length(checkpoint, source.parts[0])
        spans = [(max(begin - n * each, 0), min(end - n * each, each), part)
                 for n, part in enumerate(source.parts)]  # fmt: skip
        return torch.cat([rows_of(checkpoint, part, a, b) for a, b, part in spans if a < b])
    if isinstance(source, Stack):
        blocks = [torch.cat(list(values(checkpoint, part))) for part in source.parts[begin:end]]
        return torch.stack(blocks)
    view = _view(source)
    if view.transposed or view.runs is not None:
        return torch.cat(list(values(checkpoint, source)))[begin:end]
    first, *inner = view.index or (slice(None),)
    chosen = range(*first.indices(_rows(checkpoint, source).shape[0]))[begin:end]
    part = replace(view, index=(slice(chosen.start, chosen.stop, chosen.step), *inner))
    narrowed = part if isinstance(source, View) else replace(source, values=part)
    return torch.cat(list(_part(checkpoint, narrowed)))


def _length(checkpoint: Checkpoint, source: Source) -> int:
    shapes = {name: stored.shape for name, stored in checkpoint.tensors.items()}
    return shape_of(source, shapes)[0]


def _whole(checkpoint: Checkpoint, source: View) -> Iterator[Tensor]:
    stored, done = checkpoint.tensors[source.tensor], 0
    for block in checkpoint.blocks(source.tensor):
        check_block(stored, block, done)
        done += block.numel()
        yield block


@dataclass(frozen=True)
class _Rows:
    """A tensor that is read by rows: plain numbers, all finite, `nbytes` in all."""

    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[int, int], Tensor]  # begin, end


def _part(checkpoint: Checkpoint, source: View | Packed) -> Iterator[Tensor]:
    view, rows = _view(source), _rows(checkpoint, source)
    shape = rows.shape if view.runs is None else in_runs(view.tensor, rows.shape, view.runs)
    if len(shape) == 2 and view.transposed:
        step = shape[0]  # columns become rows: all of them are needed at once
    else:
        step = max(1, BLOCK_BYTES // (rows.nbytes // shape[0]))
    for begin, end, take in pieces(view, rows.shape, step):
        block = take(rows.read(begin, end))
        yield (block.mT if view.transposed else block).contiguous()


def _view(source: View | Packed) -> View:
    return source if isinstance(source, View) else source.values


def _rows(checkpoint: Checkpoint, source: View | Packed) -> _Rows:
    """Return how all the rows that a view looks at are read."""
    if isinstance(source, Packed):
        return _unpacked(checkpoint, source.layout)
    stored = checkpoint.tensors[source.tensor]

    def read(begin: int, end: int) -> Tensor:
        rows = checkpoint.rows(stored.name, begin, end)
        check_block(stored, rows, begin * rows[0].numel())
        return rows

    return _Rows(stored.shape, math.prod(stored.shape) * stored.dtype.itemsize, read)


def _unpacked(checkpoint: Checkpoint, layout: Layout) -> _Rows:
    codes = checkpoint.tensors[layout.tensors[0]]
    shape = layout.shape({name: checkpoint.tensors[name].shape for name in layout.tensors})
    whole: dict[str, Tensor] = {}

    def read(name: str, begin: int, end: int | None) -> Tensor:
        stored = checkpoint.tensors[name]
        if end is not None:
            rows = checkpoint.rows(name, begin, end)
            check_block(stored, rows, begin * math.prod(stored.shape[1:]))
            return rows
        if name not in whole:  # what every run of rows wants again
            whole[name] = checkpoint.read(name)
            check_block(stored, whole[name])
        return whole[name][begin:] if begin else whole[name]

    def values(begin: int, end: int) -> Tensor:
        rows = layout.values(read, begin, end)
        check_block(codes, rows, begin * rows[0].numel())  # a scale of E8M0 or a product
        return rows

    return _Rows(shape, math.prod(shape) * 4, values)


def _side_by_side(checkpoint: Checkpoint, source: Joined) -> Iterator[Tensor]:
    """Yield parts joined along an inner axis, in runs of rows of all of them."""
    views, parts = [], {}
    for part in source.parts:
        assert isinstance(part, View | Packed)
        view = _view(part)
        assert not view.transposed and view.runs is None
        assert not view.index or view.index[0] == slice(None)
        views.append(view)
        parts[view.tensor] = part
    read = {name: _rows(checkpoint, part) for name, part in parts.items()}
    rows = read[views[0].tensor].shape[0]
    size = sum(found.nbytes for found in read.values())
    step = max(1, BLOCK_BYTES // (size // rows))
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        blocks = {name: found.read(begin, end) for name, found in read.items()}
        yield torch.cat([blocks[view.tensor][view.index] for view in views], source.axis)
