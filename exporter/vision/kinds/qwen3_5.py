"""Qwen3-VL and Qwen3.5: any size within a range of pixels, positions as taps on a learned grid, and
videos as pairs of frames with the time of each written before it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcast.exporter.checkpoint.processors import PICTURES, VIDEOS
from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.files import (
    PixelKeys,
    ProcessorFiles,
    Section,
    pixels,
    require_equal,
)
from lmcast.exporter.vision.patches import numbers, patches, places, taps
from lmcast.exporter.vision.positions import rope_positions
from lmcast.exporter.vision.processor import (
    Clip,
    Encoded,
    Handling,
    Kind,
    Least,
    Many,
    Medium,
    Merge,
    Patch,
    PixelCount,
    Processor,
    Rate,
    Several,
)
from lmcast.exporter.vision.resize import resize, resize_frames
from lmcast.plugins.records import read

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the class where a file is silent
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PICTURE, VIDEO = "<|image_pad|>", "<|video_pad|>"
START, END = "<|vision_start|>", "<|vision_end|>"
SHORTER = 1.05  # of the least pixels: the least that a cap leaves a frame


@dataclass(frozen=True)
class Sizes:
    """least, most: pixels of a picture. patch: of a patch's side. merge: patches of a token's side.
    frames: that a patch covers. table: side of the grid of positions."""

    least: Least
    most: PixelCount
    patch: Patch
    merge: Merge
    frames: Several
    table: Several


@dataclass(frozen=True)
class VideoSizes:
    """As Sizes, with least and most of all frames. rate: frames a second that are taken, None: all;
    fewest, most_frames: how many at least and at most. frame_tokens: most of a frame, None: any."""

    least: Least
    most: PixelCount
    patch: Patch
    merge: Merge
    frames: Several
    table: Several
    rate: Rate | None
    fewest: Many
    most_frames: Many
    frame_tokens: Many | None


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Keys of the image processor."""

    size: Mapping[str, PixelCount] | None = None
    min_pixels: Least | None = None
    max_pixels: PixelCount | None = None
    patch_size: Patch = 14
    temporal_patch_size: Several = 2
    merge_size: Merge = 2


@dataclass(frozen=True, kw_only=True)
class VideoKeys:
    """Keys of the video processor."""

    size: Mapping[str, PixelCount] | None = None
    patch_size: Patch = 16
    temporal_patch_size: Several = 2
    merge_size: Merge = 2
    fps: Rate = 2.0
    do_sample_frames: bool = True
    min_frames: Many = 4
    max_frames: Many = 768
    cap_pixels_per_frame: bool = False
    max_video_tokens: Many = 768


@dataclass(frozen=True)
class OwnKeys:
    """processor_config.json has nothing of its own."""


def read_files(files: ProcessorFiles) -> Processor:
    files.own.read(OwnKeys)
    config = files.config
    start = files.token("vision_start_token", START)
    end = files.token("vision_end_token", END)
    files.require_tokens(start, end)

    def medium(name: str, usual: str, id: int, sizes: Any, how: Any) -> Medium:
        token = files.token(name, usual)
        return files.medium(token, id, sizes, how, written=f"{start}{token}{end}")

    return Processor(
        kind="qwen3_5",
        image=medium("image_token", PICTURE, config.image_token_id, *picture_sizes(files)),
        video=medium("video_token", VIDEO, config.video_token_id, *video_sizes(files)),
        marks={"start": start, "end": end},
    )


def picture_sizes(files: ProcessorFiles) -> tuple[Sizes, Any]:
    section = files.section("image_processor", PICTURES, types=("Qwen2VLImageProcessor",))
    how, rest = pixels(section, PixelKeys(image_mean=CLIP_MEAN, image_std=CLIP_STD))
    keys = rest.read(Keys)
    least, most = bounds(rest, keys.size, (56 * 56, 28 * 28 * 1280))
    cut = cutting(files, rest, keys.patch_size, keys.merge_size, keys.temporal_patch_size)
    return Sizes(keys.min_pixels or least, keys.max_pixels or most, **cut), how


def video_sizes(files: ProcessorFiles) -> tuple[VideoSizes, Any]:
    types = ("Qwen3VLVideoProcessor",)
    section = files.section("video_processor", VIDEOS, PICTURES, types=types)
    how, rest = pixels(section, PixelKeys())
    keys = rest.read(VideoKeys)
    least, most = bounds(rest, keys.size, (128 * 32 * 32, 32 * 32 * 768))
    cut = cutting(files, rest, keys.patch_size, keys.merge_size, keys.temporal_patch_size)
    return VideoSizes(
        least,
        most,
        **cut,
        rate=keys.fps if keys.do_sample_frames else None,
        fewest=keys.min_frames,
        most_frames=keys.max_frames,
        frame_tokens=keys.max_video_tokens if keys.cap_pixels_per_frame else None,
    ), how


def bounds(
    section: Section, size: Mapping[str, int] | None, usual: tuple[int, int]
) -> tuple[int, int]:
    """Return the least and the most pixels of a `size`, whose edges are pixel counts."""
    if size is None:
        return usual
    if "min_pixels" in size or "max_pixels" in size:
        given = section.only("size", size, "min_pixels", "max_pixels")
        return given["min_pixels"], given["max_pixels"]
    given = section.only("size", size, "shortest_edge", "longest_edge")
    return given["shortest_edge"], given["longest_edge"]


def cutting(
    files: ProcessorFiles, section: Section, patch: int, merge: int, frames: int
) -> dict[str, int]:
    """Return how pictures are cut, which the tower must agree with."""
    vision = files.config.vision_config
    for key, said, theirs in (
        ("patch_size", patch, "patch_size"),
        ("merge_size", merge, "spatial_merge_size"),
        ("temporal_patch_size", frames, "temporal_patch_size"),
    ):
        require_equal(
            f"{section.at}{key}", said, f"vision_config.{theirs}", getattr(vision, theirs)
        )
    table = math.isqrt(vision.num_position_embeddings)
    return {"patch": patch, "merge": merge, "frames": frames, "table": table}


def resized(
    shape: tuple[int, int], unit: int, least: int, most: int, frames: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Return the size of a picture, height and width, in whole tokens of `unit` pixels.

    least, most: pixels of all frames. frames: in pairs, and as given. Halves are rounded to even.
    """
    height, width = shape
    paired, given = frames
    new_height, new_width = round(height / unit) * unit, round(width / unit) * unit
    if paired * new_height * new_width > most:
        shrink = math.sqrt(given * height * width / most)
        new_height = max(unit, math.floor(height / shrink / unit) * unit)
        new_width = max(unit, math.floor(width / shrink / unit) * unit)
    elif paired * new_height * new_width < least:
        grow = math.sqrt(least / (given * height * width))
        new_height = math.ceil(height * grow / unit) * unit
        new_width = math.ceil(width * grow / unit) * unit
    return new_height, new_width


def resized_frames(sizes: VideoSizes, shape: tuple[int, int], count: int) -> tuple[int, int]:
    """Return the size of each of `count` frames, likewise; small ones first grow to a token."""
    unit, most = sizes.patch * sizes.merge, sizes.most
    if sizes.frame_tokens is not None:
        each = min(sizes.frame_tokens * unit * unit, most // count)
        most = max(each, int(sizes.least * SHORTER)) * count
    height, width = shape
    if height < unit or width < unit:
        scale = max(unit / height, unit / width)
        height, width = int(height * scale), int(width * scale)
    paired = round(count / sizes.frames) * sizes.frames
    return resized((height, width), unit, sizes.least, most, (paired, count))


def inputs(
    sizes: Sizes | VideoSizes, medium: Medium, frames: np.ndarray
) -> tuple[tuple[int, int, int], dict[str, np.ndarray]]:
    """Return the grid of frames uint8 [N, f, H, W, 3], each N a patch of f frames, and what the
    tower takes of them."""
    assert medium.pixels is not None
    grid = (1, frames.shape[2] // sizes.patch, frames.shape[3] // sizes.patch)
    cut = patches(frames[:, None], numbers(medium.pixels), sizes.patch, sizes.merge)
    table = (sizes.table, sizes.table)
    return grid, {
        "patches": cut,
        **places(grid, sizes.merge),
        **taps(grid, sizes.merge, table, "linear"),
    }


def encode(processor: Processor, picture: np.ndarray) -> list[Encoded]:
    image = processor.image
    sizes = read(Sizes, dict(image.sizes))
    assert image.pixels is not None
    unit = sizes.patch * sizes.merge
    height, width = resized(picture.shape[:2], unit, sizes.least, sizes.most)
    made = resize(picture, height, width, image.pixels.resample)
    # A still picture is shown in every frame of its patches.
    still = np.broadcast_to(made, (1, sizes.frames, *made.shape))
    grid, given = inputs(sizes, image, still)
    merged = (height // unit, width // unit)
    count = merged[0] * merged[1]
    return [Encoded("image", grid, given, image.token * count, merged, count)]


def encode_video(processor: Processor, clip: Clip) -> list[Encoded]:
    """Return all pairs of frames in one: N is these. An odd last frame is its own pair."""
    video = processor.video
    assert video is not None and video.pixels is not None
    sizes = read(VideoSizes, dict(video.sizes))
    if len(clip.frames) < sizes.frames:
        raise PictureError(
            f"the video has {len(clip.frames)} frame; this model takes {sizes.frames} or more:"
            " give it as a picture"
        )
    unit, how = sizes.patch * sizes.merge, video.pixels.resample
    height, width = resized_frames(sizes, clip.frames[0].shape[:2], len(clip.frames))
    made = resize_frames(clip.frames, height, width, how)
    seconds = list(clip.seconds)
    missing = -len(made) % sizes.frames
    made, seconds = made + made[-1:] * missing, seconds + seconds[-1:] * missing
    grid, given = inputs(sizes, video, np.stack(made).reshape(-1, sizes.frames, height, width, 3))
    merged = (height // unit, width // unit)
    count = merged[0] * merged[1]
    shown = f"{processor.marks['start']}{video.token * count}{processor.marks['end']}"
    times = [
        (seconds[first] + seconds[first + sizes.frames - 1]) / 2
        for first in range(0, len(seconds), sizes.frames)
    ]
    text = "".join(f"<{time:.1f} seconds>{shown}" for time in times)
    return [Encoded("video", grid, given, text, merged, count * len(times))]


def features(processor: Processor, height: int, width: int) -> int:
    sizes = read(Sizes, dict(processor.image.sizes))
    unit = sizes.patch * sizes.merge
    height, width = resized((height, width), unit, sizes.least, sizes.most)
    return (height // unit) * (width // unit)


def capped(raw: Mapping[str, Any], most_pixels: int) -> dict[str, Any]:
    unit = raw["patch"] * raw["merge"]
    most = min(raw["most"], max(most_pixels, unit * unit))
    return {**raw, "most": most, "least": min(raw["least"], most)}


def frame_indices(raw: Mapping[str, Any], count: int, rate: float) -> np.ndarray:
    """Return which frames of a video are taken, as many as `rate` a second give, spread evenly."""
    sizes = read(VideoSizes, dict(raw))
    if sizes.rate is None:
        return np.arange(count)
    taken = min(max(int(count / rate * sizes.rate), sizes.fewest), sizes.most_frames, count)
    return np.linspace(0, count - 1, taken).round().astype(np.int64)


KIND = Kind(
    name="qwen3_5",
    models=("qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
    read=read_files,
    media={
        "image": Handling(Sizes, encode, features, capped),
        "video": Handling(
            VideoSizes, encode_video, capped=capped, indices=frame_indices, replaces=True
        ),
    },
    marks=("start", "end"),
    positions=rope_positions,
)
