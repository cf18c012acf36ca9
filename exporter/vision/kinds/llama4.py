"""Llama 4: a picture is cut into square tiles, as many as suit its shape, and shown whole too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from lmcast.exporter.checkpoint.processors import PICTURES
from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.files import PixelKeys, ProcessorFiles, pixels, require_equal
from lmcast.exporter.vision.patches import VALUES, patches, places
from lmcast.exporter.vision.patches import numbers as in_float32
from lmcast.exporter.vision.processor import (
    Encoded,
    Handling,
    Kind,
    Merge,
    Patch,
    Pixels,
    Processor,
    Several,
    Side,
    require_whole,
)
from lmcast.exporter.vision.resize import resize
from lmcast.plugins.records import read

PICTURE, PATCH = "<|image|>", "<|patch|>"
BEGIN, END = "<|image_start|>", "<|image_end|>"
BETWEEN, AFTER = "<|tile_x_separator|>", "<|tile_y_separator|>"


@dataclass(frozen=True)
class Sizes:
    """side: pixels of a tile's side. tiles: most of a picture. patch: pixels of a patch's side.
    merge: patches of a token's side. enlarge: whether to fill the largest canvas that fits."""

    side: Side
    tiles: Several
    patch: Patch
    merge: Merge
    enlarge: bool

    def __post_init__(self) -> None:
        require_whole(self.side, self.patch * self.merge)


@dataclass(frozen=True)
class Keys:
    """Keys of the image processor."""

    size: Mapping[str, Side] | None = None
    max_patches: Several = 16
    resize_to_max_canvas: bool = False


@dataclass(frozen=True)
class OwnKeys:
    """Keys of processor_config.json; prompts have these texts whatever it says."""

    patch_size: Patch = 14
    pixel_shuffle_ratio: float = 0.5
    fake_image_token: Literal["<|image|>"] = "<|image|>"
    image_token: Literal["<|image|>"] = "<|image|>"
    start_of_image_token: Literal["<|image_start|>"] = "<|image_start|>"
    end_of_image_token: Literal["<|image_end|>"] = "<|image_end|>"
    patch_token: Literal["<|patch|>"] = "<|patch|>"
    tile_x_separator_token: Literal["<|tile_x_separator|>"] = "<|tile_x_separator|>"
    tile_y_separator_token: Literal["<|tile_y_separator|>"] = "<|tile_y_separator|>"


def read_files(files: ProcessorFiles) -> Processor:
    own = files.own.read(OwnKeys)
    section = files.section("image_processor", PICTURES, types=("Llama4ImageProcessor",))
    how, rest = pixels(section, PixelKeys(resample=2))
    keys = rest.read(Keys)
    side = rest.square("size", keys.size or {"height": 336, "width": 336})
    vision = files.config.vision_config
    merge = round(1 / vision.pixel_shuffle_ratio)
    require_equal(f"{rest.at}size", side, "vision_config.image_size", vision.image_size)
    require_equal(
        f"{files.own.at}patch_size", own.patch_size, "vision_config.patch_size", vision.patch_size
    )
    require_equal(
        f"{files.own.at}pixel_shuffle_ratio",
        own.pixel_shuffle_ratio,
        "vision_config.pixel_shuffle_ratio",
        vision.pixel_shuffle_ratio,
    )
    files.require_tokens(PICTURE, BEGIN, END, BETWEEN, AFTER)
    sizes = Sizes(side, keys.max_patches, vision.patch_size, merge, keys.resize_to_max_canvas)
    return Processor(
        kind="llama4",
        image=files.medium(PATCH, files.config.image_token_index, sizes, how, placeholder=PICTURE),
    )


def canvas(sizes: Sizes, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of the tiles that a picture suits: which enlarge it least, or else
    shrink it least, and of those the fewest."""
    shapes = [
        (rows, count // rows)
        for count in range(sizes.tiles, 0, -1)
        for rows in range(1, count + 1)
        if count % rows == 0
    ]
    sides = np.array(shapes, np.float32) * np.float32(sizes.side)
    scales = (sides / np.array([height, width], np.float32)).min(axis=1)
    larger = scales[scales >= 1]
    chosen = scales.max() if not len(larger) or sizes.enlarge else larger.min()
    fitting = [shape for shape, scale in zip(shapes, scales, strict=True) if scale == chosen]
    return min(fitting, key=lambda shape: shape[0] * shape[1])


def fitted(sizes: Sizes, shape: tuple[int, int], tiles: tuple[int, int]) -> tuple[int, int]:
    """Return the size of a picture on its canvas, as large as fits at the picture's aspect; a small
    one grows to a tile at most."""
    height, width = shape
    most_height, most_width = (count * sizes.side for count in tiles)
    if not sizes.enlarge:
        most_height = min(max(height, sizes.side), most_height)
        most_width = min(max(width, sizes.side), most_width)
    by_height, by_width = most_height / height, most_width / width
    if by_width < by_height:
        fit = (min(int(height * by_width), most_height), most_width)
    else:
        fit = (most_height, min(int(width * by_height), most_width))
    return max(fit[0], 1), max(fit[1], 1)


def numbers(how: Pixels) -> np.ndarray:
    """Return what each value 0..255 becomes, float32 [3, 256]: in BF16, rounded at every step, as
    Llama 4 was trained."""
    if how.mean is None or how.std is None:
        return in_float32(how)
    bf16 = ml_dtypes.bfloat16
    scaled = (VALUES.astype(bf16).astype(np.float32) * np.float32(how.rescale)).astype(bf16)
    rows = []
    for mean, std in zip(how.mean, how.std, strict=True):
        shifted = (scaled.astype(np.float32) - np.float32(bf16(mean))).astype(bf16)
        rows.append((shifted.astype(np.float32) / np.float32(bf16(std))).astype(bf16))
    return np.stack(rows).astype(np.float32)


def encode(processor: Processor, picture: np.ndarray) -> list[Encoded]:
    """Return the tiles row by row, then the whole picture where there are several; N is these."""
    image = processor.image
    sizes = read(Sizes, dict(image.sizes))
    assert image.pixels is not None
    side, how = sizes.side, image.pixels.resample
    shape = picture.shape[0], picture.shape[1]
    rows, columns = canvas(sizes, *shape)
    height, width = fitted(sizes, shape, (rows, columns))
    filled = np.zeros((rows * side, columns * side, 3), np.uint8)
    filled[:height, :width] = resize(picture, height, width, how)
    tiles = filled.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    if len(tiles) > 1:
        tiles = np.concatenate([tiles, resize(picture, side, side, how)[None]])
    count = side // sizes.patch
    grid, merged = (1, count, count), (count // sizes.merge, count // sizes.merge)
    cut = patches(tiles[:, None, None], numbers(image.pixels), sizes.patch, sizes.merge)
    tile = PATCH * (merged[0] * merged[1])
    shown = (BETWEEN.join([tile] * columns) + AFTER) * rows if rows * columns > 1 else ""
    return [
        Encoded(
            medium="image",
            grid=grid,
            inputs={"patches": cut, **places(grid, sizes.merge)},
            text=f"{BEGIN}{shown}{PICTURE}{tile}{END}",
            merged=merged,
            features=len(tiles) * merged[0] * merged[1],
        )
    ]


def features(processor: Processor, height: int, width: int) -> int:
    sizes = read(Sizes, dict(processor.image.sizes))
    rows, columns = canvas(sizes, height, width)
    tiles = rows * columns + (rows * columns > 1)
    return tiles * (sizes.side // sizes.patch // sizes.merge) ** 2


def capped(raw: Mapping[str, Any], most_pixels: int) -> dict[str, Any]:
    """Fewer tiles: their pixels are those of the canvas."""
    sizes = read(Sizes, dict(raw))
    if (most := most_pixels // sizes.side**2) < 1:
        raise PictureError(
            f"a tile of this model has {sizes.side**2} pixels; allow as many or more"
        )
    return {**raw, "tiles": min(sizes.tiles, most)}


KIND = Kind(
    name="llama4",
    models=("llama4",),
    read=read_files,
    media={"image": Handling(Sizes, encode, features, capped, fixed=True)},
)
