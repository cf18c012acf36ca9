"""Launches on the fake GPU that Triton's interpreter runs, plain and in a CUDA graph."""

import ctypes
import struct

import pytest
import triton
import triton.language as tl

from fake_cuda import missing, on_fake_gpu
from fake_cuda.interpret import interpret, stand_in
from fake_cuda.test_driver import started
from lmcast.plugins.launch.step import Kernel

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
COUNT, FACTOR = 40, 3.0


@triton.jit
def scale(x, count, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < count)
    tl.store(x + i, value * factor, mask=i < count)


def both() -> list[dict[str, list[float]]]:
    interpret()
    return [scaled(0), scaled(4)]


def scaled(shift: int) -> dict[str, list[float]]:
    """Return 1, 1, ... scaled by a launch, and then by two of a graph; shift: of the pointer."""
    cuda, size = started(), ctypes.c_size_t(4 * COUNT)
    kernel = Kernel(scale, ("*fp32", "i32", "fp32", "constexpr"), (None, None, None, 16), 1, 1)
    module = cuda.made("cuModuleLoadData", stand_in(kernel, 90).code)
    function = cuda.made("cuModuleGetFunction", module, b"scale")
    x, stream = cuda.made("cuMemAlloc_v2", size), cuda.stream()
    ones = (ctypes.c_float * COUNT)(*[1.0] * COUNT)
    cuda.cuMemcpyHtoD_v2(x, ones, size)
    block = struct.pack("@QifQQ", (x.value or 0) + shift, COUNT, FACTOR, 0, 0)
    length = ctypes.c_size_t(len(block))
    held = ctypes.create_string_buffer(block, len(block))
    extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(held), 2, ctypes.addressof(length), None)

    def launch() -> int:
        return cuda.cuLaunchKernel(function, 3, 1, 1, 32, 1, 1, 0, stream, None, extra)

    def values() -> list[float]:
        cuda.cuMemcpyDtoH_v2(ones, x, size)
        return sorted(set(ones))

    error = launch()
    found = {"error": [error], "plain": values()}
    cuda.cuStreamBeginCapture_v2(stream, 0)
    launch()
    graph = ctypes.c_void_p()
    cuda.cuStreamEndCapture(stream, ctypes.byref(graph))
    ready = cuda.made("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
    found["captured"] = values()
    for _ in range(2):
        cuda.cuGraphLaunch(ready, stream)
    return found | {"graph": values()}


def test_launches_are_interpreted():
    run = on_fake_gpu(both, TRITON_INTERPRET="1")
    right, unaligned = run.result
    assert right == {"error": [0], "plain": [3.0], "captured": [3.0], "graph": [27.0]}
    assert [event.name for event in run.log.launches[:3]] == ["scale"] * 3
    assert unaligned == {"error": [719], "plain": [1.0], "captured": [1.0], "graph": [1.0]}
    assert "whole 16 bytes" in run.output
