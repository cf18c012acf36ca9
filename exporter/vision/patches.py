"""Pixels cut into patches in the order in which they merge, and the index tables of a grid.

N pictures of one grid, t frames that attend as one, f frames within a patch, p pixels of a patch's
side, k patches of a token's side: M = gh/k * gw/k tokens in raster order, K = t*k*k patches of a
token in frame, row, column order, E = 3*f*p*p numbers of a patch, channel slowest.
"""

from typing import Literal

import numpy as np

from lmcast.exporter.vision.processor import Pixels
from lmcast.exporter.vision.resize import keys

VALUES = np.arange(256)


def numbers(pixels: Pixels) -> np.ndarray:
    """Return what each value 0..255 becomes, float32 [3, 256]: as transformers' step that is fused
    of scaling and normalizing, mean and std scaled up and rounded to float32 first."""
    values = VALUES.astype(np.float32)
    if pixels.mean is None or pixels.std is None:
        return np.broadcast_to(values * np.float32(pixels.rescale), (3, 256))
    upward = np.float32(1.0 / pixels.rescale)
    mean = np.array(pixels.mean, np.float32)[:, None] * upward
    std = np.array(pixels.std, np.float32)[:, None] * upward
    scaled: np.ndarray = (values - mean) / std
    return scaled


def patches(frames: np.ndarray, table: np.ndarray, side: int, merge: int) -> np.ndarray:
    """Return uint8 [N, t, f, H, W, 3] as float32 [N, M, K, E] by a table of values [3, 256]."""
    n, t, f, height, width, _ = frames.shape
    gh, gw = height // side, width // side
    cut = frames.reshape(n, t, f, gh // merge, merge, side, gw // merge, merge, side, 3)
    cut = cut.transpose(0, 3, 6, 1, 4, 7, 9, 2, 5, 8)
    cut = cut.reshape(n, gh * gw // merge**2, t * merge**2, 3, f * side**2)
    result = np.empty(cut.shape, np.float32)
    for channel in range(3):
        result[..., channel, :] = table[channel][cut[..., channel, :]]
    return result.reshape(*cut.shape[:3], -1)


def merged(of_grid: np.ndarray, merge: int) -> np.ndarray:
    """Return what is given of every patch, [t, gh, gw, ...], as [M, K, ...]."""
    t, gh, gw, *rest = of_grid.shape
    cut = of_grid.reshape(t, gh // merge, merge, gw // merge, merge, *rest)
    cut = np.moveaxis(cut, (1, 3, 0, 2, 4), (0, 1, 2, 3, 4))
    return np.ascontiguousarray(cut.reshape(gh * gw // merge**2, t * merge**2, *rest))


def places(grid: tuple[int, int, int], merge: int) -> dict[str, np.ndarray]:
    """Return row and column of every patch, int64 [M, K] each."""
    _, rows, columns = np.indices(grid)
    return {"rows": merged(rows, merge), "columns": merged(columns, merge)}


def taps(
    grid: tuple[int, int, int], merge: int, table: tuple[int, int], how: Literal["linear", "cubic"]
) -> dict[str, np.ndarray]:
    """Return which rows of a learned table of positions a patch takes, and how much of each.

    table: its rows and columns; index row * columns + column. Returns taps int64 [M, K, J] and
    weights float32 [M, K, J]: J 4 ("linear": bilinear, the corners of table and grid in the same
    place), or 16 ("cubic": bicubic, centres in the same place).
    """
    axis = {"linear": _linear, "cubic": _cubic}[how]
    t, gh, gw = grid
    (row_taps, row_weights), (column_taps, column_weights) = axis(gh, table[0]), axis(gw, table[1])
    index = row_taps[:, None, :, None] * table[1] + column_taps[None, :, None, :]
    weights = row_weights[:, None, :, None] * column_weights[None, :, None, :]
    shape = (t, gh, gw, index.shape[2] * index.shape[3])
    return {
        "taps": merged(np.broadcast_to(index.reshape(1, *shape[1:]), shape), merge),
        "weights": merged(np.broadcast_to(weights.reshape(1, *shape[1:]), shape), merge),
    }


def _linear(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    at = np.arange(count, dtype=np.float32) * np.float32(side - 1) / np.float32(max(count - 1, 1))
    chosen = np.floor(at).astype(np.int64)[:, None] + np.arange(2)
    weights = np.maximum(np.float32(1) - np.abs(at[:, None] - chosen.astype(np.float32)), 0)
    return np.minimum(chosen, side - 1), weights.astype(np.float32)


def _cubic(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    half = np.float32(0.5)
    at = (np.arange(count, dtype=np.float32) + half) * np.float32(side) / np.float32(count) - half
    chosen = np.floor(at).astype(np.int64)[:, None] + np.arange(-1, 3)
    # PyTorch's bicubic interpolation without antialiasing has this parameter of the kernel.
    weights = keys(at[:, None] - chosen.astype(np.float32), -0.75)
    return np.clip(chosen, 0, side - 1), weights.astype(np.float32)
