"""What files of processors may say, what is refused, and what an engine's record may hold."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import oracle
import pytest
from tower_configs import HUB, PICTURES, WHOLE, configs, files

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.vision import kinds, prompts
from lmcast.exporter.vision import processor as vision
from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.processor import Processor
from lmcast.plugins.records import RecordError, read


@pytest.mark.parametrize("kind", kinds.NAMES)
def test_read(kind: str) -> None:
    found = kinds.get(kind).read(files(kind))
    assert found.kind == kind and found.image.pixels is not None
    assert read(Processor, asdict(found)) == found
    # null is the usual value, as no key.
    again = kinds.get(kind).read(files(kind, said={"do_resize": None, "resample": None}))
    assert again == found
    without = kinds.get(kind).read(files(kind, has_tokenizer=False, token_id=lambda text: None))
    assert without.image.sizes == found.image.sizes


EVERY = {
    "not resized": ({"said": {"do_resize": False}}, "do_resize is False; accepted: True"),
    "not scaled": ({"said": {"do_rescale": False}}, "do_rescale is False; accepted: True"),
    "cropped": ({"said": {"do_center_crop": True}}, "do_center_crop is True; accepted: False"),
    "another filter": ({"said": {"resample": 1}}, "resample is 1; accepted: 2, 3"),
    "a new key": ({"said": {"sharpen": 2}}, "sharpen is 2, which nothing reads and might change"),
    "a new key of the whole": ({"own": {"sharpen": 2}}, f"{WHOLE}: sharpen is 2, which nothing"),
    "another type": (
        {"said": {"image_processor_type": "ViTImageProcessorFast"}},
        f"{PICTURES}: image_processor_type is 'ViTImageProcessorFast'; accepted for this model: ",
    ),
    "nested as text": ({"own": {"image_processor": "a"}}, "accepted: an object"),
    "no file": (
        {"files": {}},
        "the checkpoint has no preprocessor_config.json, nor image_processor",
    ),
    "no token": ({"token_id": lambda text: None}, "the tokenizer has no token '"),
    "another id": ({"token_id": lambda text: 999}, " as token 999, and config.json takes features"),
}


@pytest.mark.parametrize("kind", kinds.NAMES)
@pytest.mark.parametrize("what", EVERY)
def test_refused_of_every_kind(kind: str, what: str) -> None:
    changes, message = EVERY[what]
    if kind == "kimi_k25" and "said" in changes:  # the Hub's file is read as such alone
        changes = {"said": {"media_proc_cfg": None, "patch_size": 4, **changes["said"]}}
    with pytest.raises(CheckpointError) as caught:
        kinds.get(kind).read(files(kind, **changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


OWN: dict[str, tuple[str, Callable[[], dict[str, Any]], str]] = {
    "a patch of another size": (
        "mistral3",
        lambda: {"own": {"patch_size": 16}},
        f"{WHOLE}: patch_size is 16, but config.json: vision_config.patch_size is 14",
    ),
    "a size of two sides": (
        "mistral3",
        lambda: {"said": {"size": {"height": 9, "width": 9}}},
        f"{PICTURES}: size is {{'height': 9, 'width': 9}}; accepted: an object with longest_edge",
    ),
    "no square": (
        "gemma3",
        lambda: {"said": {"size": {"height": 56, "width": 28}}},
        "accepted: a square",
    ),
    "other tokens": (
        "gemma3",
        lambda: {"own": {"image_seq_length": 9}},
        "mm_tokens_per_image is 4",
    ),
    "pixels of other tokens": (
        "gemma3n",
        lambda: {"said": {"size": {"height": 90, "width": 90}}},
        "size is 90x90; accepted: 96, for 4 tokens",
    ),
    "a text that prompts do not have": (
        "llama4",
        lambda: {"own": {"patch_token": "<p>"}},
        "patch_token is '<p>'; accepted: '<|patch|>'",
    ),
    "frames of another patch": (
        "qwen3_5",
        lambda: {"said": {"temporal_patch_size": 4}},
        "temporal_patch_size is 4, but config.json: vision_config.temporal_patch_size is 2",
    ),
    "more frames than times": (
        "kimi_k25",
        lambda: {"config": configs("kimi_k25", pos_emb_time=3)[0]},
        "temporal_patch_size is 4; accepted: as vision_config.pos_emb_time, up to 3",
    ),
    "a limit that is not applied": (
        "kimi_k25",
        lambda: {"said": {"media_proc_cfg": HUB["media_proc_cfg"] | {"fixed_output_tokens": 9}}},
        "media_proc_cfg.fixed_output_tokens is 9; accepted: null",
    ),
    "dither": ("gemma3n", lambda: {"said": {"dither": 0.1}}, "dither is 0.1; accepted: 0 to 0"),
}


@pytest.mark.parametrize("what", OWN)
def test_refused(what: str) -> None:
    kind, changes, message = OWN[what]
    with pytest.raises(CheckpointError) as caught:
        kinds.get(kind).read(files(kind, **changes()))
    assert message in str(caught.value)


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an unknown kind": (lambda r: r.update(kind="x"), "kind is 'x'; accepted: gemma3, "),
    "a size less": (lambda r: r["image"]["sizes"].pop("longest"), "image.sizes.longest is missing"),
    "a size more": (lambda r: r["image"]["sizes"].update(x=1), "image.sizes.x is unknown"),
    "no pixels": (lambda r: r["image"].update(pixels=None), "image.pixels: accepted: an object"),
    "a mean alone": (
        lambda r: r["image"]["pixels"].update(std=None),
        "mean and std: accepted: both",
    ),
    "a video": (lambda r: r.update(video=r["image"]), "video: mistral3 has none; accepted: null"),
    "a mark less": (
        lambda r: r["marks"].pop("end"),
        "marks are ['break']; accepted: ['break', 'end",
    ),
    "no deviation": (
        lambda r: r["image"]["pixels"].update(std=[0, 1, 1]),
        "std[0] is 0.0; accepted",
    ),
}


@pytest.mark.parametrize("what", RECORDS)
def test_records_refused(what: str) -> None:
    raw = asdict(kinds.get("mistral3").read(files("mistral3")))
    change, message = RECORDS[what]
    change(raw)
    with pytest.raises(RecordError) as caught:
        read(Processor, raw)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", kinds.NAMES)
def test_capped(kind: str) -> None:
    """A limit of pixels holds for any picture, or is refused where pictures are all of one size."""
    found = kinds.get(kind).read(files(kind))
    if kind in ("gemma3", "gemma3n"):
        with pytest.raises(PictureError, match="takes pictures of one size"):
            vision.capped(found, 1000)
        return
    unit = 56 * 56 if kind == "llama4" else 28 * 28 if kind == "mistral3" else 64
    less = vision.capped(found, 4 * unit)
    shapes = [(4000, 3000), (30, 400), (9, 7), (600, 600)]
    counts = [vision.features(less, *shape) for shape in shapes]
    # Llama 4 shows the whole once more; Kimi's patches are filled up to tokens on both sides; the
    # longest of these is a single token wide, and Qwen's rule leaves it its length.
    most = {"llama4": 5 * 4, "kimi_k25": 8, "qwen3_5": 7}.get(kind, 4)
    assert max(counts) <= most < max(vision.features(found, *shape) for shape in shapes)


@pytest.mark.parametrize("kind", kinds.NAMES)
def test_the_longest_pictures_that_are_taken(kind: str) -> None:
    """Sides that a rule rounds to nothing are a pixel."""
    found = kinds.get(kind).read(files(kind))
    for each in (
        [found] if kind in ("gemma3", "gemma3n") else [found, vision.capped(found, 56 * 56)]
    ):
        for shape in ((1, 200), (200, 1), (1, 1)):
            (made,) = vision.encode(each, [np.zeros((*shape, 3), np.uint8)])
            assert made.features == vision.features(each, *shape) > 0


def test_crops_where_a_model_takes_them() -> None:
    wide = oracle.picture(256, 1024)
    for kind in kinds.NAMES:
        found = kinds.get(kind).read(files(kind))
        if kind == "gemma3":
            (whole,), (cropped,) = (
                vision.encode(each, [wide]) for each in (found, vision.with_crops(found))
            )
            assert cropped.features == 5 * whole.features
            assert cropped.text.count(whole.text) == 5
        else:
            with pytest.raises(PictureError, match="crops: this model is shown a picture whole"):
                vision.with_crops(found)


QWEN = kinds.get("qwen3_5").read(files("qwen3_5"))
KIMI = kinds.get("kimi_k25").read(files("kimi_k25", token_id=lambda text: (
    None if text == oracle.KIMI_VIDEO else oracle.IDS.get(text)
)))  # fmt: skip
SMALL = oracle.picture(16, 24)
CLIP = vision.Clip([SMALL] * 6, tuple(i / 2 for i in range(6)))


def ids(text: str) -> list[int]:
    """Tokens of special texts and letters, as a tokenizer makes them."""
    found = []
    while text:
        special = next((t for t in oracle.IDS if text.startswith(t)), None)
        found.append(900 if special is None else oracle.IDS[special])
        text = text[len(special or "x") :]
    return found


def test_a_videos_frame_goes_with_its_placeholder() -> None:
    made = vision.encode_video(QWEN, CLIP)
    framed = prompts.expand(QWEN, "a <|vision_start|><|video_pad|><|vision_end|>", made)
    assert framed == prompts.expand(QWEN, "a <|video_pad|>", made)
    assert framed.count("<|vision_start|>") == framed.count("seconds>") == 3
    assert prompts.written(QWEN, made) == "<|vision_start|><|video_pad|><|vision_end|>"


def test_places_of_a_part() -> None:
    """The second turn of a conversation goes on where the first has stopped."""
    picture = vision.encode(QWEN, [SMALL])
    text = "abc <|vision_start|><|image_pad|><|vision_end|> def"
    whole = ids(prompts.expand(QWEN, text, picture))
    both = prompts.places(QWEN, whole + whole, picture + picture)
    first = prompts.places(QWEN, whole, picture)
    second = prompts.places(QWEN, whole, picture, len(whole), first.rope_delta)
    assert first.rope_positions is not None and second.rope_positions is not None
    assert second.rope_delta == both.rope_delta == 2 * first.rope_delta < 0
    joined = np.concatenate([first.rope_positions, second.rope_positions])
    np.testing.assert_array_equal(joined, both.rope_positions)
    rows = second.image_rows + (second.image_rows >= 0) * picture[0].features
    np.testing.assert_array_equal(np.concatenate([first.image_rows, rows]), both.image_rows)


def test_visible_ends() -> None:
    gemma = kinds.get("gemma3").read(files("gemma3"))
    made = vision.encode(gemma, [SMALL, SMALL])
    text = prompts.expand(gemma, "a<start_of_image>b<start_of_image>", made)
    found = prompts.places(gemma, ids(text), made, start=100)
    assert found.visible_ends is not None
    own = 100 + np.arange(len(found.image_rows))
    inside = found.image_rows >= 0
    np.testing.assert_array_equal(found.visible_ends[~inside], own[~inside])
    runs = np.split(found.visible_ends[inside], 2)
    ends = np.flatnonzero(inside)[[3, 7]] + 100
    assert [set(run.tolist()) for run in runs] == [{ends[0]}, {ends[1]}]
    assert (found.input_ids[inside] == 0).all()


def test_videos_without_a_token_of_their_own() -> None:
    """The tokenizer of Kimi on the Hub has none: features stand at the token of pictures."""
    assert KIMI.video is not None and KIMI.video.id == KIMI.image.id
    media = vision.encode(KIMI, [SMALL]) + vision.encode_video(KIMI, CLIP)
    text = prompts.expand(KIMI, f"<|media_pad|> and {oracle.KIMI_VIDEO}", media)
    assert prompts.places(KIMI, ids(text), media).image_rows.max() + 1 == sum(
        each.features for each in media
    )
    with pytest.raises(PictureError, match="give them in the order of the prompt"):
        prompts.expand(KIMI, f"{oracle.KIMI_VIDEO} and <|media_pad|>", media)


def test_prompts_refused() -> None:
    picture = vision.encode(QWEN, [SMALL])
    for text, given, message in (
        ("a", picture, r"0 placeholders of pictures \(<\|image_pad\|>\), and 1 picture is given"),
        ("<|image_pad|>", [], "1 placeholder of pictures .*, and 0 pictures are given"),
        ("<|image_pad|><|video_pad|>", picture, "1 placeholder of videos"),
    ):
        with pytest.raises(PictureError, match=message):
            prompts.expand(QWEN, text, given)
    with pytest.raises(PictureError, match=r"the message contains '<.image_pad.>'"):
        prompts.refuse_tokens(QWEN, "say <|image_pad|>", "the message")
    prompts.refuse_tokens(QWEN, "say <image_pad>")
    with pytest.raises(PictureError, match=r"has 2 tokens .* given take 6; give one placeholder"):
        prompts.places(QWEN, [oracle.IDS["<|image_pad|>"]] * 2, picture)
    with pytest.raises(PictureError, match=r"has 99 tokens, of which 6 are .* \(picture 6\)"):
        prompts.require_context(picture, 99, 64)
    prompts.require_context(picture, 64, 64)
    with pytest.raises(PictureError, match=r"of which 18 are .* \(3 pictures of 6 each\)"):
        prompts.require_context(picture * 3, 99, 64)
    mistral = kinds.get("mistral3").read(files("mistral3"))
    with pytest.raises(PictureError, match="this model takes no videos; it takes pictures"):
        vision.encode_video(mistral, CLIP)
