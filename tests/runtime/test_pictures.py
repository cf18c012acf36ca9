"""Pictures through an engine: prompts with them, batches, turns, files; and what is refused."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.llama import tiny_llama
from tiny.pictures import LONGEST, MARKS, UNIT, pixels, tiny_mistral3

from lmcast.exporter import Chat, Engine, export, load
from lmcast.exporter.bench import bench
from lmcast.exporter.cli import chat
from lmcast.exporter.runtime import tower as towers
from lmcast.exporter.runtime.generate import Generated
from lmcast.exporter.runtime.images import Images
from lmcast.exporter.runtime.prepare import Pictured
from lmcast.exporter.runtime.tower import Tower
from lmcast.plugins.errors import InputError

CLOSE = 1e-5  # fp32 sums in another order, of logits near 1
A, B, WIDE = pixels(20, 30, 1), pixels(9, 8, 2), pixels(8, 60, 3)
TAKES = [12, 2, 4]  # of 24x32, 16x8 and 8x32 pixels, each 8x8 a token
IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "what?"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of one checkpoint: whole, and its text alone; and the pictures as files."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pictures")
    tiny_mistral3(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", parity=False)
    export(folder / "checkpoint", folder / "text", parity=False, text_only=True)
    for name, picture in (("a", A), ("b", B), ("wide", WIDE)):
        Image.fromarray(picture).save(folder / f"{name}.png")
    torch.set_num_threads(before)
    return folder


@pytest.fixture(scope="module")
def engine(made: Path) -> Engine:
    return load(made / "engine", threads=1)


def written(rows: int, columns: int) -> str:
    """A picture as a prompt has it, by Mistral's description."""
    row = MARKS[0] * columns
    return MARKS[1].join([row] * rows) + MARKS[2]


SEEN = written(3, 4), written(2, 1), written(1, 4)


def answer(engine: Engine, *args: Any, **more: Any) -> list[Generated]:
    return engine.generate(*args, max_new_tokens=4, **more)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "a path": lambda folder: folder / "a.png",
    "a text": lambda folder: str(folder / "a.png"),
    "bytes": lambda folder: (folder / "a.png").read_bytes(),
    "an image of Pillow's": lambda folder: Image.open(folder / "a.png"),
    "an array": lambda folder: A,
    "a list": lambda folder: [A],
    "a list for each prompt": lambda folder: [[A]],
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_picture_is_given_in_any_form(name: str, made: Path, engine: Engine):
    want = answer(engine, "what?", images=[engine.picture(A)])
    assert answer(engine, "what?", images=SOURCES[name](made)) == want
    assert answer(engine, ["what?"], images=SOURCES[name](made)) == want
    assert want[0].image_tokens == (TAKES[0],)


PROMPTS: dict[str, tuple[Any, Sequence[np.ndarray], dict[str, Any], str]] = {
    "a text in the template": ("what?", [A], {}, f"<s>[user]{SEEN[0]}what?[assistant]"),
    "two pictures": ("what?", [A, WIDE], {}, f"<s>[user]{SEEN[0]}{SEEN[2]}what?[assistant]"),
    "no template": ("what?", [B, A], {"chat": False}, f"{SEEN[1]}{SEEN[0]}what?"),
    "in the middle": (
        [{"role": "user", "content": [TEXT, IMAGE, TEXT]}],
        [A], {}, f"<s>[user]what?{SEEN[0]}what?[assistant]",
    ),
    "in several messages": (
        Chat([{"role": "user", "content": [IMAGE, TEXT]}, {"role": "a", "content": "hm"},
              {"role": "user", "content": [TEXT, IMAGE]}], variables={"reasoning_effort": "low"}),
        [A, B], {}, f"<s>[user]{SEEN[0]}what?[a]hm[user]what?{SEEN[1]}low[assistant]",
    ),
    "none": ([{"role": "user", "content": [TEXT]}], [], {}, "<s>[user]what?[assistant]"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_hold_their_pictures(name: str, engine: Engine):
    prompt, pictures, more, text = PROMPTS[name]
    ids = engine.text.encode(text, special=False)
    (ready,) = engine.prepare(prompt, pictures or None, **more)
    assert ready.ids == ids
    (same,) = engine.prepare([ids], [pictures])
    assert same.ids == ids
    (result,) = answer(engine, prompt, images=pictures or None, **more)
    assert result.prompt == tuple(ids)
    assert result == answer(engine, Pictured(prompt, pictures), **more)[0]
    assert result == answer(engine, ids, images=pictures)[0]
    if not pictures:
        assert ready.images is None
        assert engine.encode(prompt) == [ids]
        return
    assert ready.images is not None
    at = np.flatnonzero(ready.images.image_rows >= 0)
    assert (np.array(ids)[at] == engine.text.id_of(MARKS[0])).all()
    assert ready.images.image_rows[at].tolist() == list(range(len(at)))
    with pytest.raises(InputError, match="prompts: some have pictures"):
        engine.encode(Pictured(prompt, pictures), **more)


def test_the_model_sees(engine: Engine):
    """Another picture, or the same ones in another order, are other logits."""
    ids = engine.text.encode(SEEN[0] + SEEN[0] + "?", special=False)
    other = pixels(20, 30, 4)

    def logits(*pictures: np.ndarray) -> np.ndarray:
        (ready,) = engine.prepare([ids], [pictures])
        return engine.session().append([ready.ids], None, [ready.images])

    first = logits(A, other)
    np.testing.assert_array_equal(first, logits(A, other))
    assert np.abs(first - logits(other, A)).max() > 100 * CLOSE
    assert np.abs(first - logits(A, A)).max() > 100 * CLOSE


def test_a_batch_is_as_each_alone(engine: Engine):
    prompts = ["what?", "and this", [{"role": "user", "content": [IMAGE, TEXT, IMAGE]}], [70, 71]]
    pictures = [[A], [], [WIDE, B], []]
    together = answer(engine, prompts, images=pictures)
    alone = [answer(engine, [p], images=[i])[0] for p, i in zip(prompts, pictures, strict=True)]
    assert together == alone
    assert [result.image_tokens for result in together] == [(12,), (), (4, 2), ()]


def test_turns_keep_their_pictures(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """Each is seen once, though its turn is said again; and another one in its place is seen."""
    seen: list[int] = []
    features = Tower._features

    def watched(self: Tower, encoded: Any) -> Any:
        seen.append(len(encoded))
        return features(self, encoded)

    monkeypatch.setattr(Tower, "_features", watched)
    said: list[dict[str, Any]] = []
    talk, given = engine.conversation(), []
    for picture in (A, B, None):
        content = [TEXT] if picture is None else [IMAGE, TEXT]
        said.append({"role": "user", "content": content})
        given += [] if picture is None else [picture]
        seen.clear()
        (result,) = answer(engine, said, images=given, conversation=talk)
        assert seen == ([] if picture is None else [1])
        assert result == answer(engine, said, images=given)[0]
        said.append({"role": "assistant", "content": result.text})
    cached, other = talk.cached, [pixels(20, 30, 9), B]
    seen.clear()
    said[-1] = {"role": "user", "content": "and now?"}
    (changed,) = answer(engine, said, images=other, conversation=talk)
    assert sum(seen) == 2
    assert changed == answer(engine, said, images=other)[0]
    assert talk.cached > 0 < cached


def test_pictures_of_one_grid_are_one_call(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[int, ...]] = []
    run = engine._run_tower

    def watched(inputs: Mapping[str, np.ndarray]) -> Any:
        calls.append(inputs["patches"].shape[:3])
        return run(inputs)

    monkeypatch.setitem(engine.__dict__, "_run_tower", watched)
    same = [engine.picture(pixels(20, 30, seed)) for seed in range(3)]
    alone = [engine.picture(pixels(20, 30, seed)) for seed in range(3)]
    wide = engine.picture(WIDE)
    engine.tower.see([same[0], wide, same[1], same[2], same[0]])
    assert sorted(calls) == [(1, 4, 4), (3, 12, 4)]
    calls.clear()
    monkeypatch.setattr(towers, "PATCHES", 12 * 4 + 1)
    engine.tower.see([*alone, wide])
    assert calls == [(1, 12, 4)] * 3
    for one, other in zip(same, alone, strict=True):
        np.testing.assert_allclose(one.features, other.features, atol=CLOSE)
        assert all(not each.inputs for each in one.encoded), "what is no longer needed is dropped"


def test_smaller_pictures(made: Path, engine: Engine, lmcast):
    most = 2 * UNIT * UNIT  # in whole tokens, of one side: a square of one token
    smaller = engine.picture(A, max_pixels=most)
    assert (engine.picture(A).rows, smaller.rows) == (12, 1)
    want = answer(engine, "what?", images=[smaller])
    assert answer(engine, "what?", images=[A], max_pixels=most) == want
    assert answer(engine, "what?", images=[A], max_pixels=LONGEST**2) != want
    out = command(lmcast, made, "what?", "--image", made / "a.png", "--max-pixels", most)
    assert out[0]["prompt"] == list(want[0].prompt)


def command(lmcast: Any, made: Path, *options: Any) -> list[dict[str, Any]]:
    status, out, error = lmcast("generate", made / "engine", *options, "-n", 4, "--json")
    assert (status, error) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_the_command(made: Path, engine: Engine, lmcast):
    a, b = ["--image", made / "a.png"], ["--image", made / "b.png"]
    (want,) = answer(engine, "what?", images=[A, B])
    (found,) = command(lmcast, made, "what?", *a, *b)
    assert (found["ids"], found["image_tokens"]) == (list(want.ids), TAKES[:2])
    assert lmcast("generate", made / "engine", "what?", *a, *b, "-n", 4)[1] == want.text + "\n"
    (system,) = command(lmcast, made, "what?", *a, "--system", "be")
    chat = [{"role": "system", "content": "be"}, {"role": "user", "content": [IMAGE, TEXT]}]
    assert [system["prompt"]] == [engine.prepare(chat, [A])[0].ids]
    ids = " ".join(map(str, want.prompt))
    assert command(lmcast, made, ids, "--ids", *a, *b) == [found]
    lines = [
        {"prompt": "what?", "images": ["a.png", "b.png"]},
        {"messages": chat[1:], "images": [str(made / "a.png")]},
        {"prompt": "hm"},
    ]
    (made / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    several = command(lmcast, made, "--file", made / "p.jsonl")
    assert several[0] == found
    assert [each["image_tokens"] for each in several] == [[12, 2], [12], []]
    with_system = command(lmcast, made, "--file", made / "p.jsonl", "--system", "be")
    assert with_system[1]["prompt"] == system["prompt"]
    assert with_system[0]["image_tokens"] == [12, 2]


def test_a_chat_at_a_terminal(made: Path, engine: Engine, lmcast, monkeypatch: pytest.MonkeyPatch):
    """Pictures come with the next message, and stay; a wrong one is said, and nothing is lost."""
    typed = ["what?", "/image", "/image none.png", "/image b.png", "and?", "hm", "/new", "what?"]
    lines = iter(typed)

    def type_line(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.chdir(made)
    monkeypatch.setattr(chat, "is_terminal", lambda stream: True)
    monkeypatch.setattr("builtins.input", type_line)
    status, out, error = lmcast("generate", made / "engine", "--image", "a.png", "-n", 4)
    assert status == 0
    messages: list[Any] = []
    expected, shown = "", [A]
    for words, content in (("what?", [IMAGE]), ("and?", [IMAGE]), ("hm", []), ("/new", []),
                           ("what?", [])):  # fmt: skip
        if words == "/new":
            messages, shown = [], []
            continue
        shown += [B] if words == "and?" else []
        said = [*content, {"type": "text", "text": words}] if content else words
        messages.append({"role": "user", "content": said})
        (result,) = answer(engine, messages, images=shown or None)
        messages.append({"role": "assistant", "content": result.text})
        expected += f"{result.text}\n"
    assert out == expected + "\n"
    assert "/image FILE shows a picture with the next message" in error
    assert "error: which file?" in error
    assert "none.png" in error
    assert "(2 tokens, with the next message)" in error


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def nested(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no file": ("what?", "none.png", "none.png"),
    "no picture": ("what?", b"not a picture", ""),
    "half a picture": ("what?", png(A)[:-60], ""),
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
        "what?", [A] * 30, "(picture 12, picture 12, ",
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
    "of a file": (["engine", "--file", "p.jsonl", "--image", "a.png"], "--image and --video are"),
    "of a line": (["engine", "--file", "bad.jsonl"], 'bad.jsonl:1: "images": there is no file'),
    "a video": (["engine", "what?", "--video", ".", "--fps", "2"], "this model takes no videos"),
    "a rate alone": (["engine", "what?", "--fps", "2"], "fps: is of videos, and there are none"),
    "a rate of none": (["engine", "what?", "--video", ".", "--fps", "0"], "fps is 0.0; accepted"),
    "no pictures": (["engine", "what?", "--max-pixels", "9"], "max_pixels: is for pictures, and"),
    "no pixels": (["engine", "what?", "--image", "a.png", "--max-pixels", "0"], "max_pixels is 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_refuses(name: str, made: Path, lmcast, monkeypatch: pytest.MonkeyPatch):
    words, message = COMMANDS[name]
    (made / "bad.jsonl").write_text('{"prompt": "a", "images": ["none.png"]}')
    monkeypatch.chdir(made)
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


def test_text_engines_say_why_they_see_nothing(made: Path, tmp_path: Path):
    text = load(made / "text")
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


def test_the_graph_is_loaded_with_the_first_picture(made: Path):
    fresh = load(made / "engine")
    answer(fresh, "what?")
    assert "_run_tower" not in vars(fresh)
    answer(fresh, "what?", images=[A])
    assert "_run_tower" in vars(fresh)


def test_a_benchmark_with_a_picture(made: Path):
    report = bench(made / "engine", 8, 2, batch=2, runs=1, image=made / "a.png")
    assert (report.image_tokens, report.prompt_tokens) == (12, 8)
    assert report.prepare_seconds is not None
    assert report.encode_seconds is not None
    assert "2 x a picture of 12 and 8 + 2 tokens" in report.text()
    assert "s in the tower: 12 tokens" in report.text()
    with pytest.raises(InputError, match="tokens of the picture, 250 prompt_tokens and 32 new_"):
        bench(made / "engine", 250, image=made / "a.png")


def test_images_may_go_on(engine: Engine):
    (ready,) = engine.prepare("", [A], chat=False)
    assert isinstance(ready.images, Images)
    longer = ready.images.followed_by(3)
    want = engine.session().append([[*ready.ids, 7, 8, 9]], None, [longer])
    one = engine.session()
    one.append([ready.ids], None, [ready.images])
    np.testing.assert_allclose(one.append([[7, 8, 9]]), want, atol=CLOSE)
