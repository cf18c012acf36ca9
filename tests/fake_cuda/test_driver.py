"""The driver of the fake GPU, by its C interface: what it refuses, and what graphs do again."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from fake_cuda import missing, on_fake_gpu
from fake_cuda.machine_code import machine_code

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
OK, INVALID, OUT_OF_MEMORY, NO_CONTEXT, NO_IMAGE, NOT_FOUND = 0, 1, 2, 201, 209, 500
BAD_IMAGE, BAD_HANDLE, CAPTURING, CAPTURE_LOST, IMPLICIT = 200, 400, 900, 901, 906
SIZE = 4096
GLOBAL, RELAXED, NON_BLOCKING = 0, 2, 1


# --- In the process on the fake GPU


class Driver:
    """Functions by name; each result is an error's number."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")

    def __getattr__(self, name: str) -> Callable[..., int]:
        return getattr(self.library, name)

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Return what a function returns by its first argument."""
        found = ctypes.c_void_p()
        assert getattr(self.library, name)(ctypes.byref(found), *arguments) == OK, name
        return found

    def stream(self, flags: int = NON_BLOCKING) -> ctypes.c_void_p:
        return self.made("cuStreamCreate", flags)


def started() -> Driver:
    cuda = Driver()
    assert cuda.cuInit(0) == OK
    assert cuda.cuCtxSetCurrent(cuda.made("cuDevicePrimaryCtxRetain", 0)) == OK
    return cuda


def memory() -> list[int]:
    """Return what is said of allocations and copies that cannot be."""
    cuda = started()
    own, size = ctypes.create_string_buffer(SIZE), ctypes.c_size_t(SIZE)
    here, there = cuda.made("cuMemAlloc_v2", size), cuda.made("cuMemAlloc_v2", size)
    copy = cuda.cuMemcpyDtoDAsync_v2
    return [
        cuda.cuMemAlloc_v2(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(1 << 30)),
        copy(here, there, size, None),
        copy(here, own, size, None),
        copy(here, ctypes.c_void_p((there.value or 0) + 512), size, None),
        cuda.cuMemcpyHtoDAsync_v2(here, own, size, None),
        cuda.cuMemcpyHtoDAsync_v2(own, here, size, None),
        cuda.cuMemFree_v2(here),
        cuda.cuMemFree_v2(here),
    ]


def contexts() -> list[int]:
    """Return what is said before the driver is initialized, and before there is a context."""
    cuda, out, size = Driver(), ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(SIZE)
    first = cuda.cuMemAlloc_v2(out, size)
    cuda.cuInit(0)
    found = [first, cuda.cuMemAlloc_v2(out, size)]
    cuda.cuCtxPushCurrent_v2(cuda.made("cuDevicePrimaryCtxRetain", 0))
    found.append(cuda.cuMemAlloc_v2(out, size))
    cuda.cuCtxPopCurrent_v2(None)
    return [*found, cuda.cuMemAlloc_v2(out, size)]


def captures() -> list[list[int]]:
    """Return what is said of each step while a stream is captured, and of the capture's end."""
    cuda = started()
    return [capture(cuda, *asked) for asked, _ in CAPTURES]


def capture(cuda: Driver, mode: int, step: str, flags: int = NON_BLOCKING) -> list[int]:
    size, out = ctypes.c_size_t(SIZE), ctypes.byref(ctypes.c_void_p())
    stream, other = cuda.stream(flags), cuda.stream()
    place = cuda.made("cuMemAlloc_v2", size)
    cuda.cuStreamBeginCapture_v2(stream, mode)
    steps: dict[str, Callable[[], int]] = {
        "fill": lambda: cuda.cuMemsetD8Async(place, 1, size, stream),
        "fill by default": lambda: cuda.cuMemsetD8Async(place, 1, size, None),
        "allocate": lambda: cuda.cuMemAlloc_v2(out, size),
        "wait": lambda: cuda.cuStreamSynchronize(stream),
        "wait for another": lambda: cuda.cuStreamSynchronize(other),
        "load": lambda: cuda.cuModuleLoadData(out, machine_code(90, "double", 24, 64)),
    }
    return [steps[step](), cuda.cuStreamEndCapture(stream, out)]


def replay() -> list[list[int]]:
    """Return what is in memory after a graph of two streams is captured, launched and launched."""
    cuda, size = started(), ctypes.c_size_t(SIZE)
    first, second = cuda.stream(), cuda.stream()
    source, to = cuda.made("cuMemAlloc_v2", size), cuda.made("cuMemAlloc_v2", size)
    event = cuda.made("cuEventCreate", 0)
    seen = []

    def look(value: int) -> None:
        now = ctypes.create_string_buffer(SIZE)
        assert cuda.cuMemcpyDtoH_v2(now, to, size) == OK
        seen.append([now.raw[0], now.raw[-1]])
        assert cuda.cuMemsetD8_v2(source, value, size) == OK

    look(5)
    cuda.cuStreamBeginCapture_v2(first, GLOBAL)
    cuda.cuEventRecord(event, first)
    cuda.cuStreamWaitEvent(second, event, 0)  # from here on the second is captured, too
    assert cuda.cuMemcpyDtoDAsync_v2(to, source, size, second) == OK
    graph = ctypes.c_void_p()
    assert cuda.cuStreamEndCapture(first, ctypes.byref(graph)) == OK
    ready = cuda.made("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
    cuda.cuGraphDestroy(graph)
    for value in (6, 7):
        look(value)
        assert cuda.cuGraphLaunch(ready, first) == OK
    look(0)
    return seen


def launches() -> list[list[int]]:
    """Return what is said of loading each machine code, of its kernel, of a launch."""
    cuda = started()
    return [launch(cuda, **RIGHT | changed) for changed, _ in LAUNCHES]


def launch(
    cuda: Driver, sm: int, kernel: str, given: int, threads: int, shared: int, grid: int
) -> list[int]:
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    code = machine_code(sm, "double", 24, 64) if sm else bytes(64)
    found = [cuda.cuModuleLoadData(ctypes.byref(module), code)]
    if found[-1] == OK:
        found.append(cuda.cuModuleGetFunction(ctypes.byref(function), module, kernel.encode()))
    if found[-1] != OK:
        return found
    block, size = ctypes.create_string_buffer(given), ctypes.c_size_t(given)
    extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(block), 2, ctypes.addressof(size), None)
    sizes = (grid, 1, 1, threads, 1, 1, shared)
    return [*found, cuda.cuLaunchKernel(function, *sizes, None, None, extra)]


# ---


def test_memory():
    run = on_fake_gpu(memory, memory=1 << 20)
    assert run.result == [OUT_OF_MEMORY, OK, INVALID, INVALID, OK, INVALID, OK, INVALID]
    assert [event.fields["bytes"] for event in run.log.of("refused")] == [1 << 30]
    assert run.log.peak == 2 * SIZE
    assert run.log.of("free")[-1].fields["in_use"] == SIZE


def test_contexts():
    assert on_fake_gpu(contexts).result == [3, NO_CONTEXT, OK, NO_CONTEXT]


CAPTURES: list[tuple[tuple, list[int]]] = [
    ((GLOBAL, "fill"), [OK, OK]),
    ((GLOBAL, "allocate"), [CAPTURING, CAPTURE_LOST]),
    ((GLOBAL, "load"), [CAPTURING, CAPTURE_LOST]),
    ((RELAXED, "allocate"), [OK, OK]),
    ((RELAXED, "wait"), [CAPTURING, CAPTURE_LOST]),
    ((RELAXED, "wait for another"), [OK, OK]),
    ((RELAXED, "fill by default"), [OK, OK]),
    ((RELAXED, "fill by default", 0), [IMPLICIT, CAPTURE_LOST]),
]


def test_captures():
    assert on_fake_gpu(captures).result == [said for _, said in CAPTURES]


def test_graphs_run_again():
    run = on_fake_gpu(replay)
    assert run.result == [[0, 0], [0, 0], [6, 6], [7, 7]]
    one, two = run.log.copies("DtoD")
    assert one == two and one.fields["graph"] == 1


RIGHT = {"sm": 90, "kernel": "double", "given": 24, "threads": 64, "shared": 0, "grid": 3}
LAUNCHES: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [OK, OK, OK]),
    ({"sm": 0}, [BAD_IMAGE]),
    ({"sm": 80}, [NO_IMAGE]),
    ({"kernel": "triple"}, [OK, NOT_FOUND]),
    ({"given": 16}, [OK, OK, INVALID]),
    ({"threads": 32}, [OK, OK, INVALID]),
    ({"shared": 50 << 10}, [OK, OK, INVALID]),
    ({"grid": 0}, [OK, OK, INVALID]),
]


def test_launches():
    run = on_fake_gpu(launches)
    assert run.result == [said for _, said in LAUNCHES]
    (launched,) = run.log.launches
    assert (launched.name, launched.ours, launched.fields["grid"]) == ("double", True, [3, 1, 1])
