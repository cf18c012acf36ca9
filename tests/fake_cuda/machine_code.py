"""Machine code for tests: ELF files that say of a kernel what compilers say, and stand-ins.

A launch of a stand-in is handed to a function of this process, with its text and its parameters.
"""

import ctypes
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from fake_cuda.log import library

CUDA, ABI, HEADER = 190, 8, 64  # of ELF files: the machine, CUDA's version of them, bytes
PARAMETER_BYTES, REQUIRED_THREADS = (3, 0x19), (4, 0x10)  # how they are written, and their numbers


class Handed(NamedTuple):
    """A launch: the text of the stand-in, and what cuLaunchKernel was given."""

    text: str
    kernel: str
    programs: tuple[int, int, int]
    parameters: bytes


# code, its size, the kernel's name, programs, parameters, their size -> 1: done
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p),
    *(ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p, ctypes.c_size_t),
)
held: list[Any] = []  # as long as the library may call them


def stand_in(text: str) -> bytes:
    """Return what a driver loads in place of machine code; it has kernels of every name."""
    data = text.encode()
    return b"FAKECUDA" + struct.pack("<Q", len(data)) + data


def hand_launches(to: Callable[[Handed], None]) -> None:
    """In a process on a fake GPU: call a function for each launch of a stand-in from now on.

    Where it raises the traceback is printed, and the launch is CUDA_ERROR_LAUNCH_FAILED.
    """

    def handed(code: int, size: int, name: bytes, grid: Any, parameters: int, count: int) -> int:
        text, block = ctypes.string_at(code, size).decode(), ctypes.string_at(parameters, count)
        to(Handed(text, name.decode(), (grid[0], grid[1], grid[2]), block))
        return 1

    held.append(CALLBACK(handed))
    library().fake_interpret(held[-1])


def machine_code(sm: int, kernel: str, parameters: int, threads: int) -> bytes:
    """Return an ELF file with a kernel; parameters: their bytes; threads: of its blocks."""
    info = struct.pack("<BBH", *PARAMETER_BYTES, parameters)
    info += struct.pack("<BBH3I", *REQUIRED_THREADS, 12, threads, 1, 1)
    names = ["", ".names", f".text.{kernel}", f".nv.info.{kernel}"]
    contents = [b"", "\0".join([*names, ""]).encode(), bytes(16), info]
    start = HEADER + 64 * len(names)
    head = struct.pack("<4s3BxB7x", b"\x7fELF", 2, 1, 1, ABI)
    head += struct.pack("<HHI3QI", 2, CUDA, 1, 0, 0, HEADER, sm << 8)
    head += struct.pack("<6H", HEADER, 0, 0, 64, len(names), 1)
    table, data = b"", b""
    for name, content in zip(names, contents, strict=True):
        place = contents[1].index(name.encode() + b"\0")
        where = (start + len(data), len(content))
        table += struct.pack("<IIQQQQIIQQ", place, 1, 0, 0, *where, 0, 0, 1, 0)
        data += content
    return head + table + data
