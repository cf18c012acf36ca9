"""Log-mel frames of a sound, as Gemma 3n takes them (`Gemma3nAudioFeatureExtractor`)."""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lmcast.plugins.annotations import Range
from lmcast.plugins.records import RecordError

Size = Annotated[int, Range(1, 1 << 16)]
Hertz = Annotated[float, Range(1.0, 1e6)]


@dataclass(frozen=True)
class Mel:
    """rate: samples a second. frame, hop: samples of a frame, and from one to the next. fft:
    samples that a frame is filled up to. bands: from `low` to `high`. floor: least sum of a band.
    emphasis: how much of the sample before is taken away. multiple: of samples, which zeros fill up
    to."""

    rate: Size
    frame: Size
    hop: Size
    fft: Size
    bands: Annotated[int, Range(1, 1 << 10)]
    low: Hertz
    high: Hertz
    floor: Annotated[float, Range(1e-12, 1.0)]
    emphasis: Annotated[float, Range(0.0, 1.0)]
    multiple: Size

    def __post_init__(self) -> None:
        if self.fft < self.frame or not self.low < self.high <= self.rate:
            raise RecordError(
                f"fft {self.fft}, low {self.low}, high {self.high}: accepted: {self.frame} or more,"
                f" and ascending up to {self.rate}"
            )

    def count(self, samples: int) -> int:
        """Return how many frames a sound has."""
        full = -(-samples // self.multiple) * self.multiple
        return max((full - self.frame - 1) // self.hop + 1, 0)

    def most(self, frames: int) -> int:
        """Return the samples of the longest sound of at most so many frames."""
        return (frames * self.hop + self.frame) // self.multiple * self.multiple


def frames(mel: Mel, samples: np.ndarray) -> np.ndarray:
    """Return float32 [samples] as float32 [frames, bands].

    Pre-emphasis within each frame, in the way of HTK; a periodic Hann window; magnitudes.
    """
    full = np.zeros(-(-len(samples) // mel.multiple) * mel.multiple, np.float32)
    full[: len(samples)] = samples
    # One more than a frame: emphasis takes the sample before.
    cut = np.lib.stride_tricks.sliding_window_view(full, mel.frame + 1)[:: mel.hop]
    first = cut[:, :1] * (1.0 - mel.emphasis)
    shaped = np.concatenate([first, cut[:, 1:-1] - mel.emphasis * cut[:, :-2]], axis=1)
    turn = 2 * np.pi * np.arange(mel.frame, dtype=np.float32) / mel.frame
    window = (0.5 * (1 - np.cos(turn))).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(shaped * window, n=mel.fft, axis=-1))
    logs: np.ndarray = np.log(np.maximum(spectrum @ bands(mel), mel.floor)).astype(np.float32)
    return logs


def bands(mel: Mel) -> np.ndarray:
    """Return how much of each frequency each band takes, float64 [fft / 2 + 1, bands]: triangles
    that are even on the mel scale of HTK."""
    low, high = (2595.0 * math.log10(1.0 + hertz / 700.0) for hertz in (mel.low, mel.high))
    corners = 700.0 * (10 ** (np.linspace(low, high, mel.bands + 2) / 2595.0) - 1.0)
    frequencies = np.arange(mel.fft // 2 + 1, dtype=np.float32) * (mel.rate / mel.fft)
    slopes = corners - frequencies[:, None]
    widths = np.diff(corners)
    sides = np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:])
    triangles: np.ndarray = np.maximum(sides, 0.0)
    return triangles
