"""Pictures that cannot be: one line each, before anything runs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_calls import IMAGE, TEXT, A, B, answer
from PIL import Image
from tiny.llama import tiny_llama

from lmcast.exporter import Engine, export, load
from lmcast.exporter.runtime.prepare import Pictured
from lmcast.exporter.runtime.tower import Tower
from lmcast.plugins.errors import InputError


@pytest.fixture(scope="module")
def engine(pictured: Path) -> Engine:
    return load(pictured / "engine", threads=1)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def nested(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no file": ("what?", "none.png", "none.png"),
    "no picture": ("what?", b"not a picture", "is no picture in a format that is read"),
    "half a picture": ("what?", png(A)[:-60], "is damaged"),
    "too long": ("what?", np.zeros((1, 300, 3), np.uint8), "more than 200 times as long"),
    "a number": ("what?", 3, "images is 3; accepted: paths, bytes of files, images of PIL"),
    "of several prompts": (["a", "b"], [A, B], "images: 2 prompts and 2 images; give a list for"),
    "of fewer prompts": (["a", "b"], [[A]], "images: 2 prompts and 1 images; give a list for each"),
    "given twice": (Pictured("a", [A]), [A], "images: prompts have their own; give one of the two"),
    "no part": ([{"role": "user", "content": "a"}], [A], "messages: 0 parts {'type': 'image'} and"),
    "a part too many": (nested(IMAGE, TEXT, IMAGE), [A], "and 1 images are given; give one"),
    "a part without": (nested(IMAGE, TEXT), None, "and 0 images are given; give one"),
    "a part with a file": (nested({**IMAGE, "path": "a.png"}), [A], "messages: a part is {'t"),
    "another's part": (nested({"type": "image_url"}), [A], "says where a picture of `images`"),
    "a placeholder": ("what is [IMG]?", [A], "the chat contains '[IMG]', which stands for a pict"),
    "without a picture": ("what is [IMG]?", None, "the chat contains '[IMG]', which stands for a"),
    "in a message": (nested(IMAGE, {**TEXT, "text": "[IMG]"}), [A], "the chat contains '[IMG]'"),
    "few ids": ([2, 2, 3, 4], [A], "the prompt has 2 tokens '[IMG]', and"),
    "ids without": ([2, 2, 3, 4], None, "the prompt has 2 tokens '[IMG]', and"),
    "beyond the context": (
        "what?", [A] * 30, "(30 pictures of 12 each)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str, engine: Engine):
    prompt, images, message = REFUSED[name]
    with pytest.raises(InputError) as refused:
        answer(engine, prompt, images=images)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


COMMANDS: dict[str, tuple[list[str], str]] = {
    "a text engine": (["text", "what?", "--image", "a.png"], "its checkpoint has a tower, which"),
    "no file": (["engine", "what?", "--image", "none.png"], "none.png"),
    "a placeholder": (["engine", "[IMG]", "--image", "a.png"], "the chat contains '[IMG]'"),
    "of a completion": (["engine", "[IMG]", "--no-chat"], "the prompt contains '[IMG]'"),
    "too many": (["engine", "what?", *["--image", "a.png"] * 30], "the context holds 256"),
    "too many with the answer": (
        ["engine", "what?", *["--image", "a.png"] * 4, "-n", "250"], "its pictures take 12, "
    ),
    "of a file": (["engine", "--file", "p.jsonl", "--image", "a.png"], "--video and --audio are"),
    "of a line": (["engine", "--file", "bad.jsonl"], 'bad.jsonl:1: "images": there is no file'),
    "a video": (["engine", "what?", "--video", ".", "--fps", "2"], "this model takes no videos"),
    "a rate alone": (["engine", "what?", "--fps", "2"], "fps: is of videos, and there are none"),
    "a rate of none": (["engine", "what?", "--video", ".", "--fps", "0"], "fps is 0.0; accepted"),
    "no pictures": (["engine", "what?", "--max-pixels", "9"], "max_pixels: is for pictures, and"),
    "no pixels": (["engine", "what?", "--image", "a.png", "--max-pixels", "0"], "max_pixels is 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_refuses(name: str, pictured: Path, lmcast, monkeypatch: pytest.MonkeyPatch):
    words, message = COMMANDS[name]
    (pictured / "bad.jsonl").write_text('{"prompt": "a", "images": ["none.png"]}')
    monkeypatch.chdir(pictured)
    status, out, error = lmcast("generate", *words)
    assert (status, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_features_that_are_not_finite_are_refused(engine: Engine):
    broken = Tower(engine.tower.processor, lambda inputs: [np.full((12, 32), np.nan, np.float32)])
    with pytest.raises(InputError, match="features hold NaN or Inf, so the tower's computation"):
        broken.see([engine.picture(A)])
    other = Tower(engine.tower.processor, lambda inputs: [np.zeros((3, 32), np.float32)])
    with pytest.raises(InputError, match="the tower gives 3 features, and 12 tokens wait"):
        other.see([engine.picture(A)])


def test_text_engines_say_why_they_see_nothing(pictured: Path, tmp_path: Path):
    text = load(pictured / "text")
    for refused in (
        lambda: answer(text, "what?", images=[A]),
        lambda: answer(text, nested(IMAGE, TEXT)),
        lambda: text.picture(A),
    ):
        with pytest.raises(InputError, match="this engine takes no pictures: its checkpoint has a"):
            refused()
    tiny_llama(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "engine", parity=False)
    with pytest.raises(InputError, match="its model, llama, reads text alone"):
        answer(load(tmp_path / "engine"), "what?", images=[A])
