"""Mistral 3 (Pixtral's processor): any size up to a longest edge, a token that ends each row."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcast.exporter.checkpoint.processors import PICTURES
from lmcast.exporter.vision.files import (
    PixelKeys,
    ProcessorFiles,
    Section,
    pixels,
    require_equal,
)
from lmcast.exporter.vision.patches import numbers, patches, places
from lmcast.exporter.vision.processor import (
    Encoded,
    Handling,
    Kind,
    Mark,
    Merge,
    Patch,
    Processor,
    Side,
)
from lmcast.exporter.vision.resize import resize
from lmcast.plugins.records import read

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sizes:
    """longest: most pixels of a side before it is filled up to whole tokens. patch: pixels of a
    patch's side. merge: patches of a token's side."""

    longest: Side
    patch: Patch
    merge: Merge


@dataclass(frozen=True)
class Keys:
    """Keys of the image processor. patch_size is not read: the processor's own replaces it."""

    size: Mapping[str, Side] | None = None
    do_pad: bool = True  # in a batch; a call of the tower has one grid


@dataclass(frozen=True)
class OwnKeys:
    """Keys of processor_config.json."""

    patch_size: Patch = 16
    spatial_merge_size: Merge = 1
    image_token: Mark = "[IMG]"
    image_break_token: Mark = "[IMG_BREAK]"
    image_end_token: Mark = "[IMG_END]"


def read_files(files: ProcessorFiles) -> Processor:
    own = files.own.read(OwnKeys)
    section = files.section("image_processor", PICTURES, types=("PixtralImageProcessor",))
    how, rest = pixels(section, PixelKeys(image_mean=MEAN, image_std=STD))
    keys = rest.without({"patch_size"}).read(Keys)
    patch, merge = files.config.vision_config.patch_size, files.config.spatial_merge_size
    at = files.own.at
    require_equal(f"{at}patch_size", own.patch_size, "vision_config.patch_size", patch)
    require_equal(f"{at}spatial_merge_size", own.spatial_merge_size, "spatial_merge_size", merge)
    sizes = Sizes(longest_edge(rest, keys.size), patch, merge)
    files.require_tokens(own.image_break_token, own.image_end_token)
    id = files.config.image_token_index
    return Processor(
        kind="mistral3",
        image=files.medium(own.image_token, id, sizes, how),
        marks={"break": own.image_break_token, "end": own.image_end_token},
    )


def longest_edge(section: Section, size: Mapping[str, int] | None) -> int:
    """Return the longest edge of a `size`."""
    given = {"longest_edge": 1024} if size is None else dict(size)
    return section.only("size", given, "longest_edge")["longest_edge"]


def resized(sizes: Sizes, height: int, width: int) -> tuple[int, int]:
    """Return the pixels of a picture after resizing: rounded down, then up to whole tokens.

    A side that rounds to nothing is a pixel: transformers fails, but only edges below 200 reach it.
    """
    ratio = max(height, width) / sizes.longest
    if ratio > 1:
        height = max(math.floor(height / ratio), 1)
        width = max(math.floor(width / ratio), 1)
    unit = sizes.patch * sizes.merge
    return ((height - 1) // unit + 1) * unit, ((width - 1) // unit + 1) * unit


def encode(processor: Processor, picture: np.ndarray) -> list[Encoded]:
    image = processor.image
    sizes = read(Sizes, dict(image.sizes))
    assert image.pixels is not None
    height, width = resized(sizes, *picture.shape[:2])
    made = resize(picture, height, width, image.pixels.resample)
    grid = (1, height // sizes.patch, width // sizes.patch)
    rows, columns = grid[1] // sizes.merge, grid[2] // sizes.merge
    cut = patches(made[None, None, None], numbers(image.pixels), sizes.patch, sizes.merge)
    row = image.token * columns + processor.marks["break"]
    return [
        Encoded(
            medium="image",
            grid=grid,
            inputs={"patches": cut, **places(grid, sizes.merge)},
            text=(row * rows).removesuffix(processor.marks["break"]) + processor.marks["end"],
            merged=(rows, columns),
            features=rows * columns,
        )
    ]


def features(processor: Processor, height: int, width: int) -> int:
    sizes = read(Sizes, dict(processor.image.sizes))
    unit = sizes.patch * sizes.merge
    height, width = resized(sizes, height, width)
    return (height // unit) * (width // unit)


def capped(raw: Mapping[str, Any], most_pixels: int) -> dict[str, Any]:
    """A square picture is the largest: its side is whole tokens, so that none exceeds it."""
    sizes = read(Sizes, dict(raw))
    unit = sizes.patch * sizes.merge
    return {**raw, "longest": min(sizes.longest, max(math.isqrt(most_pixels) // unit, 1) * unit)}


KIND = Kind(
    name="mistral3",
    models=("mistral3",),
    read=read_files,
    media={"image": Handling(Sizes, encode, features, capped)},
    marks=("break", "end"),
)
