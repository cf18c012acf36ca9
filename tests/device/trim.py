"""Machine code of other GPUs taken out of a library of NVIDIA's compiler: zeros, which compress.

Such code lies in containers, one after the other ("fat binaries"): a header of 16 bytes - a magic
number, a version, its own size, and that of the images behind it -, and images for one SM each.
An image has a header with its kind, its size, and at byte 28 its SM. The layout is not documented;
that of CUDA 13 is what is read here, and anything else is left as it is.
"""

import mmap
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

MAGIC = 0xBA55ED50.to_bytes(4, "little")
CONTAINER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes behind it
IMAGE = struct.Struct("<HHIQ")  # kind, attributes, bytes of this header, bytes behind it
VERSION, SM_AT = 1, 28
Image = tuple[int, slice]  # its SM, and where its code is


def images(data: mmap.mmap) -> Iterator[Image]:
    """Yield the images of all containers in a library."""
    at = data.find(MAGIC)
    while at >= 0:
        end = at + CONTAINER.size
        if end <= len(data):
            _, version, header, size = CONTAINER.unpack_from(data, at)
            if version == VERSION and header == CONTAINER.size and end + size <= len(data):
                yield from _within(data, end, end + size)
                end += size
        at = data.find(MAGIC, end)


def _within(data: mmap.mmap, at: int, end: int) -> Iterator[Image]:
    while at + SM_AT + 4 <= end:
        _, _, header, size = IMAGE.unpack_from(data, at)
        (sm,) = struct.unpack_from("<I", data, at + SM_AT)
        yield sm, slice(at + header, at + header + size)
        at += header + size


def trim(library: Path, keep: Collection[int]) -> dict[int, int]:
    """Zero the images of all other SMs in a file; return the bytes that remain, by SM."""
    kept = Counter[int]()
    with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for sm, place in images(data):
            if sm in keep:
                kept[sm] += place.stop - place.start
            else:
                data[place] = bytes(place.stop - place.start)
    return dict(kept)
