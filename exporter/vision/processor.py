"""The record of how pictures become what a tower takes, as engine.json keeps it, and what one
becomes.

N pictures (tiles, crops, frame pairs) of one grid, M merged tokens, K patches of a token, E numbers
of a patch, T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lmcast.exporter.vision.errors import PictureError
from lmcast.plugins.annotations import Range
from lmcast.plugins.records import Count, Name, Pattern, RecordError, read

if TYPE_CHECKING:  # engine.json is read without numpy
    import numpy as np

    from lmcast.exporter.vision.files import ProcessorFiles
    from lmcast.exporter.vision.positions import Piece

# Bounds far above any processor's, and low enough that no picture of one takes all memory.
Side = Annotated[int, Range(1, 1 << 13)]  # pixels of a side
Patch = Annotated[int, Range(1, 256)]  # pixels of a patch's side
Merge = Annotated[int, Range(1, 16)]  # patches of a token's side
Several = Annotated[int, Range(1, 1 << 10)]  # tiles, crops, frames
Many = Annotated[int, Range(1, 1 << 20)]  # patches, tokens
Least = Annotated[int, Range(1, 1 << 26)]  # pixels that a picture is enlarged to
Ratio = Annotated[float, Range(1.0, 1e6)]
Rate = Annotated[float, Range(1e-3, 1e6)]  # a second
PixelCount = Annotated[int, Range(1, 1 << 40)]
Share = Annotated[float, Range(1e-6, 1e6)]
Mark = Annotated[str, Pattern(r"(?s).+", "a text")]
MediumName = Literal["image", "video", "audio"]
WORDS: Mapping[MediumName, tuple[str, str]] = {
    "image": ("picture", "pictures"),
    "video": ("video", "videos"),
    "audio": ("sound", "sounds"),
}


@dataclass(frozen=True)
class Pixels:
    """How values 0..255 become numbers: (value * rescale - mean) / std.

    mean, std: None where values are only scaled.
    """

    resample: Literal["bilinear", "bicubic"]
    rescale: Share
    mean: tuple[float, float, float] | None
    std: tuple[Share, Share, Share] | None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise RecordError("mean and std: accepted: both, or null for both")


@dataclass(frozen=True)
class Medium:
    """Pictures, videos or sounds, as one model takes them.

    placeholder: the text that stands for one in a prompt, and becomes what the processor makes.
    written: the same as a prompt without a chat template has it, with what belongs around it.
    token, id: the token that takes features, one row each.
    sizes: numbers of the kind alone; its record says which.
    pixels: None of sound.
    filler: the id that tokens without features have, where what is given is shorter than its text.
    """

    placeholder: Mark
    written: Mark
    token: Mark
    id: Count
    sizes: Mapping[str, Any]
    pixels: Pixels | None = None
    filler: Count | None = None


@dataclass(frozen=True)
class Processor:
    """What of a checkpoint's processor changes numbers, resolved: no other file is needed.

    kind: one of exporter/vision/kinds. marks: texts that the kind writes around tokens, by name.
    """

    kind: Name
    image: Medium
    video: Medium | None = None
    audio: Medium | None = None
    marks: Mapping[str, Mark] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from lmcast.exporter.vision import kinds

        if self.kind not in kinds.NAMES:
            raise RecordError(f"kind is {self.kind!r:.80}; accepted: {', '.join(kinds.NAMES)}")
        kind = kinds.get(self.kind)
        for name in ("image", "video", "audio"):
            medium = self.medium(name)
            if medium is not None and name not in kind.media:
                raise RecordError(f"{name}: {self.kind} has none; accepted: null")
            if medium is not None:
                read(kind.media[name].sizes, dict(medium.sizes), f"{name}.sizes.")
                if (medium.pixels is None) != (name == "audio"):
                    raise RecordError(f"{name}.pixels: accepted: an object, null of audio")
        if set(self.marks) != set(kind.marks):
            raise RecordError(f"marks are {sorted(self.marks)}; accepted: {sorted(kind.marks)}")

    def medium(self, name: MediumName) -> Medium | None:
        """Return how the model takes pictures, videos or sounds; None where it does not."""
        found: Medium | None = getattr(self, name)
        return found

    @property
    def media(self) -> dict[MediumName, Medium]:
        """What the model takes, by name."""
        names: tuple[MediumName, ...] = ("image", "video", "audio")
        return {name: found for name in names if (found := self.medium(name))}


@dataclass(frozen=True)
class Encoded:
    """A picture, a clip of a video or a sound, as the graph of a tower and a prompt take it.

    grid: frames, rows and columns of the patches that attend to each other (of sound: 1, 1 and its
    frames). Those of one medium and grid may share a call, see `joined`.
    inputs: of the graph, float32 and int64; of the first N is axis 0.
    text: what its placeholder becomes, with `tokens` tokens of its medium.
    merged: rows and columns of the tokens of each of N.
    features: rows of features that the tower makes of it, N * M.
    filled: tokens of its medium after these, which take none and are the medium's filler.
    continued: whether it goes on in the placeholder of the one before: clips of one video.
    """

    medium: MediumName
    grid: tuple[int, int, int]
    inputs: Mapping[str, np.ndarray]
    text: str
    merged: tuple[int, int]
    features: int
    filled: int = 0
    continued: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of its medium that its text has."""
        return self.features + self.filled


@dataclass(frozen=True)
class Places:
    """Where features stand in a prompt of T tokens, and what the text graph takes besides.

    input_ids int64 [T]: with 0 where features stand, as such ids may lie outside the
    vocabulary. image_rows int64 [T]: rows of the features of all pictures in order, -1 for text.
    visible_ends int64 [T], rope_positions int64 [T, 3]: where the kind has them.
    rope_delta: the rotation of a later token is at its position plus this.
    """

    input_ids: np.ndarray
    image_rows: np.ndarray
    visible_ends: np.ndarray | None = None
    rope_positions: np.ndarray | None = None
    rope_delta: int = 0


@dataclass(frozen=True)
class Handling:
    """How a kind takes one medium.

    sizes: the dataclass of Medium.sizes.
    encode: (processor, what is given) -> what it becomes; given is a picture uint8 [H, W, 3], a
    Clip, or a sound float32 [samples].
    features: (processor, height, width) -> rows of features that a picture of that size takes.
    capped: (sizes, pixels) -> sizes that make no picture of more pixels; raises PictureError where
    the kind cannot.
    indices: (sizes, how many frames there are, how many a second) -> which are taken, int64.
    fixed: whether the tower sees pictures of one size alone: the whole, tiles or crops.
    replaces: whether what a placeholder becomes also replaces what is `written` around it.
    """

    sizes: type
    encode: Callable[[Processor, Any], list[Encoded]]
    features: Callable[[Processor, int, int], int] | None = None
    capped: Callable[[Mapping[str, Any], int], dict[str, Any]] | None = None
    indices: Callable[[Mapping[str, Any], int, float], np.ndarray] | None = None
    fixed: bool = False
    replaces: bool = False


@dataclass(frozen=True)
class Kind:
    """A family of processors.

    models: the model_types whose checkpoints it reads.
    read: the files of a checkpoint -> its record.
    marks: names of Processor.marks.
    positions: adds what the text graph takes besides rows, of `positions`.
    """

    name: str
    models: tuple[str, ...]
    read: Callable[[ProcessorFiles], Processor]
    media: Mapping[str, Handling]
    marks: tuple[str, ...] = ()
    positions: Callable[[Places, Sequence[Piece], int, int], Places] | None = None


@dataclass(frozen=True)
class Clip:
    """Frames of a video, uint8 [H, W, 3] of one size, and when each is shown, in seconds."""

    frames: Sequence[np.ndarray]
    seconds: tuple[float, ...]


def encode(processor: Processor, pictures: Sequence[np.ndarray]) -> list[Encoded]:
    """Return what pictures become, uint8 [H, W, 3] each, one for one.

    Raises PictureError for a picture without pixels, and for one that is 200 times as long as wide.
    """
    for picture in pictures:
        require_shape(picture.shape[0], picture.shape[1])
    return [each for picture in pictures for each in _encoded(processor, "image", picture)]


def encode_video(processor: Processor, clip: Clip) -> list[Encoded]:
    """Return what a video becomes: one item, or several of which all but the first continue.

    Raises PictureError where the model takes no videos, for one without frames, for frames of
    several sizes, and as `encode`.
    """
    if not len(clip.frames):
        raise PictureError("the video has no frames")
    height, width = clip.frames[0].shape[:2]
    require_shape(height, width)
    return _encoded(processor, "video", clip)


def encode_audio(processor: Processor, samples: np.ndarray) -> list[Encoded]:
    """Return what a sound becomes, float32 [samples] at the rate of the model.

    Raises PictureError where the model takes no sounds.
    """
    return _encoded(processor, "audio", samples)


def joined(encoded: Sequence[Encoded]) -> dict[str, np.ndarray]:
    """Return the inputs of one call of the tower for several of one medium and grid.

    The first input has the axis N, patches, pixels or frames of sound; the tables after it are the
    same of all.
    """
    from numpy import concatenate

    first, *tables = encoded[0].inputs
    together = concatenate([each.inputs[first] for each in encoded])
    return {first: together, **{name: encoded[0].inputs[name] for name in tables}}


def features(processor: Processor, height: int, width: int) -> int:
    """Return how many features a picture of that size becomes, each for a token of the prompt."""
    count = _handling(processor, "image").features
    assert count is not None, f"{processor.kind} does not say how many features a picture has"
    return count(processor, height, width)


def is_fixed(processor: Processor) -> bool:
    """Whether the tower sees pictures of one size alone, each of `features(processor, 1, 1)`."""
    return _handling(processor, "image").fixed


def frame_indices(processor: Processor, count: int, rate: float) -> np.ndarray:
    """Return which of a video's frames are taken, int64, of `count` that are shown at a rate.

    Raises PictureError where the model takes no videos.
    """
    require_medium(processor, "video")
    indices, video = _handling(processor, "video").indices, processor.video
    assert indices is not None and video is not None
    return indices(video.sizes, count, rate)


def capped(processor: Processor, most_pixels: int) -> Processor:
    """Return a processor whose pictures, and videos, have at most that many pixels.

    But for long ones whose shorter side is a single token: Qwen's rule leaves them their length.
    Raises PictureError for a model that takes pictures of one size alone, or of larger ones.
    """
    found: dict[str, Any] = {}
    for name, medium in processor.media.items():
        if name == "audio":
            continue
        cap = _handling(processor, name).capped
        if cap is None:
            raise PictureError(
                f"this model takes {WORDS[name][1]} of one size, which a limit of pixels cannot"
                " change"
            )
        found[name] = replace(medium, sizes=cap(medium.sizes, most_pixels))
    return replace(processor, **found)


MOST_ASPECT = 200  # of what models have been trained on; Qwen's own processor refuses more


def require_shape(height: int, width: int) -> None:
    """Refuse a picture that no model takes; raises PictureError."""
    if not height or not width:
        raise PictureError(f"a picture of {width}x{height} has no pixels")
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise PictureError(
            f"a picture of {width}x{height} is more than {MOST_ASPECT} times as long as it is wide;"
            " cut it"
        )


def require_whole(side: int, unit: int) -> None:
    """Refuse sizes of which a side is not whole tokens; raises RecordError."""
    if side % unit:
        raise RecordError(f"side is {side}; accepted: a multiple of patch * merge, {unit}")


def changed(processor: Processor, medium: MediumName, **sizes: Any) -> Processor:
    """Return a processor with other sizes of a medium; raises RecordError for what they refuse."""
    found = processor.medium(medium)
    assert found is not None, f"{processor.kind} has no {medium}"
    other: dict[str, Any] = {medium: replace(found, sizes={**found.sizes, **sizes})}
    return replace(processor, **other)


def with_crops(processor: Processor) -> Processor:
    """Return a processor that also shows long pictures in crops ("pan and scan").

    Raises PictureError for a model that was not trained so.
    """
    if "pan_and_scan" not in processor.image.sizes:
        raise PictureError("crops: this model is shown a picture whole, or in tiles; leave it out")
    return changed(processor, "image", pan_and_scan=True)


def _handling(processor: Processor, medium: MediumName) -> Handling:
    from lmcast.exporter.vision import kinds

    return kinds.get(processor.kind).media[medium]


def require_medium(processor: Processor, medium: MediumName) -> None:
    """Refuse what a model does not take; raises PictureError."""
    if processor.medium(medium) is None:
        takes = ", ".join(WORDS[name][1] for name in processor.media)
        raise PictureError(f"this model takes no {WORDS[medium][1]}; it takes {takes}")


def _encoded(processor: Processor, medium: MediumName, given: Any) -> list[Encoded]:
    require_medium(processor, medium)
    return _handling(processor, medium).encode(processor, given)
