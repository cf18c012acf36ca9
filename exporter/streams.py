"""The values of a parameter as a stream of blocks: memory holds a block, or at most one expert."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.finite import check_block
from lmcast.exporter.checkpoint.tensors import BLOCK_BYTES, Checkpoint
from lmcast.graphs.fp8 import dequantize
from lmcast.graphs.mxfp4 import unpack
from lmcast.graphs.sources import (
    Joined,
    Mxfp4,
    Packed,
    Scaled,
    Source,
    Stack,
    View,
    in_runs,
    packed_values,
    pieces,
)


def values(checkpoint: Checkpoint, source: Source) -> Iterator[Tensor]:
    """Yield the values of a source in order (C), in the dtypes they are stored in, all finite.

    Packed numbers become fp32. Raises CheckpointError on NaN and Inf.
    """
    if isinstance(source, View) and source.whole:
        yield from _whole(checkpoint, source)
    elif isinstance(source, View | Scaled):
        yield from _part(checkpoint, source)
    elif isinstance(source, Packed):
        yield from _packed(checkpoint, source)
    elif isinstance(source, Mxfp4):
        yield from _mxfp4(checkpoint, source)
    elif isinstance(source, Stack) or source.axis == 0:
        for part in source.parts:
            yield from values(checkpoint, part)
    else:
        yield from _side_by_side(checkpoint, source)


def _whole(checkpoint: Checkpoint, source: View) -> Iterator[Tensor]:
    stored, done = checkpoint.tensors[source.tensor], 0
    for block in checkpoint.blocks(source.tensor):
        check_block(stored, block, done)
        done += block.numel()
        yield block


def _part(checkpoint: Checkpoint, source: View | Scaled) -> Iterator[Tensor]:
    view = _view(source)
    stored, read = checkpoint.tensors[view.tensor], _reader(checkpoint, source)
    shape = stored.shape if view.runs is None else in_runs(view.tensor, stored.shape, view.runs)
    if len(shape) == 2 and view.turned:
        step = shape[0]  # columns become rows: all of them are needed at once
    else:
        step = max(1, BLOCK_BYTES // (_read_bytes(checkpoint, source) // shape[0]))
    for begin, end, take in pieces(view, stored.shape, step):
        block = take(read(begin, end))
        yield (block.mT if view.turned else block).contiguous()


def _view(source: View | Scaled) -> View:
    return source.values if isinstance(source, Scaled) else source


def _read_bytes(checkpoint: Checkpoint, source: View | Scaled) -> int:
    """Return the size of a stored tensor as `_reader` gives it."""
    stored = checkpoint.tensors[_view(source).tensor]
    return math.prod(stored.shape) * (4 if isinstance(source, Scaled) else stored.dtype.itemsize)


def _reader(checkpoint: Checkpoint, source: View | Scaled) -> Callable[[int, int], Tensor]:
    """Return what reads rows begin..end-1 of a stored tensor: plain numbers, all finite."""
    stored = checkpoint.tensors[_view(source).tensor]
    scales: Tensor | None = None
    if isinstance(source, Scaled):
        scales = checkpoint.read(source.scales)
        check_block(checkpoint.tensors[source.scales], scales)

    def read(begin: int, end: int) -> Tensor:
        rows = checkpoint.rows(stored.name, begin, end)
        if isinstance(source, Scaled) and scales is not None:
            rows = dequantize(rows, scales, source.block, begin)
        check_block(stored, rows, begin * rows[0].numel())
        return rows

    return read


def _packed(checkpoint: Checkpoint, source: Packed) -> Iterator[Tensor]:
    stored = checkpoint.tensors[source.layout.tensors[0]]
    shape = source.layout.shape({n: checkpoint.tensors[n].shape for n in source.layout.tensors})
    whole: dict[str, Tensor] = {}

    def read(name: str, begin: int, end: int | None) -> Tensor:
        if end is not None:
            return checkpoint.rows(name, begin, end)
        if name not in whole:  # scales: few, and wanted by every run of rows
            whole[name] = checkpoint.read(name)
        return whole[name]

    entries = source.values.runs or shape[0]
    each = math.prod(shape) * 4 // entries
    step = entries if source.values.turned and len(shape) == 2 else max(1, BLOCK_BYTES // each)
    done = 0
    for block in packed_values(source, shape, read, step):
        check_block(stored, block, done)
        done += block.numel()
        yield (block.mT if source.values.turned else block).contiguous()


def _mxfp4(checkpoint: Checkpoint, source: Mxfp4) -> Iterator[Tensor]:
    stored = checkpoint.tensors[source.blocks]
    first, *inner = source.index or (slice(None),)
    inside = (slice(None), *inner)
    done = 0
    for row in range(*first.indices(stored.shape[0])):
        blocks, scales = (
            checkpoint.rows(name, row, row + 1)[inside] for name in (source.blocks, source.scales)
        )
        block = unpack(blocks, scales)
        check_block(stored, block, done)
        done += block.numel()
        yield block


def _side_by_side(checkpoint: Checkpoint, source: Joined) -> Iterator[Tensor]:
    """Yield parts joined along an inner axis, in runs of rows of all of them."""
    views, parts = [], {}
    for part in source.parts:
        assert isinstance(part, View | Scaled)
        view = _view(part)
        assert not view.turned and view.runs is None
        assert not view.index or view.index[0] == slice(None)
        views.append(view)
        parts[view.tensor] = part
    readers = {name: _reader(checkpoint, part) for name, part in parts.items()}
    rows = checkpoint.tensors[views[0].tensor].shape[0]
    size = sum(_read_bytes(checkpoint, part) for part in parts.values())
    step = max(1, BLOCK_BYTES // (size // rows))
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        blocks = {name: read(begin, end) for name, read in readers.items()}
        yield torch.cat([blocks[view.tensor][view.index] for view in views], source.axis)
