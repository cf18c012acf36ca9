"""The values of a parameter as a stream of blocks: memory holds a block, or at most one expert."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.finite import check_block
from lmcast.exporter.checkpoint.tensors import BLOCK_BYTES, Checkpoint
from lmcast.graphs.mxfp4 import unpack
from lmcast.graphs.sources import Joined, Mxfp4, Source, Stack, View


def values(checkpoint: Checkpoint, source: Source) -> Iterator[Tensor]:
    """Yield the values of a source in order (C), in the dtypes they are stored in, all finite.

    Raises CheckpointError on NaN and Inf.
    """
    if isinstance(source, View):
        yield from _whole(checkpoint, source) if source.whole else _part(checkpoint, source)
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


def _part(checkpoint: Checkpoint, source: View) -> Iterator[Tensor]:
    stored = checkpoint.tensors[source.tensor]
    first, *inner = source.index or (slice(None),)
    chosen = range(*first.indices(stored.shape[0]))
    inside = (slice(None), *inner)
    if len(stored.shape) == 2 and source.turned:
        step = max(1, len(chosen))  # columns become rows: all of them are needed at once
    else:
        step = max(1, BLOCK_BYTES // (stored.nbytes // stored.shape[0]))
    for begin in range(0, len(chosen), step):
        taken = chosen[begin : begin + step]
        rows = checkpoint.rows(source.tensor, taken[0], taken[-1] + 1)
        check_block(stored, rows, taken[0] * rows[0].numel())
        block = rows[:: taken.step][inside]
        yield (block.mT if source.turned else block).contiguous()


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
    parts = []
    for part in source.parts:
        assert isinstance(part, View) and not part.turned
        assert not part.index or part.index[0] == slice(None)
        parts.append((part.tensor, part.index))
    stored = {name: checkpoint.tensors[name] for name, _ in parts}
    rows = stored[parts[0][0]].shape[0]
    step = max(1, BLOCK_BYTES // (sum(s.nbytes for s in stored.values()) // rows))
    for begin in range(0, rows, step):
        blocks = {}
        for name, tensor in stored.items():
            blocks[name] = checkpoint.rows(name, begin, min(begin + step, rows))
            check_block(tensor, blocks[name], begin * blocks[name][0].numel())
        yield torch.cat([blocks[name][index] for name, index in parts], source.axis)
