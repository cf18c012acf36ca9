"""Kimi K2.5: any size up to a number of patches, filled up to whole tokens, positions as taps on a
learned grid, and videos as clips of frames that attend as one, each after its time in writing."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.processors import PICTURES, VIDEOS, WHOLE
from lmcast.exporter.vision.files import (
    TYPES,
    PixelKeys,
    ProcessorFiles,
    Section,
    pixels,
    require_equal,
)
from lmcast.exporter.vision.patches import merged as merged_order
from lmcast.exporter.vision.patches import numbers, patches, places, taps
from lmcast.exporter.vision.processor import (
    Clip,
    Encoded,
    Handling,
    Kind,
    Many,
    Medium,
    Merge,
    Patch,
    Processor,
    Rate,
    Several,
)
from lmcast.exporter.vision.resize import resize_frames
from lmcast.plugins.records import read

PICTURE, VIDEO = "<|media_pad|>", "<|kimi_k25_video_placeholder|>"
BEGIN, CONTENT, END = "<|media_begin|>", "<|media_content|>", "<|media_end|>"
NESTED = "media_proc_cfg"  # of the files on the Hub


@dataclass(frozen=True)
class Sizes:
    """patches: most of a picture before it is filled up. side: most patches of its side. patch:
    pixels of a patch's side. merge: patches of a token's side. rows, columns: of the grid of
    positions."""

    patches: Many
    side: Many
    patch: Patch
    merge: Merge
    rows: Several
    columns: Several


@dataclass(frozen=True)
class VideoSizes:
    """As Sizes, of every frame. frames: of a clip. rate: of frames that are taken, None: all."""

    patches: Many
    side: Many
    patch: Patch
    merge: Merge
    rows: Several
    columns: Several
    frames: Several
    rate: Rate | None


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Keys of the image processor."""

    size: Mapping[str, Many] | None = None
    max_patches: Many = 16384
    patch_size: Patch = 14
    merge_size: Merge = 2


@dataclass(frozen=True, kw_only=True)
class VideoKeys:
    """Keys of the video processor."""

    size: Mapping[str, Many] | None = None
    max_patches: Many = 4096
    patch_size: Patch = 14
    merge_size: Merge = 2
    temporal_patch_size: Several = 4
    fps: Rate = 2.0
    do_sample_frames: bool = True


@dataclass(frozen=True, kw_only=True)
class HubKeys:
    """Keys of media_proc_cfg, of the code beside the weights on the Hub."""

    in_patch_limit: Many
    in_patch_limit_each_frame: Many
    patch_limit_on_one_side: Many
    patch_size: Patch
    merge_kernel_size: Merge
    temporal_merge_kernel_size: Several
    sample_fps: Rate
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    timestamp_mode: Literal["hh:mm:ss.fff"] = "hh:mm:ss.fff"
    # Null alone, which is as good as none: other limits are not applied.
    fixed_output_tokens: None = None
    in_patch_limit_video: None = None
    max_num_frames_each_video: None = None


@dataclass(frozen=True)
class OwnKeys:
    """processor_config.json has nothing of its own."""


def read_files(files: ProcessorFiles) -> Processor:
    files.own.read(OwnKeys)
    files.require_tokens(BEGIN, CONTENT, END)
    (picture, how), (video, video_how) = hub(files) or (picture_sizes(files), video_sizes(files))
    token, id = files.token("image_token", PICTURE), files.config.image_token_id
    shown = files.token("video_token", VIDEO)
    # The tokenizer on the Hub has no token of videos: their features stand at that of pictures.
    of_video = (shown, files.config.video_token_id) if files.has(shown) else (token, id)
    return Processor(
        kind="kimi_k25",
        image=files.medium(token, id, picture, how, written=f"{BEGIN}image{CONTENT}{token}{END}"),
        video=files.medium(*of_video, video, video_how, placeholder=shown),
    )


def picture_sizes(files: ProcessorFiles) -> tuple[Sizes, Any]:
    section = files.section("image_processor", PICTURES, types=("Kimi_K25ImageProcessor",))
    how, rest = pixels(section, PixelKeys())
    keys = rest.read(Keys)
    side = longest(rest, keys.size)
    cut = cutting(files, rest.at, keys.patch_size, keys.merge_size)
    return Sizes(keys.max_patches, side, **cut), how


def video_sizes(files: ProcessorFiles) -> tuple[VideoSizes, Any]:
    types = ("Kimi_K25VideoProcessor",)
    section = files.section("video_processor", VIDEOS, PICTURES, types=types)
    how, rest = pixels(section, PixelKeys())
    keys = rest.read(VideoKeys)
    side = longest(rest, keys.size)
    cut = cutting(files, rest.at, keys.patch_size, keys.merge_size)
    frames = clip_frames(files, rest.at, keys.temporal_patch_size)
    rate = keys.fps if keys.do_sample_frames else None
    return VideoSizes(keys.max_patches, side, **cut, frames=frames, rate=rate), how


def hub(files: ProcessorFiles) -> tuple[tuple[Sizes, Any], tuple[VideoSizes, Any]] | None:
    """Return the sizes of a file as the Hub has it, None where it is none."""
    nested = files.files.get(PICTURES, {}).get(NESTED)
    if not isinstance(nested, dict) or "image_processor" in files.files.get(WHOLE, {}):
        return None
    Section(f"{PICTURES}: ", files.files[PICTURES]).without((*TYPES, NESTED)).read(OwnKeys)
    section = Section(f"{PICTURES}: {NESTED}.", nested)
    keys = section.read(HubKeys, {"config_type"})
    how, _ = pixels(
        Section(section.at, {"image_mean": keys.image_mean, "image_std": keys.image_std}),
        PixelKeys(),
    )
    cut = cutting(files, section.at, keys.patch_size, keys.merge_kernel_size)
    side = keys.patch_limit_on_one_side
    frames = clip_frames(files, section.at, keys.temporal_merge_kernel_size)
    video = VideoSizes(
        keys.in_patch_limit_each_frame, side, **cut, frames=frames, rate=keys.sample_fps
    )
    return (Sizes(keys.in_patch_limit, side, **cut), how), (video, how)


def longest(section: Section, size: Mapping[str, int] | None) -> int:
    """Return the most patches of a side of a `size`."""
    given = {"max_height": 512, "max_width": 512} if size is None else size
    sides = section.only("size", given, "max_height", "max_width")
    if sides["max_height"] != sides["max_width"]:
        raise CheckpointError(f"{section.at}size is {sides}; accepted: two equal sides")
    return sides["max_height"]


def cutting(files: ProcessorFiles, at: str, patch: int, merge: int) -> dict[str, int]:
    """Return how pictures are cut, which the tower must agree with."""
    vision = files.config.vision_config
    require_equal(f"{at}patch_size", patch, "vision_config.patch_size", vision.patch_size)
    for side in vision.merge_kernel_size:
        require_equal(f"{at}merge_size", merge, "vision_config.merge_kernel_size", side)
    rows, columns = vision.pos_emb_height, vision.pos_emb_width
    return {"patch": patch, "merge": merge, "rows": rows, "columns": columns}


def clip_frames(files: ProcessorFiles, at: str, frames: int) -> int:
    """Return the frames of a clip, for each of which the tower has a time."""
    times = files.config.vision_config.pos_emb_time
    if frames > times:
        raise CheckpointError(
            f"{at}temporal_patch_size is {frames}; accepted: as vision_config.pos_emb_time, up to"
            f" {times}"
        )
    return frames


def resized(sizes: Sizes | VideoSizes, height: int, width: int) -> tuple[int, int]:
    """Return the size of a picture, never enlarged, before it is filled up to whole tokens."""
    most = sizes.side * sizes.patch
    count = max(1, height // sizes.patch) * max(1, width // sizes.patch)
    scale = min(1.0, math.sqrt(sizes.patches / count), most / height, most / width)
    return min(max(1, int(height * scale)), most), min(max(1, int(width * scale)), most)


def filled(sizes: Sizes | VideoSizes, height: int, width: int) -> tuple[int, int]:
    """Return a size filled up to whole tokens."""
    unit = sizes.patch * sizes.merge
    return -(-height // unit) * unit, -(-width // unit) * unit


def encode(processor: Processor, picture: np.ndarray) -> list[Encoded]:
    return clips(read(Sizes, dict(processor.image.sizes)), processor.image, "image", [picture], 1)


def encode_video(processor: Processor, given: Clip) -> list[Encoded]:
    """Return clips of frames that attend as one; the last may be shorter."""
    video = processor.video
    assert video is not None
    sizes = read(VideoSizes, dict(video.sizes))
    made = clips(sizes, video, "video", given.frames, sizes.frames)
    times = map(stamp, given.seconds[:: sizes.frames])
    return [
        replace(
            each, text=f"{time}{BEGIN}video{CONTENT}{each.text}{END}", continued=each is not made[0]
        )
        for time, each in zip(times, made, strict=True)
    ]


def clips(
    sizes: Sizes | VideoSizes,
    medium: Medium,
    name: Literal["image", "video"],
    frames: Sequence[np.ndarray],
    together: int,
) -> list[Encoded]:
    """Return what frames become, some `together` in each; the text is the tokens alone."""
    assert medium.pixels is not None
    height, width = resized(sizes, *frames[0].shape[:2])
    made = resize_frames(frames, height, width, medium.pixels.resample)
    shown = np.zeros((len(made), *filled(sizes, height, width), 3), np.uint8)
    shown[:, :height, :width] = made
    return [
        clip(sizes, medium, name, shown[first : first + together])
        for first in range(0, len(frames), together)
    ]


def clip(
    sizes: Sizes | VideoSizes, medium: Medium, name: Literal["image", "video"], shown: np.ndarray
) -> Encoded:
    """Return what frames uint8 [t, H, W, 3] of whole tokens become."""
    assert medium.pixels is not None
    grid = (len(shown), shown.shape[1] // sizes.patch, shown.shape[2] // sizes.patch)
    merged = (grid[1] // sizes.merge, grid[2] // sizes.merge)
    count = merged[0] * merged[1]
    # The first row of the table of times is of single pictures.
    times = np.arange(len(shown)) + (len(shown) > 1)
    table = numbers(medium.pixels)
    inputs = {
        "patches": patches(shown[None, :, None], table, sizes.patch, sizes.merge),
        **places(grid, sizes.merge),
        **taps(grid, sizes.merge, (sizes.rows, sizes.columns), "cubic"),
        "frames": merged_order(np.broadcast_to(times[:, None, None], grid), sizes.merge),
    }
    return Encoded(name, grid, inputs, medium.token * count, merged, count)


def stamp(seconds: float) -> str:
    """Return a time as HH:MM:SS.mmm."""
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}"


def features(processor: Processor, height: int, width: int) -> int:
    sizes = read(Sizes, dict(processor.image.sizes))
    height, width = filled(sizes, *resized(sizes, height, width))
    return height * width // (sizes.patch * sizes.merge) ** 2


def capped(raw: Mapping[str, Any], most_pixels: int) -> dict[str, Any]:
    """A limit of patches: filling up to whole tokens may add a part of one on each side."""
    return {**raw, "patches": min(raw["patches"], max(most_pixels // raw["patch"] ** 2, 1))}


def frame_indices(raw: Mapping[str, Any], count: int, rate: float) -> np.ndarray:
    """Return which frames of a video are taken, as many as `rate` a second give, spread evenly."""
    sizes = read(VideoSizes, dict(raw))
    if sizes.rate is None:
        return np.arange(count)
    taken = min(max(1, int(count / rate * sizes.rate)), count)
    return np.arange(taken) * count // taken


KIND = Kind(
    name="kimi_k25",
    models=("kimi_k25",),
    read=read_files,
    media={
        "image": Handling(Sizes, encode, features, capped),
        "video": Handling(VideoSizes, encode_video, capped=capped, indices=frame_indices),
    },
)
