"""The GPU at hand, through torch: its memory, one stream for all work, CUDA graphs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from lmcast.plugins.errors import InputError

DRIVERS = ("/dev/nvidiactl", "/dev/dxg")  # on Linux, and on WSL
READS = 5  # the fastest of these counts: other processes only slow it down


class DeviceError(InputError):
    """No GPU that can be used."""


class Cuda:
    """The current CUDA device. All work is on one stream, and runs in order."""

    def __init__(self) -> None:
        require_gpu()
        properties = torch.cuda.get_device_properties()
        self.name: str = properties.name
        self.sm = 10 * properties.major + properties.minor
        self.bytes: int = properties.total_memory
        self._stream = torch.cuda.Stream()

    @property
    def stream(self) -> int:
        """The handle of the stream, as CUDA's own functions take it."""
        return self._stream.cuda_stream

    def active(self) -> AbstractContextManager[object]:
        """Make torch allocate for the stream, and enqueue on it."""
        return torch.cuda.stream(self._stream)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return device memory, aligned to 512 bytes by torch; only within `active`."""
        return torch.zeros(shape, dtype=dtype, device="cuda")

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return pinned host memory, to and from which copies are asynchronous."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def wait(self) -> None:
        """Block until all enqueued work is done."""
        self._stream.synchronize()

    def capture(self, work: Callable[[], bool]) -> Callable[[], None] | None:
        """Capture work in a CUDA graph; return its replay, None where it cannot be captured.

        Only within `active`. The work is recorded, not executed; it returns whether it was
        enqueued.
        """
        graph, done = torch.cuda.CUDAGraph(), False
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                done = work()
        except RuntimeError:  # CUDA refuses a call while it captures
            return None
        return graph.replay if done else None

    def used(self) -> int:
        """Return the bytes of device memory in use, by all processes."""
        free, total = torch.cuda.mem_get_info()
        return total - free

    def bandwidth(self, size: int) -> float:
        """Measure the read bandwidth of device memory over `size` bytes, in bytes a second."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        milliseconds: list[float] = []
        with self.active():
            numbers = torch.ones(size // 4, dtype=torch.float32, device="cuda")
            for _ in range(READS + 1):  # the first is slower: kernels are loaded
                start.record()
                numbers.sum()
                end.record()
                end.synchronize()
                milliseconds.append(start.elapsed_time(end))
        return size / min(milliseconds) * 1000


def require_gpu() -> None:
    """Raise DeviceError with the reason unless torch can use a GPU."""
    if torch.cuda.is_available():
        return
    found = any(Path(driver).exists() for driver in DRIVERS)
    if torch.version.cuda is None and found:
        raise DeviceError(
            f"torch {torch.__version__} is built for CPUs only: install one for CUDA, as"
            " `pip install --index-url https://download.pytorch.org/whl/cu130 'torch>=2.13,<2.14'`"
        )
    if found:
        raise DeviceError(
            f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use the GPU:"
            " see what `nvidia-smi` says; a newer driver is the usual remedy"
        )
    raise DeviceError("no NVIDIA GPU is here")
