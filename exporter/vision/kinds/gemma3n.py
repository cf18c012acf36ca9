"""Gemma 3n: pictures of one square size as they are, and sounds as log-mel frames."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import numpy as np

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.processors import PICTURES
from lmcast.exporter.vision import mel
from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.files import PixelKeys, ProcessorFiles, pixels, require_equal
from lmcast.exporter.vision.patches import numbers
from lmcast.exporter.vision.processor import (
    Encoded,
    Handling,
    Kind,
    Many,
    Medium,
    Processor,
    Several,
    Side,
)
from lmcast.exporter.vision.resize import resize
from lmcast.plugins.annotations import Range
from lmcast.plugins.records import RecordError, read

PIXELS = 48  # of a token's side: the tower halves sides four times, and pools three by three
MULTIPLE = 128  # of samples, which transformers fills a sound up to
MOST_SECONDS = 30  # of a sound; transformers cuts off what is longer


@dataclass(frozen=True)
class Sizes:
    """side: pixels of a resized picture's side. tokens: of a picture."""

    side: Side
    tokens: Many

    def __post_init__(self) -> None:
        if math.isqrt(self.tokens) ** 2 != self.tokens:
            raise RecordError(f"tokens are {self.tokens}; accepted: a square")


@dataclass(frozen=True)
class AudioSizes:
    """mel: how frames are made. most: samples of a sound. stride: frames of a token. tokens: of a
    sound of any length, of which those beyond its frames take no features."""

    mel: Mapping[str, Any]
    most: Many
    stride: Several
    tokens: Many

    def __post_init__(self) -> None:
        made = read(mel.Mel, dict(self.mel), "mel.")
        if made.count(self.most) > self.tokens * self.stride:
            raise RecordError(f"tokens are {self.tokens}; accepted: as many as {self.most} samples")


@dataclass(frozen=True)
class Keys:
    """Keys of the image processor."""

    size: Mapping[str, Side] | None = None


@dataclass(frozen=True, kw_only=True)
class AudioKeys:
    """Keys of the feature extractor. Lengths in samples are what it has made of those in ms, and
    not read again."""

    feature_size: Several = 128
    sampling_rate: Literal[16000] = 16000
    padding_side: Literal["right"] = "right"
    padding_value: Annotated[float, Range(0.0, 0.0)] = 0.0
    return_attention_mask: bool = True
    frame_length_ms: mel.Hertz = 32.0
    hop_length_ms: mel.Hertz = 10.0
    frame_length: Many | None = None
    hop_length: Many | None = None
    fft_length: Many | None = None
    min_frequency: mel.Hertz = 125.0
    max_frequency: mel.Hertz = 7600.0
    preemphasis: Annotated[float, Range(1e-6, 1.0)] = 0.97
    preemphasis_htk_flavor: Literal[True] = True
    fft_overdrive: bool = True
    dither: Annotated[float, Range(0.0, 0.0)] = 0.0
    input_scale_factor: Annotated[float, Range(1.0, 1.0)] = 1.0
    mel_floor: Annotated[float, Range(1e-12, 1.0)] = 1e-5
    per_bin_mean: None = None
    per_bin_stddev: None = None


@dataclass(frozen=True)
class OwnKeys:
    """Keys of processor_config.json."""

    image_seq_length: Many = 256
    audio_seq_length: Many = 188


def names(*keys: type) -> set[str]:
    return {field.name for each in keys for field in fields(each)}


def read_files(files: ProcessorFiles) -> Processor:
    own = files.own.read(OwnKeys)
    section = files.section("image_processor", PICTURES, types=("SiglipImageProcessor",))
    how, rest = pixels(section, PixelKeys())
    # A flat file has the settings of both processors.
    given = rest.read(Keys, names(AudioKeys)).size or {"height": 224, "width": 224}
    tokens, side = files.config.vision_soft_tokens_per_image, rest.square("size", given)
    at, key = files.own.at, "vision_soft_tokens_per_image"
    require_equal(f"{at}image_seq_length", own.image_seq_length, key, tokens)
    if side != math.isqrt(tokens) * PIXELS:
        raise CheckpointError(
            f"{rest.at}size is {side}x{side}; accepted: {math.isqrt(tokens) * PIXELS}, for {tokens}"
            " tokens"
        )
    marks = {
        "begin": files.token("boi_token", "<start_of_image>"),
        "end": files.token("eoi_token", "<end_of_image>"),
        "audio_begin": files.token("boa_token", "<start_of_audio>"),
        "audio_end": files.token("eoa_token", "<end_of_audio>"),
    }
    files.require_tokens(marks["begin"], marks["end"])
    token, id = files.token("image_token", "<image_soft_token>"), files.config.image_token_id
    image = files.medium(token, id, Sizes(side, tokens), how)
    audio = None
    if files.audio is not None:
        files.require_tokens(marks["audio_begin"], marks["audio_end"])
        audio = read_audio(files, own.audio_seq_length)
    return Processor("gemma3n", image=image, audio=audio, marks=marks)


def read_audio(files: ProcessorFiles, tokens: int) -> Medium:
    types = ("Gemma3nAudioFeatureExtractor",)
    section = files.section("feature_extractor", PICTURES, types=types)
    keys = section.read(AudioKeys, names(PixelKeys, Keys))
    config = files.audio
    tower = config.audio_config
    key = "audio_config.input_feat_size"
    require_equal(f"{section.at}feature_size", keys.feature_size, key, tower.input_feat_size)
    key = "audio_soft_tokens_per_image"
    require_equal(
        f"{files.own.at}audio_seq_length", tokens, key, config.audio_soft_tokens_per_image
    )
    frame, hop = (
        round(keys.sampling_rate * ms / 1000) for ms in (keys.frame_length_ms, keys.hop_length_ms)
    )
    how = mel.Mel(
        rate=keys.sampling_rate,
        frame=frame,
        hop=hop,
        fft=2 ** math.ceil(math.log2(frame)) * (2 if keys.fft_overdrive else 1),
        bands=keys.feature_size,
        low=keys.min_frequency,
        high=keys.max_frequency,
        floor=keys.mel_floor,
        emphasis=keys.preemphasis,
        multiple=MULTIPLE,
    )
    steps = [stride[0] for stride in tower.sscp_conv_stride_size]
    stride = math.prod(steps) * tower.conf_reduction_factor
    most = min(MOST_SECONDS * keys.sampling_rate, how.most(tokens * stride))
    sizes = AudioSizes(mel=vars(how), most=most, stride=stride, tokens=tokens)
    medium = files.medium(
        files.token("audio_token", "<audio_soft_token>"), config.audio_token_id, sizes, None
    )
    return replace(medium, filler=tower.vocab_offset + tower.vocab_size - 1)


def encode(processor: Processor, picture: np.ndarray) -> list[Encoded]:
    image = processor.image
    sizes = read(Sizes, dict(image.sizes))
    assert image.pixels is not None
    made = resize(picture, sizes.side, sizes.side, image.pixels.resample)
    table = numbers(image.pixels)
    planes = np.stack([table[channel][made[..., channel]] for channel in range(3)])[None]
    side = math.isqrt(sizes.tokens)
    begin, end = processor.marks["begin"], processor.marks["end"]
    text = f"\n\n{begin}{image.token * sizes.tokens}{end}\n\n"
    return [Encoded("image", (1, side, side), {"pixels": planes}, text, (side, side), sizes.tokens)]


def encode_audio(processor: Processor, samples: np.ndarray) -> list[Encoded]:
    audio = processor.audio
    assert audio is not None
    sizes = read(AudioSizes, dict(audio.sizes))
    how = read(mel.Mel, dict(sizes.mel))
    seconds = len(samples) / how.rate
    if len(samples) > sizes.most:
        raise PictureError(
            f"the sound has {seconds:.3f} seconds; this model takes"
            f" {sizes.most / how.rate:.3f} at most: cut it"
        )
    if not how.count(len(samples)):
        raise PictureError(f"the sound has {seconds:.3f} seconds, which is not a single frame")
    frames = mel.frames(how, samples)
    count = -(-len(frames) // sizes.stride)
    begin, end = processor.marks["audio_begin"], processor.marks["audio_end"]
    return [
        Encoded(
            medium="audio",
            grid=(1, 1, len(frames)),
            inputs={"mel": frames[None]},
            text=f"\n\n{begin}{audio.token * sizes.tokens}{end}\n\n",
            merged=(1, count),
            features=count,
            filled=sizes.tokens - count,
        )
    ]


def features(processor: Processor, height: int, width: int) -> int:
    return int(processor.image.sizes["tokens"])


KIND = Kind(
    name="gemma3n",
    models=("gemma3n",),
    read=read_files,
    media={
        "image": Handling(Sizes, encode, features),
        "audio": Handling(AudioSizes, encode_audio),
    },
    marks=("begin", "end", "audio_begin", "audio_end"),
)
