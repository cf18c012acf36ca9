"""Launches of the driver run in Triton's interpreter, over the memory of the fake GPU.

What is loaded is not machine code but stand-ins, which say what they were to be compiled from:
`stand_in` makes one where lmcast.plugins.launch.cubins.cubin would compile.

    monkeypatch.setattr(launch_plan, "cubin", stand_in)  # then export, or make a launch plan
    interpret()                                          # in the process on the fake GPU
"""

import ctypes
import json
import struct
from ast import literal_eval
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from fake_cuda import machine_code
from fake_cuda.log import library
from lmcast.plugins.launch.cubins import Cubin
from lmcast.plugins.launch.step import CONSTANT, TYPES, Kernel

DTYPES = {name: dtype for dtype, name in TYPES.items()}
SCALARS = {"i32": "<i", "i64": "<q", "fp32": "<f"}


def stand_in(kernel: Kernel, sm: int) -> Cubin:
    """Return what says which kernel it is in place of machine code; as launch.cubins.cubin."""
    function = kernel.function.fn
    said = {
        "module": function.__module__,
        "types": kernel.types,
        "constants": repr(kernel.constants),
        "warps": kernel.warps,
        "stages": kernel.stages,
    }
    return Cubin(kernel.name, 32 * kernel.warps, 0, machine_code.stand_in(json.dumps(said)))


def interpret() -> None:
    """Run what the driver launches from now on in Triton's interpreter.

    The process must have TRITON_INTERPRET=1 in its environment: `on_fake_gpu` can be given it, as a
    parent that has compiled kernels has not. Where a kernel fails its traceback is printed, and the
    launch is CUDA_ERROR_LAUNCH_FAILED.
    """
    if not knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 must be set before kernels are imported")
    machine_code.hand_launches(run)


def run(launch: machine_code.Handed) -> None:
    said = json.loads(launch.text)
    function = getattr(import_module(said["module"]), launch.kernel)
    constants = literal_eval(said["constants"])
    kernel = Kernel(function, tuple(said["types"]), constants, said["warps"], said["stages"])
    values = dict(arguments(kernel, launch.parameters))
    function[launch.programs](**kernel.by_name(), **values, **kernel.options)


def arguments(kernel: Kernel, block: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of a launch by name, from its block of parameters."""
    place = 0
    for name, kind in zip(kernel.function.arg_names, kernel.types, strict=True):
        if kind == CONSTANT:
            continue
        layout = "<Q" if kind.startswith("*") else SCALARS[kind]
        place += -place % struct.calcsize(layout)
        (value,) = struct.unpack_from(layout, block, place)
        place += struct.calcsize(layout)
        yield name, tensor_at(value, DTYPES[kind[1:]]) if kind.startswith("*") else value
    # Triton's two pointers to scratch memory are last.
    place += -place % 8
    assert len(block) == place + 16, f"{kernel.name}: {len(block)} bytes of parameters, not {place}"


def tensor_at(address: int, dtype: torch.dtype) -> Tensor:
    """Return the memory from an address to the end of its allocation: no kernel may go further."""
    if not address:
        return torch.zeros(1, dtype=dtype)  # of an empty tensor, which nothing may read
    assert address % 16 == 0, "kernels are compiled for pointers to whole 16 bytes"
    fake, start = library(), ctypes.c_void_p()
    fake.fake_span.restype = ctypes.c_size_t
    size = fake.fake_span(ctypes.c_void_p(address), ctypes.byref(start))
    assert start.value is not None, "a pointer to no device memory"
    count = (start.value + size - address) // dtype.itemsize * dtype.itemsize
    return torch.frombuffer((ctypes.c_char * count).from_address(address), dtype=dtype)
