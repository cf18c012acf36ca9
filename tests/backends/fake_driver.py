"""NVIDIA's cuda.bindings.driver, as far as backends.cuda asks for it, over memory of this machine.

For a fake TensorRT in the process of a test (fake_tensorrt); tests/fake_cuda is a whole driver, for
libraries that link it. Memory is never given twice, so that a wrong address is never right.
"""

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

import numpy as np

STREAM = 77


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_UNKNOWN = 999


class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


OK = CUresult.CUDA_SUCCESS


class Span(NamedTuple):
    """An allocation. memory: keeps its address from being given again."""

    size: int
    memory: np.ndarray


class Driver:
    """The driver of a GPU, whose facts a test may change. initialized: what cuInit says."""

    CUresult, CUdevice_attribute = CUresult, CUdevice_attribute
    CUstreamCaptureMode = CUstreamCaptureMode
    sm, bytes, version, initialized = 89, 1 << 40, 13000, OK
    capturing: ClassVar[list[Callable[[], None]] | None] = None

    def __init__(self) -> None:
        self.device: dict[int, Span] = {}  # by address, what is not freed
        self.kept: list[np.ndarray] = []
        self.depth = 0  # of contexts that were pushed

    def cuDriverGetVersion(self) -> Any:
        return OK, self.version

    def cuInit(self, flags: int) -> Any:
        return (self.initialized,)

    def cuDeviceGet(self, ordinal: int) -> Any:
        return OK, ordinal

    def cuDeviceGetName(self, size: int, device: int) -> Any:
        return OK, b"Fake".ljust(size, b"\0")

    def cuDeviceGetAttribute(self, kind: CUdevice_attribute, device: int) -> Any:
        minor = kind == CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        return OK, self.sm % 10 if minor else self.sm // 10

    def cuDeviceTotalMem(self, device: int) -> Any:
        return OK, self.bytes

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return OK, 5

    def cuCtxPushCurrent(self, context: int) -> Any:
        assert context == 5
        self.depth += 1
        return (OK,)

    def cuCtxPopCurrent(self) -> Any:
        self.depth -= 1
        return OK, 5

    def cuThreadExchangeStreamCaptureMode(self, mode: int) -> Any:
        return OK, 0

    def cuStreamCreate(self, flags: int) -> Any:
        return OK, STREAM

    def cuStreamSynchronize(self, stream: int) -> Any:
        assert stream == STREAM and Driver.capturing is None
        return (OK,)

    def cuMemGetInfo(self) -> Any:
        return OK, self.bytes - sum(span.size for span in self.device.values()), self.bytes

    def cuMemAlloc(self, size: int) -> Any:
        assert self.depth and Driver.capturing is None
        _, free, _ = self.cuMemGetInfo()
        if size > free:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        address = self._made(size)
        self.device[address] = Span(size, self.kept[-1])
        return OK, address

    def cuMemFree(self, address: int) -> Any:
        del self.device[address]
        return (OK,)

    def cuMemHostAlloc(self, size: int, flags: int) -> Any:
        return OK, self._made(size)

    def cuMemFreeHost(self, address: int) -> Any:
        return (OK,)

    def _made(self, size: int) -> int:
        raw = np.full(size + 512, 0xFF, np.uint8)  # not-a-numbers, where nothing was written
        self.kept.append(raw)
        return int(raw.ctypes.data) + -int(raw.ctypes.data) % 256

    def at(self, address: int, size: int) -> np.ndarray:
        """Return device memory, which must lie within one allocation."""
        spans = ((start, span.size) for start, span in self.device.items())
        assert any(a <= address and address + size <= a + n for a, n in spans), "no memory"
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)

    def cuMemsetD8Async(self, to: int, value: int, size: int, stream: int) -> Any:
        assert stream == STREAM and Driver.capturing is None
        self.at(to, size)[...] = value
        return (OK,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        return self._copied(self.at(to, size), _host(source, size), stream)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        return self._copied(_host(to, size), self.at(source, size), stream)

    def cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        return self._copied(self.at(to, size), self.at(source, size), stream)

    def _copied(self, to: np.ndarray, source: np.ndarray, stream: int) -> Any:
        assert stream == STREAM and Driver.capturing is None
        to[...] = source
        return (OK,)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> Any:
        assert stream == STREAM
        Driver.capturing = []
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> Any:
        recorded, Driver.capturing = Driver.capturing, None
        return OK, recorded

    def cuGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> Any:
        return OK, graph

    def cuGraphDestroy(self, graph: list[Callable[[], None]]) -> Any:
        return (OK,)

    def cuGraphExecDestroy(self, graph: list[Callable[[], None]]) -> Any:
        return (OK,)

    def cuGraphLaunch(self, graph: list[Callable[[], None]], stream: int) -> Any:
        assert stream == STREAM
        for again in graph:
            again()
        return (OK,)

    def cuEventCreate(self, flags: int) -> Any:
        return OK, 1

    def cuEventRecord(self, event: int, stream: int) -> Any:
        return (OK,)

    def cuEventSynchronize(self, event: int) -> Any:
        return (OK,)

    def cuEventElapsedTime(self, start: int, end: int) -> Any:
        return OK, 1.0  # a millisecond

    def cuEventDestroy(self, event: int) -> Any:
        return (OK,)


def _host(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)
