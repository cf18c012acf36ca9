"""The GPU at hand, through NVIDIA's cuda-bindings: its memory, one stream for all work, graphs."""

import ctypes
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from lmcast.exporter.dtypes import DTYPES
from lmcast.plugins.errors import InputError

DRIVERS = ("/dev/nvidiactl", "/dev/dxg")  # on Linux, and on WSL
CUDA = 13  # that all packages for GPUs are for, which lmcast's extras bring
READS = 5  # the fastest of these counts: other processes only slow it down
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the stream does not wait for the default one


class DeviceError(InputError):
    """No GPU that can be used, or one that does not do its work."""


class OutOfMemory(DeviceError):
    """The GPU has too little free memory."""


class Memory:
    """Bytes of device memory, or of pinned host memory; freed when nothing refers to them."""

    def __init__(self, gpu: "Cuda", size: int, pinned: bool = False):
        allocate, free = ("cuMemHostAlloc", "cuMemFreeHost") if pinned else (
            "cuMemAlloc", "cuMemFree",
        )  # fmt: skip
        with gpu.current():
            made = gpu.call(allocate, max(size, 1), *([0] if pinned else []))
        self.address = int(made)
        weakref.finalize(self, gpu.release, free, self.address).atexit = False


@dataclass(frozen=True, eq=False)
class Array:
    """A contiguous array in device memory. dtype: its name in exporter/dtypes.py."""

    memory: Memory
    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].bytes

    def rows(self, rows: slice) -> "Array":
        """Return these of the first axis, in the same memory."""
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1
        each = self.nbytes // self.shape[0]
        shape = (stop - start, *self.shape[1:])
        return replace(self, address=self.address + start * each, shape=shape)


class Replay:
    """A captured graph: a call enqueues it."""

    def __init__(self, gpu: "Cuda", graph: Any):
        self._gpu, self._graph = gpu, graph
        weakref.finalize(self, gpu.release, "cuGraphExecDestroy", graph).atexit = False

    def __call__(self) -> None:
        self._gpu.call("cuGraphLaunch", self._graph, self._gpu.stream)


class Cuda:
    """The first CUDA device. All work is on one stream, and runs in order.

    Whatever is enqueued is so within `active`; memory is made and freed in any thread.
    """

    def __init__(self) -> None:
        self.driver: Any = require_gpu()
        self._device = self.call("cuDeviceGet", 0)
        self.name: str = self.call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode()
        self.sm = _sm(self.driver, self._device)
        self.bytes = int(self.call("cuDeviceTotalMem", self._device))
        # That of the runtime too, which other libraries in this process use.
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
        self._alone, self._process = RLock(), os.getpid()
        with self.current():
            self._stream = self.call("cuStreamCreate", NON_BLOCKING)

    @property
    def stream(self) -> int:
        """The handle of the stream, as CUDA's own functions take it."""
        return int(self._stream)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let this thread alone enqueue work, so that no graph has work of another thread in it."""
        with self._alone, self.current():
            yield

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this thread one that may call CUDA, whatever other threads capture meanwhile.

        Raises DeviceError in a process that was forked from the one that has the GPU.
        """
        if os.getpid() != self._process:
            raise DeviceError(
                "a GPU is of the process that opened it, and this one was forked from that: load"
                " the engine here, in a process that was started otherwise (multiprocessing: spawn)"
            )
        modes = self.driver.CUstreamCaptureMode
        self.call("cuCtxPushCurrent", self._context)
        try:
            of_thread = modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            before = self.call("cuThreadExchangeStreamCaptureMode", of_thread)
            try:
                yield
            finally:
                self.call("cuThreadExchangeStreamCaptureMode", before)
        finally:
            self.call("cuCtxPopCurrent")

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver, and return what it returns beside its error: nothing, one,
        or several. Raises DeviceError."""
        return _call(self.driver, name, *arguments)

    def release(self, how: str, handle: Any) -> None:
        """Free what a function of CUDA has made, by another; what fails is not said: it is gone."""
        with suppress(DeviceError), self.current():
            getattr(self.driver, how)(handle)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return device memory as it is, aligned to 256 bytes by CUDA; raises OutOfMemory."""
        memory = Memory(self, math.prod(shape) * DTYPES[dtype].bytes)
        return Array(memory, memory.address, shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return zeroed device memory; raises OutOfMemory."""
        made = self.empty(shape, dtype)
        self.clear(made)
        return made

    def host(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return pinned host memory, to and from which copies are asynchronous."""
        kind, size = DTYPES[dtype].numpy, math.prod(shape) * DTYPES[dtype].bytes
        memory = Memory(self, size, pinned=True)
        raw: Any = (ctypes.c_uint8 * size).from_address(memory.address)
        raw.memory = memory  # the array keeps the view of it, which keeps it
        made: np.ndarray = np.frombuffer(raw, np.uint8).view(kind).reshape(shape)
        return made

    def clear(self, array: Array) -> None:
        """Enqueue that it becomes zeros."""
        if array.nbytes:
            self.call("cuMemsetD8Async", array.address, 0, array.nbytes, self._stream)

    def put(self, to: Array, source: np.ndarray) -> None:
        """Enqueue a copy from the host."""
        assert to.nbytes == source.nbytes
        self.call("cuMemcpyHtoDAsync", to.address, source.ctypes.data, to.nbytes, self._stream)

    def get(self, to: np.ndarray, source: Array) -> None:
        """Enqueue a copy to the host; `to` has it after `wait`."""
        assert to.nbytes == source.nbytes
        self.call("cuMemcpyDtoHAsync", to.ctypes.data, source.address, to.nbytes, self._stream)

    def copied(self, array: Array) -> Array:
        """Enqueue a copy into new memory, and return that."""
        made = self.empty(array.shape, array.dtype)
        self.copy(made, array)
        return made

    def copy(self, to: Array, source: Array) -> None:
        """Enqueue a copy into the beginning of every axis: `to` is as large, or one of its axes is
        larger."""
        grown = [i for i, sizes in enumerate(zip(to.shape, source.shape, strict=True))
                 if sizes[0] != sizes[1]]  # fmt: skip
        if not source.nbytes:
            return
        if not grown:
            self.call("cuMemcpyDtoDAsync", to.address, source.address, source.nbytes, self._stream)
            return
        (axis,) = grown
        lines = math.prod(source.shape[:axis])
        what = self.driver.CUDA_MEMCPY2D()
        what.srcMemoryType = what.dstMemoryType = self.driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        what.srcDevice, what.srcPitch = source.address, source.nbytes // lines
        what.dstDevice, what.dstPitch = to.address, to.nbytes // lines
        what.WidthInBytes, what.Height = source.nbytes // lines, lines
        self.call("cuMemcpy2DAsync", what, self._stream)

    def wait(self) -> None:
        """Block until all enqueued work is done."""
        self.call("cuStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], bool]) -> Replay | None:
        """Capture work in a CUDA graph; return its replay, None where it cannot be captured.

        The work is recorded, not executed; it returns whether it was enqueued.
        """
        driver, done = self.driver, False
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", self._stream, mode)
        try:
            done = work()
        finally:
            # CUDA refuses some calls while it captures; then no graph comes of it.
            failed, graph = driver.cuStreamEndCapture(self._stream)
        if failed.value:
            return None
        try:
            return Replay(self, self.call("cuGraphInstantiate", graph, 0)) if done else None
        finally:
            driver.cuGraphDestroy(graph)

    def used(self) -> int:
        """Return the bytes of device memory in use, by all processes."""
        with self.current():
            free, total = self.call("cuMemGetInfo")
        return int(total) - int(free)

    def bandwidth(self, size: int) -> float:
        """Measure the bandwidth of device memory, in bytes a second, by a copy within it: `size`
        bytes that are read or written."""
        milliseconds: list[float] = []
        with self.active():
            source, to = (self.zeros((size // 2,), "uint8") for _ in range(2))
            start, end = (self.call("cuEventCreate", 0) for _ in range(2))
            for _ in range(READS + 1):  # the first is slower
                self.call("cuEventRecord", start, self._stream)
                self.copy(to, source)
                self.call("cuEventRecord", end, self._stream)
                self.call("cuEventSynchronize", end)
                milliseconds.append(self.call("cuEventElapsedTime", start, end))
            for event in (start, end):
                self.call("cuEventDestroy", event)
        return size / min(milliseconds) * 1000


def require_gpu() -> Any:
    """Return the bindings of the driver, initialized.

    Raises DeviceError with the reason where no GPU can be used.
    """
    try:
        driver = bindings()
        version = int(_call(driver, "cuDriverGetVersion"))
    except ModuleNotFoundError:
        if sys.platform != "win32" and not _driver_files():
            raise DeviceError("no NVIDIA GPU is here") from None
        raise DeviceError(
            "GPUs are used through the package cuda-bindings, which is not installed: pip install"
            " cuda-bindings"
        ) from None
    except RuntimeError:  # the bindings do not find the driver's library
        why = "no NVIDIA GPU is here, or no driver of one"
        if files := _driver_files():
            why = f"{files[0]} is here, and the driver's library libcuda.so.1 is not: install it"
        raise DeviceError(why) from None
    if version // 1000 < CUDA:
        raise DeviceError(
            f"the driver of the NVIDIA GPU is for CUDA {version // 1000}.{version % 1000 // 10},"
            f" and lmcast's packages for GPUs are for CUDA {CUDA}: install a newer driver, of"
            " version 580 at least"
        )
    (found,) = driver.cuInit(0)
    if found == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        raise DeviceError("no NVIDIA GPU is here")
    if found.value:
        raise DeviceError(
            f"the NVIDIA GPU cannot be used ({found.name}): see what `nvidia-smi` says; a newer"
            " driver is the usual remedy"
        )
    return driver


def local_sm() -> int | None:
    """Return the SM of the GPU at hand, None where there is none that can be used."""
    try:
        driver = require_gpu()
    except DeviceError:
        return None
    return _sm(driver, _call(driver, "cuDeviceGet", 0))


def _sm(driver: Any, device: Any) -> int:
    kinds = driver.CUdevice_attribute
    major, minor = (
        _call(driver, "cuDeviceGetAttribute", kind, device)
        for kind in (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return 10 * int(major) + int(minor)


def _driver_files() -> list[str]:
    return [driver for driver in DRIVERS if Path(driver).exists()]


def bindings() -> Any:
    """Return the bindings of the driver; imported late, as most machines have no GPU."""
    return import_module("cuda.bindings.driver")


def _call(driver: Any, name: str, *arguments: Any) -> Any:
    code, *found = getattr(driver, name)(*arguments)
    if code.value:
        kind = OutOfMemory if code == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else DeviceError
        raise kind(f"the GPU does not do what it is asked for: {name} returns {code.name}")
    return found[0] if len(found) == 1 else (tuple(found) or None)
