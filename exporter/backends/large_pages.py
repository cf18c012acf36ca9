"""Memory that loading takes, in large pages: Linux has them for whoever asks.

A decoding step reads every weight once, and of pages of 4 KiB the processor looks up each: a step
of SmolLM2-135M in 4 bits takes 0.8 of the time where its weights lie in pages of 2 MiB.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1; before that, it is an error that changes nothing


@contextmanager
def in_large_pages() -> Iterator[None]:
    """Put the memory that the body takes into large pages, where it fills at least half of them.

    Nothing that the process held before is moved, and nothing at all on systems that have none, or
    whose owner has turned them off ("never"). Contents and addresses stay.
    """
    size = _size()
    if not size:
        yield
        return
    before = _filled(size)
    yield
    advise = ctypes.CDLL(None).madvise
    for address in sorted(_filled(size) - before):
        advise(ctypes.c_void_p(address), ctypes.c_size_t(size), COLLAPSE)


def _size() -> int:
    """Return the bytes of a large page, 0 where there are none."""
    if sys.platform != "linux":
        return 0
    try:
        allowed = (SETTINGS / "enabled").read_text(encoding="ascii")
        size = int((SETTINGS / "hpage_pmd_size").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    return 0 if "[never]" in allowed else size


def _filled(size: int) -> set[int]:
    """Return the addresses of large pages of which at least half is in memory: of the heap, and of
    memory without a name."""
    small, found = os.sysconf("SC_PAGE_SIZE"), set[int]()
    of_each, most = size // small, os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            for begin, end in _private(size):
                count = (end - begin) // small
                if count > most:
                    continue  # address space that is only reserved
                raw = os.pread(pages.fileno(), 8 * count, begin // small * 8)
                whole = len(raw) // (8 * of_each)
                entries = np.frombuffer(raw, np.uint64, whole * of_each).reshape(whole, of_each)
                present = np.count_nonzero(entries >> np.uint64(63), axis=1)
                found.update(begin + size * int(i) for i in np.flatnonzero(2 * present >= of_each))
    except OSError:  # a system that shows no process this
        return set()
    return found


def _private(size: int) -> Iterator[tuple[int, int]]:
    """Yield where the heap and memory without a name begin and end, in whole large pages."""
    # Bytes: a name may have any but a newline in it, and what Python takes for the end of a line.
    for line in Path("/proc/self/maps").read_bytes().split(b"\n")[:-1]:
        bounds, rights, _, _, _, *name = line.split(maxsplit=5)
        begin, end = (int(n, 16) for n in bounds.split(b"-"))
        begin, end = -(-begin // size) * size, end // size * size
        if rights == b"rw-p" and begin < end and name in ([], [b"[heap]"]):
            yield begin, end
