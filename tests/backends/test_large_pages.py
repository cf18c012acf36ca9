"""Memory that a load takes lies in large pages, what was there before does not."""

import mmap
import platform
import re
from pathlib import Path

import numpy as np
import pytest

from lmcast.exporter.backends import large_pages
from lmcast.exporter.backends.large_pages import in_large_pages

SIZE = 16 << 20


def filled() -> mmap.mmap:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(bytes(range(256)) * (SIZE // 256))
    return memory


def address(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def huge(memory: mmap.mmap) -> int:
    """Return the bytes in large pages of all memory that the system lists together with this."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(n, 16) for n in bounds.groups())
            inside = begin <= address(memory) < end
        elif inside and line.startswith("AnonHugePages:"):
            total += 1024 * int(line.split()[1])
    return total


def wholly(memory: mmap.mmap, size: int) -> set[int]:
    """Return the addresses of the large pages that lie within."""
    begin = -(-address(memory) // size) * size
    return set(range(begin, address(memory) + SIZE - size + 1, size))


def can_collapse() -> bool:
    release = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])
    return bool(large_pages._size()) and release >= (6, 1)


@pytest.mark.skipif(not can_collapse(), reason="Linux 6.1 with large pages")
def test_what_is_taken_within_is_moved_and_nothing_else():
    size, before = large_pages._size(), filled()
    held = large_pages._filled(size)
    with in_large_pages():
        taken = filled()
        reserved = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert huge(taken) >= SIZE - 2 * size  # ends may not be aligned
    new = large_pages._filled(size) - held
    assert not new & wholly(before, size) and not new & wholly(reserved, size)
    assert new >= wholly(taken, size)
    assert before[:] == taken[:] == bytes(range(256)) * (SIZE // 256)
    assert reserved[:] == bytes(SIZE)


def test_nothing_happens_where_large_pages_are_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    monkeypatch.setattr(large_pages, "SETTINGS", tmp_path)
    assert not large_pages._size()
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert large_pages._size() == 2 << 20
    monkeypatch.setattr(large_pages, "SETTINGS", tmp_path / "missing")
    with in_large_pages():
        assert not large_pages._size()


@pytest.mark.skipif(not can_collapse(), reason="Linux 6.1 with large pages")
def test_files_that_are_mapped_have_any_name(tmp_path: Path):
    """An engine may lie in a folder whose name has what ends a line elsewhere."""
    for index, character in enumerate("\r\f\x1c\x85\u2028\n"):
        file = tmp_path / f"{index}{character}0-0 rw-p"
        file.write_bytes(b"mapped")
        with open(file, "rb") as opened:
            held = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            with in_large_pages():
                taken = filled()
            held.close()
        assert huge(taken)
        taken.close()
