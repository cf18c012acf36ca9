"""What one call of a graph on a GPU takes and gives, on the host and on the device."""

import math
from collections.abc import Mapping

import numpy as np

from lmcast.exporter.backends.cuda import Cuda, OutOfMemory
from lmcast.exporter.backends.images import FEATURES
from lmcast.exporter.dtypes import DTYPES

ALIGNED = 256  # bytes: of every address that a runtime is given
Inputs = Mapping[str, tuple[str, tuple[int | str, ...]]]


class Call:
    """The inputs and the logits of one call.

    inputs: what it takes besides states, by name: dtype and axes. sizes: of the axes: B rows, T
    tokens, R rows of logits, F features of pictures. vocab: V; dtype: of the logits on the device.
    """

    def __init__(self, gpu: Cuda, inputs: Inputs, sizes: Mapping[str, int], vocab: int, dtype: str):
        self.gpu, rows, wanted = gpu, sizes["B"], sizes["R"]
        self.shapes = {
            name: tuple(n if isinstance(n, int) else sizes[n] for n in axes)
            for name, (_, axes) in inputs.items()
        }
        self._places, end = dict[str, tuple[int, int]](), 0
        for name, (kind, _) in inputs.items():  # one after the other, so that one copy takes all
            size = DTYPES[kind].bytes * math.prod(self.shapes[name])
            self._places[name], end = (end, end + size), end + up(size)
        self._host = gpu.host((end,), "uint8")
        self._kinds = {name: DTYPES[kind].numpy for name, (kind, _) in inputs.items()}
        self._inputs = gpu.zeros((end,), "uint8")
        self._result = gpu.host((rows, wanted, vocab), dtype)
        self.logits = gpu.zeros((rows, wanted, vocab), dtype)

    def address(self, name: str) -> int:
        """Return the device address of an input."""
        return self._inputs.address + self._places[name][0]

    def put(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Enqueue the copy of the inputs to the device."""
        for name, (start, end) in self._places.items():
            self._host[start:end].view(self._kinds[name])[:] = inputs[name].ravel()
        self.gpu.put(self._inputs, self._host)

    def fits(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Say whether inputs have the sizes of this call."""
        return all(inputs[name].shape == shape for name, shape in self.shapes.items())

    def get(self) -> np.ndarray:
        """Wait for the call and return its logits B,R,V, as fp32."""
        self.gpu.get(self._result, self.logits)
        self.gpu.wait()
        return self._result.astype(np.float32)


def sizes_of(inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the sizes of a call's axes by its inputs."""
    (rows, tokens), wanted = inputs["input_ids"].shape, inputs["logit_rows"].shape[1]
    return {"B": rows, "T": tokens, "R": wanted, "F": len(inputs.get(FEATURES, ()))}


def no_room(rows: int, tokens: int, place: str) -> OutOfMemory:
    """Return the error of a call that finds too little memory; place: as of a Runner."""
    return OutOfMemory(
        f"{rows} rows of {tokens} tokens at once need more memory than {place} has free: run fewer"
        " rows, or shorter prompts"
    )


def up(size: int) -> int:
    """Return the next multiple of ALIGNED."""
    return -(-size // ALIGNED) * ALIGNED
