"""Sounds of a user's: WAV files as they are, as nothing here resamples."""

import io
import struct
import wave
from typing import Any

import numpy as np

from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.pictures import content


def open_sound(source: Any, rate: int) -> np.ndarray:
    """Return a sound as float32 [samples], from -1 to 1.

    source: the path of a WAV file, its bytes, or float32 [samples] at the rate. Several channels
    become their mean. Raises PictureError for another file, another rate, or a damaged one.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 1 or source.dtype != np.float32 or not np.isfinite(source).all():
            raise PictureError(
                f"the sound is an array of {source.dtype} {list(source.shape)}; accepted: finite"
                f" float32 [samples], {rate} a second"
            )
        return source
    name, data = content(source, "the sound")
    remedy = f"convert it: ffmpeg -i IN -ac 1 -ar {rate} -c:a pcm_s16le OUT.wav"
    try:
        with wave.open(io.BytesIO(data or b"")) as file:
            channels, width, found = file.getnchannels(), file.getsampwidth(), file.getframerate()
            count = file.getnframes()
            if width > 4:
                raise ValueError(f"samples of {8 * width} bits")
            raw = file.readframes(count)
    except (wave.Error, EOFError, ValueError, RuntimeError, struct.error) as error:
        said = str(error) or "it ends early"
        raise PictureError(f"{name}: is no WAV file of plain PCM ({said}); {remedy}") from None
    if len(raw) < count * channels * width:
        raise PictureError(
            f"{name}: ends {count * channels * width - len(raw)} bytes early; it is damaged"
        )
    if found != rate:
        raise PictureError(
            f"{name}: has {found} samples a second; accepted: {rate}, as nothing here resamples;"
            f" {remedy}"
        )
    mono: np.ndarray = _samples(raw, width).reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mono


def _samples(raw: bytes, width: int) -> np.ndarray:
    """Return little-endian PCM as float32 from -1 to 1; 8 bits are unsigned, others signed."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    # To the upper bytes of 32 bits, the sign with them.
    wide = np.zeros((len(raw) // width, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(raw, np.uint8).reshape(-1, width)
    scaled: np.ndarray = wide.view("<i4")[:, 0].astype(np.float64) / (1 << 31)
    return scaled.astype(np.float32)
