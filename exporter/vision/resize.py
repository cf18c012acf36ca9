"""Resizing as torchvision resizes uint8 pictures on a CPU with AVX2, to the last bit, in numpy.

Two passes with antialiasing, horizontal first, rounded to uint8 between them; weights are integers,
as in Pillow, but with as many bits as fit into 16 (the interpolation of uint8 tensors in PyTorch,
`aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h`).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from lmcast.exporter.vision.errors import PictureError

Filter = Literal["bilinear", "bicubic"]
REACH = {"bilinear": 1, "bicubic": 2}  # inputs on either side of a centre, at a scale of 1
MOST_BITS = 22
BLOCK = 24  # outputs of one matrix product: wider ones multiply by more zeros


def resize(picture: np.ndarray, height: int, width: int, how: Filter) -> np.ndarray:
    """Return a picture uint8 [H, W, C] as uint8 [height, width, C]."""
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    planes = _along_last(planes, width, how)
    turned = np.ascontiguousarray(planes.transpose(0, 2, 1))
    return np.ascontiguousarray(_along_last(turned, height, how).transpose(2, 1, 0))


def resize_frames(
    frames: Sequence[np.ndarray], height: int, width: int, how: Filter
) -> list[np.ndarray]:
    """Return frames of a video likewise; raises PictureError where they are not of one size."""
    shape, found = None, []
    for frame in frames:
        if shape not in (None, frame.shape):
            raise PictureError(
                f"the video has frames of {_size(shape)} and of {_size(frame.shape)} pixels; give"
                " frames of one size"
            )
        shape = frame.shape
        found.append(resize(frame, height, width, how))
    return found


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _along_last(planes: np.ndarray, size: int, how: Filter) -> np.ndarray:
    """Return uint8 [C, A, in] as uint8 [C, A, size]; an axis that keeps its size is as it was."""
    channels, rows, before = planes.shape
    if before == size:
        return planes
    first, weights, bits = axis_weights(before, size, how)
    flat = planes.reshape(channels * rows, before)
    result = np.empty((channels * rows, size), np.uint8)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        low = int(first[start])
        high = int((first[start:stop] + weights.shape[1]).max())
        matrix = np.zeros((high - low, stop - start))
        for column in range(stop - start):
            at = int(first[start + column]) - low
            matrix[at : at + weights.shape[1], column] = weights[start + column]
        # Integers below 2**53: exact in float64. Weights beyond the last input are zeros.
        sums = flat[:, low : min(high, before)].astype(np.float64) @ matrix[: before - low]
        sums = np.floor((sums + (1 << (bits - 1))) / (1 << bits))
        result[:, start:stop] = np.clip(sums, 0, 255)
    return result.reshape(channels, rows, size)


@lru_cache(maxsize=64)
def axis_weights(before: int, after: int, how: Filter) -> tuple[np.ndarray, np.ndarray, int]:
    """Return of an axis the first input of every output int64 [after], the weights from there on
    int64 [after, taps], filled up with zeros, and how many bits their fractions have."""
    scale = before / after
    stretched = max(scale, 1.0)
    reach = REACH[how] * stretched
    centres = (np.arange(after) + 0.5) * scale
    first = np.maximum(np.floor(centres - reach + 0.5), 0).astype(np.int64)
    last = np.minimum(np.floor(centres + reach + 0.5), before).astype(np.int64)
    taps = int((last - first).max())
    inputs = first[:, None] + np.arange(taps)
    shares = FILTERS[how]((inputs - centres[:, None] + 0.5) / stretched)
    shares = np.where(inputs < last[:, None], shares, 0.0)
    shares /= shares.sum(axis=1, keepdims=True)
    largest = shares.max()
    bits = next(p for p in range(MOST_BITS, 0, -1) if math.floor(0.5 + 2**p * largest) < 1 << 15)
    # Half away from zero; np.round would take halves to even.
    weights = np.trunc(shares * (1 << bits) + np.copysign(0.5, shares)).astype(np.int64)
    first.flags.writeable = weights.flags.writeable = False
    return first, weights, bits


def triangle(x: np.ndarray) -> np.ndarray:
    weight: np.ndarray = np.maximum(1.0 - np.abs(x), 0.0)
    return weight


def keys(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """The cubic convolution of Keys (1981): -0.5 where pictures are resized, as in Pillow."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


FILTERS = {"bilinear": triangle, "bicubic": keys}
