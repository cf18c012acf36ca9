"""What one call of a graph on a GPU takes and gives, on the host and on the device."""

import math
from collections.abc import Mapping

import numpy as np

from lmcast.exporter.backends.cuda import Cuda, OutOfMemory
from lmcast.exporter.backends.runner import INPUTS

ALIGNED = 256  # bytes: of every address that a runtime is given


class Call:
    """The inputs and the logits of one call.

    sizes: B rows, T tokens, R rows of logits; vocab: V; dtype: of the logits on the device.
    """

    def __init__(self, gpu: Cuda, sizes: tuple[int, int, int], vocab: int, dtype: str):
        self.gpu, (rows, tokens, wanted) = gpu, sizes
        shapes = ((rows, tokens), (rows,), (rows,), (rows, wanted))
        self.shapes = dict(zip(INPUTS, shapes, strict=True))
        starts = [0]
        for shape in shapes:  # one after the other, so that one copy takes all
            starts.append(starts[-1] + up(8 * math.prod(shape)) // 8)
        self._starts = dict(zip(INPUTS, starts, strict=False))
        self._host = gpu.host((starts[-1],), "int64")
        self._inputs = gpu.zeros((starts[-1],), "int64")
        self._result = gpu.host((rows, wanted, vocab), dtype)
        self.logits = gpu.zeros((rows, wanted, vocab), dtype)

    def address(self, name: str) -> int:
        """Return the device address of an input."""
        return self._inputs.address + 8 * self._starts[name]

    def put(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Enqueue the copy of the inputs to the device."""
        for name, start in self._starts.items():
            self._host[start : start + inputs[name].size] = inputs[name].ravel()
        self.gpu.put(self._inputs, self._host)

    def get(self) -> np.ndarray:
        """Wait for the call and return its logits B,R,V, as fp32."""
        self.gpu.get(self._result, self.logits)
        self.gpu.wait()
        return self._result.astype(np.float32)


def no_room(rows: int, tokens: int, place: str) -> OutOfMemory:
    """Return the error of a call that finds too little memory; place: as of a Runner."""
    return OutOfMemory(
        f"{rows} rows of {tokens} tokens at once need more memory than {place} has free: run fewer"
        " rows, or shorter prompts"
    )


def up(size: int) -> int:
    """Return the next multiple of ALIGNED."""
    return -(-size // ALIGNED) * ALIGNED
