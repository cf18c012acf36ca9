"""Gemma 3: one square size, whatever the picture's; crops along its longer side where asked for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmcast.exporter.checkpoint.processors import PICTURES
from lmcast.exporter.vision.files import PixelKeys, ProcessorFiles, pixels, require_equal
from lmcast.exporter.vision.patches import numbers, patches, places
from lmcast.exporter.vision.positions import visible_ends
from lmcast.exporter.vision.processor import (
    Encoded,
    Handling,
    Kind,
    Many,
    Merge,
    Patch,
    Processor,
    Ratio,
    Several,
    Side,
    require_whole,
)
from lmcast.exporter.vision.resize import resize
from lmcast.plugins.records import read

# As transformers asks for crops, whatever files say: only in a call.
CALLS = {
    "do_pan_and_scan",
    "pan_and_scan_min_crop_size",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
}


@dataclass(frozen=True)
class Sizes:
    """side: pixels of a resized picture's side. patch: of a patch's. merge: patches of a token's.

    pan_and_scan: whether pictures that are min_ratio times as long as wide, or more, are also shown
    as at most max_crops crops, of min_crop pixels or more.
    """

    side: Side
    patch: Patch
    merge: Merge
    pan_and_scan: bool = False
    min_crop: Side = 256
    max_crops: Several = 4
    min_ratio: Ratio = 1.2

    def __post_init__(self) -> None:
        require_whole(self.side, self.patch * self.merge)


@dataclass(frozen=True)
class Keys:
    """Keys of the image processor."""

    size: Mapping[str, Side] | None = None


@dataclass(frozen=True)
class OwnKeys:
    """Keys of processor_config.json."""

    image_seq_length: Many = 256


def read_files(files: ProcessorFiles) -> Processor:
    own = files.own.read(OwnKeys)
    section = files.section("image_processor", PICTURES, types=("Gemma3ImageProcessor",))
    how, rest = pixels(section, PixelKeys(resample=2))
    given = rest.read(Keys, CALLS).size or {"height": 224, "width": 224}
    side = rest.square("size", given)
    config = files.config
    require_equal(
        f"{rest.at}size", side, "vision_config.image_size", config.vision_config.image_size
    )
    tokens = config.mm_tokens_per_image
    require_equal(
        f"{files.own.at}image_seq_length", own.image_seq_length, "mm_tokens_per_image", tokens
    )
    patch = config.vision_config.patch_size
    begin, end = files.token("boi_token", BEGIN), files.token("eoi_token", END)
    files.require_tokens(begin, end)
    return Processor(
        kind="gemma3",
        image=files.medium(
            files.token("image_token", "<image_soft_token>"),
            config.image_token_index,
            Sizes(side, patch, side // patch // math.isqrt(tokens)),
            how,
            placeholder=begin,
        ),
        marks={"begin": begin, "end": end},
    )


BEGIN, END = "<start_of_image>", "<end_of_image>"


def crops(sizes: Sizes, picture: np.ndarray) -> list[np.ndarray]:
    """Return the crops along the longer side, none where the picture is not long enough."""
    axis = 1 if picture.shape[1] >= picture.shape[0] else 0
    long, short = picture.shape[axis], picture.shape[1 - axis]
    if not sizes.pan_and_scan or long / short < sizes.min_ratio:
        return []
    count = min(long // sizes.min_crop, math.floor(long / short + 0.5))
    count = min(max(2, count), sizes.max_crops)
    length = math.ceil(long / count)
    if min(length, short) < sizes.min_crop:
        return []
    parts = np.split(picture, range(length, length * count, length), axis=axis)
    return [part for part in parts if part.size]


def encode(processor: Processor, picture: np.ndarray) -> list[Encoded]:
    """Return the whole picture, then its crops, in one: N is 1 and the crops."""
    image = processor.image
    sizes = read(Sizes, dict(image.sizes))
    assert image.pixels is not None
    shown = [picture, *crops(sizes, picture)]
    made = np.stack([resize(each, sizes.side, sizes.side, image.pixels.resample) for each in shown])
    count = sizes.side // sizes.patch
    grid, merged = (1, count, count), (count // sizes.merge, count // sizes.merge)
    cut = patches(made[:, None, None], numbers(image.pixels), sizes.patch, sizes.merge)
    tokens = image.token * (merged[0] * merged[1])
    one = f"\n\n{processor.marks['begin']}{tokens}{processor.marks['end']}\n\n"
    text = one
    if further := len(shown) - 1:
        text = (
            f"Here is the original image {one} and here are some crops to help you see better "
            + " ".join([one] * further)
        )
    return [
        Encoded(
            medium="image",
            grid=grid,
            inputs={"patches": cut, **places(grid, sizes.merge)},
            text=text,
            merged=merged,
            features=len(shown) * merged[0] * merged[1],
        )
    ]


def features(processor: Processor, height: int, width: int) -> int:
    sizes = read(Sizes, dict(processor.image.sizes))
    shown = 1 + len(crops(sizes, np.broadcast_to(np.uint8(0), (height, width, 3))))
    return shown * (sizes.side // sizes.patch // sizes.merge) ** 2


KIND = Kind(
    name="gemma3",
    models=("gemma3",),
    read=read_files,
    media={"image": Handling(Sizes, encode, features, fixed=True)},
    marks=("begin", "end"),
    positions=visible_ends,
)
