"""Looking for NaN and Inf at the speed of memory: on the stored bits, converting nothing."""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import open_regular, read_into
from lmcast.exporter.checkpoint.tensors import Checkpoint, StoredTensor, read_rows
from lmcast.exporter.cores import usable

FULL_BYTES = 8 << 30  # up to here everything is read unless the caller says otherwise
CHUNK_BYTES = 4 << 20  # 4 MiB: the checks run in cache, right behind the read
JOB_BYTES = 1 << 20  # 1 MiB: small reads are handed to a thread together
RUN = 4096  # elements in one run of a sample
RUNS = 6  # runs per tensor in a sample: first, last, and four between
MOST_THREADS = 8  # memory bandwidth is used up by then

Run = tuple[int, int]  # units of a tensor (see _units) from start to stop
Task = tuple[StoredTensor, list[Run]]

_local = threading.local()


@dataclass(frozen=True)
class _Pattern:
    """Bits of non-finite values: signed integers from `positive`, unsigned from `negative`."""

    integer: str  # numpy's name of the signed integer of this width
    positive: int
    negative: int


PATTERNS = {
    torch.float64: _Pattern("i8", 0x7FF << 52, 0xFFF << 52),
    torch.float32: _Pattern("i4", 0x7F80_0000, 0xFF80_0000),
    torch.float16: _Pattern("i2", 0x7C00, 0xFC00),
    torch.bfloat16: _Pattern("i2", 0x7F80, 0xFF80),
    torch.float8_e5m2: _Pattern("i1", 0x7C, 0xFC),
    torch.float8_e4m3fn: _Pattern("i1", 0x7F, 0xFF),  # NaN only
    torch.float8_e8m0fnu: _Pattern("i1", 0x80, 0xFF),  # no sign: 0xFF alone is NaN
}


@dataclass(frozen=True)
class FiniteReport:
    """What was looked at; every value of it was finite."""

    mode: Literal["full", "sampled"]
    tensors: int  # of a floating-point type; others cannot hold NaN or Inf
    bytes_read: int
    bytes_total: int


def check_block(stored: StoredTensor, block: Tensor, first: int = 0) -> None:
    """Refuse NaN and Inf in a contiguous run of a tensor's values, at flat index `first` of it.

    Raises CheckpointError naming file, tensor and flat index. Integers and booleans pass.
    """
    index = _first_bad(block)
    if index is None:
        return
    value = block.reshape(-1)[index].double().item()
    raise CheckpointError(
        f"{stored.file}: tensor {stored.name!r} holds {value} at flat index {first + index}; only "
        "finite weights are accepted; download or save the checkpoint again"
    )


def _first_bad(block: Tensor) -> int | None:
    """Return the flat index of the first value that is not finite, None if all are."""
    pattern = PATTERNS.get(block.dtype)
    if pattern is None or not block.numel():
        return None
    raw = block.reshape(-1).view(torch.uint8).numpy()
    signed, unsigned = raw.view(pattern.integer), raw.view(pattern.integer.replace("i", "u"))
    if signed.max() < pattern.positive and unsigned.max() < pattern.negative:
        return None
    return int(((signed >= pattern.positive) | (unsigned >= pattern.negative)).argmax())


def check_finite(
    checkpoint: Checkpoint,
    names: Iterable[str],
    full: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> FiniteReport:
    """Refuse NaN and Inf in the named tensors, in all of them or (full=False) in samples of each.

    full=None reads everything up to FULL_BYTES, samples above. `progress` gets byte counts.
    Raises CheckpointError naming the first such tensor (by file, then offset) and its flat index.
    """
    chosen = [checkpoint.tensors[name] for name in set(names)]
    chosen = [s for s in chosen if s.dtype in PATTERNS and s.nbytes]
    chosen.sort(key=lambda s: (str(s.file), s.offset, s.name))
    total = sum(s.nbytes for s in chosen)
    if full is None:
        full = total <= FULL_BYTES
    threads = min(MOST_THREADS, usable())
    read = 0
    for file, group in groupby(chosen, key=lambda s: s.file):
        jobs = _jobs(task for stored in group for task in _tasks(stored, full))
        # The pool ends before the file is closed, whatever happens.
        with open_regular(file) as descriptor, ThreadPoolExecutor(threads) as pool:
            if not full:  # what the system would read ahead is many times the sample
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            for count in pool.map(partial(_scan, descriptor), jobs):
                read += count
                if progress is not None:
                    progress(count)
    return FiniteReport("full" if full else "sampled", len(chosen), read, total)


def _units(stored: StoredTensor) -> tuple[int, int, int]:
    """How many pieces can be read on their own; stored bytes and elements of each."""
    elements = math.prod(stored.shape)
    count = elements if stored.linkable else stored.shape[0] // stored.row_multiple
    return count, stored.nbytes // count, elements // count


def _tasks(stored: StoredTensor, full: bool) -> list[Task]:
    """Return what is read of one tensor, in parts of about CHUNK_BYTES."""
    count, unit_bytes, unit_elements = _units(stored)
    if full:
        step = max(1, CHUNK_BYTES // max(unit_bytes, unit_elements * stored.dtype.itemsize))
        return [(stored, [(i, min(i + step, count))]) for i in range(0, count, step)]
    run = max(1, RUN // unit_elements)
    if count <= run * RUNS:
        return [(stored, [(0, count)])]
    starts = [i * (count - run) // (RUNS - 1) for i in range(RUNS)]
    return [(stored, [(i, i + run) for i in starts])]


def _jobs(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Put small tasks together: handing one to a thread costs more than such a read."""
    job, size = list[Task](), 0
    for stored, runs in tasks:
        job.append((stored, runs))
        size += _units(stored)[1] * sum(stop - start for start, stop in runs)
        if size >= JOB_BYTES:
            yield job
            job, size = [], 0
    if job:
        yield job


def _scan(descriptor: int, job: list[Task]) -> int:
    """Check the tasks of one job; return the bytes read."""
    return sum(_check(descriptor, *task) for task in job)


def _check(descriptor: int, stored: StoredTensor, runs: list[Run]) -> int:
    """Check runs of a tensor, all at once as long as they are good; return the bytes read."""
    _, unit_bytes, unit_elements = _units(stored)
    counts = [stop - start for start, stop in runs]
    if stored.assembly is not None:
        return _check_assembled(stored, runs, unit_bytes, unit_elements)
    raw = _buffer(sum(counts) * unit_bytes)
    rest = raw.data
    for (start, _), count in zip(runs, counts, strict=True):
        part, rest = rest[: count * unit_bytes], rest[count * unit_bytes :]
        read_into(descriptor, part, stored.offset + start * unit_bytes, stored.file)
    if stored.decode is not None:
        values = stored.decode(raw)
    else:
        values = torch.from_numpy(raw).view(stored.dtype)
    if _first_bad(values) is not None:
        blocks = values.reshape(-1).split([count * unit_elements for count in counts])
        for (start, _), block in zip(runs, blocks, strict=True):
            check_block(stored, block, start * unit_elements)
    return len(raw)


def _check_assembled(
    stored: StoredTensor, runs: list[Run], unit_bytes: int, unit_elements: int
) -> int:
    for start, stop in runs:
        rows = read_rows(stored, start * stored.row_multiple, stop * stored.row_multiple)
        check_block(stored, rows, start * unit_elements)
    return sum(stop - start for start, stop in runs) * unit_bytes


def _buffer(size: int) -> np.ndarray:
    """This thread's own memory, reused: fresh pages would cost as much as the read."""
    buffer: np.ndarray | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _local.buffer = np.empty(max(size, CHUNK_BYTES), np.uint8)
    return buffer[:size]
