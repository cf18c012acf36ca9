"""Pictures and videos of a user's: opened without trusting them, each picture as one plain array.

Pillow, an extra, decodes files; what else it does is what transformers does to a picture that a
program has opened: transparency over white, and RGB; and the orientation that EXIF tells.
"""

import io
import os
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import read_capped
from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.processor import Clip, Processor, frame_indices

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats that pictures come in. Others of Pillow's are of old, run other programs, or, as TIFF, are
# decoded by a library that holds a dozen more and writes to standard error itself.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "AVIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".avif")
MOST_BYTES = 1 << 28  # of a file
MOST_PIXELS = 1 << 26  # of a picture; each takes three bytes once decoded
MOST_VIDEO_PIXELS = 1 << 33  # of all frames of an animated file, each of which must be decoded
# What Pillow raises for damaged files: each of its formats has some of its own.
DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, LookupError, TypeError,
    ArithmeticError, AttributeError, RuntimeError, MemoryError,
)  # fmt: skip


def open_picture(source: Any, limit: int = MOST_PIXELS) -> np.ndarray:
    """Return a picture as uint8 [H, W, 3], RGB.

    source: a path, the bytes of a file, an image of Pillow's, or uint8 [H, W, 3]. Of an animated
    file the first frame. limit: most pixels, checked before decoding. Raises PictureError for what
    is none of these, damaged, or larger; ModuleNotFoundError without Pillow, which arrays alone do
    without.
    """
    if isinstance(source, np.ndarray):
        return _array(source, limit)
    name, data = content(source, "the picture")
    return _converted(source if data is None else _opened(data, name, limit), name, limit)


def open_video(
    source: Any, processor: Processor, rate: float | None = None, limit: int = MOST_PIXELS
) -> Clip:
    """Return the frames of a video that a model takes, each decoded when it is asked for.

    source: a folder of pictures, in the order of their names, numbers in them by value; an animated
    file, or its bytes; a list of what `open_picture` takes, or uint8 [frames, H, W, 3].
    rate: frames a second; None: as an animated file says. Raises PictureError as `open_picture`,
    and where nothing says a rate.
    """
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        source, name = _files(Path(source)), os.fspath(source)
    else:
        name = "the video"
    if isinstance(source, np.ndarray) and (source.ndim != 4 or source.dtype != np.uint8):
        raise PictureError(
            f"{name} is an array of {source.dtype} {list(source.shape)}; accepted: uint8 [frames,"
            " height, width, 3]"
        )
    if isinstance(source, list | tuple | np.ndarray):
        used = _rate(rate, name)
        chosen = frame_indices(processor, len(source), used)
        return _clip(chosen, used, lambda i: open_picture(source[i], limit))
    name, data = content(source, name)
    if data is None:
        raise PictureError(f"{name}: is no video; give a folder of pictures or an animated file")
    image = _opened(data, name, limit)
    count = _frame_count(image, name)
    used = _rate(rate if rate is not None else _own_rate(image, count, name), name)
    chosen = frame_indices(processor, count, used)
    return _clip(chosen, used, lambda i: _converted(_at(image, i, name), name, limit))


class Frames(Sequence[np.ndarray]):
    """Frames that are decoded when they are asked for: many at full size would not fit."""

    def __init__(self, length: int, take: Callable[[int], np.ndarray]):
        self.length, self.take = length, take

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, at: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: slice) -> "Frames": ...
    def __getitem__(self, at: int | slice) -> "np.ndarray | Frames":
        if isinstance(at, slice):
            within = range(self.length)[at]
            return Frames(len(within), lambda i: self.take(within[i]))
        return self.take(range(self.length)[at])


def content(source: Any, usual: str) -> tuple[str, bytes | None]:
    """Return what to call a source, and its bytes: None of an image of Pillow's.

    Raises PictureError for anything but a path, bytes, or such an image.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return usual, bytes(source)
    pillow = sys.modules.get("PIL.Image")  # where it is not loaded there is no image of its
    if pillow is not None and isinstance(source, pillow.Image):
        return usual, None
    if not isinstance(source, str | os.PathLike) or isinstance(os.fspath(source), bytes):
        raise PictureError(
            f"{usual} is a {type(source).__name__}; accepted: a path, the bytes of a file, an image"
            " of Pillow's, or an array"
        )
    name = os.fspath(source)
    if re.match(r"(https?|file|ftp|s3|data):", name):
        raise PictureError(f"{name:.80}: is a URL, and nothing here downloads; give a file")
    try:
        return name, read_capped(Path(name), MOST_BYTES)
    except CheckpointError as error:
        raise PictureError(str(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise PictureError(f"{name!r:.80}: is no path: {error}") from None


def _array(source: np.ndarray, limit: int) -> np.ndarray:
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
        raise PictureError(
            f"the picture is an array of {source.dtype} {list(source.shape)}; accepted: uint8"
            " [height, width, 3], red, green, blue"
        )
    _require_few(source.shape[1], source.shape[0], "the picture", limit)
    return np.ascontiguousarray(source)


def _require_few(width: int, height: int, name: str, limit: int) -> None:
    if width * height > limit:
        raise PictureError(
            f"{name}: has {width}x{height} pixels; accepted: up to {limit} pixels; make it smaller"
        )


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Say of what Pillow raises that a file is damaged, and keep what it warns of to itself."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except PictureError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise PictureError(
            f"{name}: has more than {most} pixels; accepted: up to {MOST_PIXELS}; make it smaller"
        ) from None
    except DAMAGED as error:
        raise PictureError(f"{name}: cannot be decoded, so it is damaged: {error}") from None


def _opened(data: bytes, name: str, limit: int) -> "Image":
    """Return the image of a file, of which no pixel has been decoded."""
    from PIL import Image, UnidentifiedImageError

    with _decoding(name):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise PictureError(
                f"{name}: is no picture in a format that is read: {', '.join(FORMATS)}; convert it"
            ) from None
    _require_few(*image.size, name, limit)
    return image


def _converted(image: "Image", name: str, limit: int) -> np.ndarray:
    """Return an image, or the frame that it is at, upright and in RGB."""
    from PIL import Image, ImageOps

    _require_few(*image.size, name, limit)
    with _decoding(name):
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            # Pillow would cut values off at 255; the high byte is what it keeps of 16-bit RGB.
            grey = (np.array(upright).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if upright.mode in ("I", "F"):
            raise PictureError(
                f"{name}: has values of 32 bits (mode {upright.mode}), whose white is not known;"
                " save it with 8 bits"
            )
        if "A" in upright.getbands() or upright.info.get("transparency") is not None:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
            upright = Image.alpha_composite(white, upright)
        return np.array(upright.convert("RGB"))


def _files(folder: Path) -> list[Path]:
    """Return the pictures of a folder in order; raises PictureError for anything else in it."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if other := sorted(path.name for path in found if path.suffix.lower() not in SUFFIXES):
        raise PictureError(
            f"{folder}: holds {other[0]!r}, which is no frame of a video; accepted: pictures alone"
        )
    if not found:
        raise PictureError(f"{folder}: holds no pictures, which are the frames of a video")
    return sorted(found, key=lambda path: _ordered(path.name))


def _ordered(name: str) -> list[tuple[int, str]]:
    """Return what orders names: numbers in them by value."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _rate(rate: float | None, name: str) -> float:
    if rate is None:
        raise PictureError(f"{name}: says no frames a second; say how many (--fps)")
    if not 0 < rate < 1e6:
        raise PictureError(
            f"{rate} frames a second; accepted: more than 0, and less than a million"
        )
    return rate


def _clip(chosen: np.ndarray, rate: float, take: Callable[[int], np.ndarray]) -> Clip:
    at = chosen.tolist()
    return Clip(Frames(len(at), lambda i: take(at[i])), tuple(index / rate for index in at))


def _frame_count(image: "Image", name: str) -> int:
    with _decoding(name):
        count = int(getattr(image, "n_frames", 1))
    if count < 2:
        raise PictureError(f"{name}: has a single frame, so it is no video; give it as a picture")
    if count * image.size[0] * image.size[1] > MOST_VIDEO_PIXELS:
        raise PictureError(
            f"{name}: has {count} frames of {image.size[0]}x{image.size[1]} pixels; accepted: up to"
            f" {MOST_VIDEO_PIXELS} pixels in all; make it smaller or shorter"
        )
    return count


def _own_rate(image: "Image", count: int, name: str) -> float | None:
    """Return the mean rate of an animated file; None where a frame does not say how long it is."""
    milliseconds = [_at(image, i, name).info.get("duration") or 0 for i in range(count)]
    return count / (sum(milliseconds) / 1000) if all(milliseconds) else None


def _at(image: "Image", index: int, name: str) -> "Image":
    with _decoding(name):
        image.seek(index)
        image.load()  # some formats know of a frame only then how long it is shown
    return image
