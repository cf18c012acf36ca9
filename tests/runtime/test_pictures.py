"""Pictures through an engine: prompts with them, batches, turns, files; and what is refused."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_calls import IMAGE, TAKES, TEXT, WIDE, A, B, answer
from PIL import Image
from tiny.pictures import LONGEST, MARKS, UNIT, pixels

from lmcast.exporter import Chat, Engine, load
from lmcast.exporter.bench import bench
from lmcast.exporter.cli import chat
from lmcast.exporter.runtime import tower as towers
from lmcast.exporter.runtime.images import Images
from lmcast.exporter.runtime.prepare import Pictured
from lmcast.exporter.runtime.tower import Tower
from lmcast.exporter.vision.processor import Medium, Pixels, Processor
from lmcast.plugins.errors import InputError

CLOSE = 1e-5  # fp32 sums in another order, of logits near 1


@pytest.fixture(scope="module")
def engine(pictured: Path) -> Engine:
    return load(pictured / "engine", threads=1)


def written(rows: int, columns: int) -> str:
    """A picture as a prompt has it, by Mistral's description."""
    row = MARKS[0] * columns
    return MARKS[1].join([row] * rows) + MARKS[2]


SEEN = written(3, 4), written(2, 1), written(1, 4)


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
def test_a_picture_is_given_in_any_form(name: str, pictured: Path, engine: Engine):
    want = answer(engine, "what?", images=[engine.picture(A)])
    assert answer(engine, "what?", images=SOURCES[name](pictured)) == want
    assert answer(engine, ["what?"], images=SOURCES[name](pictured)) == want
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


QWEN: dict[str, Any] = {"least": 64, "most": 1600, "patch": 4, "merge": 2, "frames": 2, "table": 4}
OF_VIDEO = {"most": 99999, "rate": None, "fewest": 4, "most_frames": 768, "frame_tokens": None}


def test_a_video_is_a_picture_of_frames(tmp_path: Path, engine: Engine):
    """With a stand-in for the tower of a model that takes them."""
    pixel = Pixels("bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    image = Medium("[P]", "<[P]>", "[P]", 5, QWEN, pixel)
    video = Medium("[V]", "<[V]>", "[V]", 6, QWEN | OF_VIDEO, pixel)
    processor = Processor("qwen3_5", image, video, marks={"start": "<", "end": ">"})
    calls: list[tuple[int, ...]] = []

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        calls.append(inputs["patches"].shape[:3])
        return [np.ones((calls[-1][0] * calls[-1][1], 3), np.float32)]

    tower, frames = Tower(processor, run), [pixels(16, 24, seed) for seed in range(6)]
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    seen = tower.video(tmp_path, 2.0)
    assert seen.digest == tower.video(frames, 2.0).digest != tower.video(frames[::-1], 2.0).digest
    assert (seen.medium, seen.rows) == ("video", 3 * 6)
    assert seen.digest == tower.video(np.stack(frames), 2.0).digest
    with pytest.raises(InputError, match="takes no videos"):
        engine.video(np.stack(frames), 2.0)
    tower.see([seen, tower.picture(frames[0])])
    assert calls == [(3, 6, 4), (1, 6, 4)], "pairs of frames attend to themselves"
    text = tower.expand("a" + tower.written([seen]), [seen])
    assert text.count("[V]") == 18
    assert text.count("seconds>") == 3
    ids = [6 if mark == "[V]" else 0 for mark in re.findall(r"\[V\]|.", text)]
    _, images = tower.place(ids, [seen])
    assert images.tokens == (18,)
    assert images.rope_positions is not None
    fewer = tower.video(frames, 2.0, max_pixels=64)
    assert fewer.rows < seen.rows


def test_smaller_pictures(pictured: Path, engine: Engine, lmcast):
    most = 2 * UNIT * UNIT  # in whole tokens, of one side: a square of one token
    smaller = engine.picture(A, max_pixels=most)
    assert (engine.picture(A).rows, smaller.rows) == (12, 1)
    want = answer(engine, "what?", images=[smaller])
    assert answer(engine, "what?", images=[A], max_pixels=most) == want
    assert answer(engine, "what?", images=[A], max_pixels=LONGEST**2) != want
    out = command(lmcast, pictured, "what?", "--image", pictured / "a.png", "--max-pixels", most)
    assert out[0]["prompt"] == list(want[0].prompt)


def command(lmcast: Any, pictured: Path, *options: Any) -> list[dict[str, Any]]:
    status, out, error = lmcast("generate", pictured / "engine", *options, "-n", 4, "--json")
    assert (status, error) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_the_command(pictured: Path, engine: Engine, lmcast):
    a, b = ["--image", pictured / "a.png"], ["--image", pictured / "b.png"]
    (want,) = answer(engine, "what?", images=[A, B])
    (found,) = command(lmcast, pictured, "what?", *a, *b)
    assert (found["ids"], found["image_tokens"]) == (list(want.ids), TAKES[:2])
    assert lmcast("generate", pictured / "engine", "what?", *a, *b, "-n", 4)[1] == want.text + "\n"
    (system,) = command(lmcast, pictured, "what?", *a, "--system", "be")
    chat = [{"role": "system", "content": "be"}, {"role": "user", "content": [IMAGE, TEXT]}]
    assert [system["prompt"]] == [engine.prepare(chat, [A])[0].ids]
    ids = " ".join(map(str, want.prompt))
    assert command(lmcast, pictured, ids, "--ids", *a, *b) == [found]
    line = {"prompt": list(want.prompt), "images": ["a.png", "b.png"]}
    (pictured / "ids.jsonl").write_text(json.dumps(line))
    assert command(lmcast, pictured, "--file", pictured / "ids.jsonl", "--ids") == [found]
    lines = [
        {"prompt": "what?", "images": ["a.png", "b.png"]},
        {"messages": chat[1:], "images": [str(pictured / "a.png")]},
        {"prompt": "hm"},
    ]
    (pictured / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    several = command(lmcast, pictured, "--file", pictured / "p.jsonl")
    assert several[0] == found
    assert [each["image_tokens"] for each in several] == [[12, 2], [12], []]
    with_system = command(lmcast, pictured, "--file", pictured / "p.jsonl", "--system", "be")
    assert with_system[1]["prompt"] == system["prompt"]
    assert with_system[0]["image_tokens"] == [12, 2]


def test_a_chat_at_a_terminal(
    pictured: Path, engine: Engine, lmcast, monkeypatch: pytest.MonkeyPatch
):
    """Pictures come with the next message, and stay; a wrong one is said, and nothing is lost."""
    typed = ["what?", "/image", "/image none.png", "/image b.png", "and?", "hm", "/new", "what?"]
    lines = iter(typed)

    def type_line(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.chdir(pictured)
    monkeypatch.setattr(chat, "is_terminal", lambda stream: True)
    monkeypatch.setattr("builtins.input", type_line)
    status, out, error = lmcast("generate", pictured / "engine", "--image", "a.png", "-n", 4)
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


def test_the_graph_is_loaded_with_the_first_picture(pictured: Path):
    fresh = load(pictured / "engine")
    answer(fresh, "what?")
    assert "_run_tower" not in vars(fresh)
    answer(fresh, "what?", images=[A])
    assert "_run_tower" in vars(fresh)


def test_a_benchmark_with_a_picture(pictured: Path):
    report = bench(pictured / "engine", 8, 2, batch=2, runs=1, image=pictured / "a.png")
    assert (report.image_tokens, report.prompt_tokens) == (12, 8)
    assert report.prepare_seconds is not None
    assert report.encode_seconds is not None
    assert "2 x a picture of 12 and 8 + 2 tokens" in report.text()
    assert "s in the tower: 12 tokens" in report.text()
    with pytest.raises(InputError, match="tokens of the picture, 250 prompt_tokens and 32 new_"):
        bench(pictured / "engine", 250, image=pictured / "a.png")


def test_images_may_go_on(engine: Engine):
    (ready,) = engine.prepare("", [A], chat=False)
    assert isinstance(ready.images, Images)
    longer = ready.images.followed_by(3)
    want = engine.session().append([[*ready.ids, 7, 8, 9]], None, [longer])
    one = engine.session()
    one.append([ready.ids], None, [ready.images])
    np.testing.assert_allclose(one.append([[7, 8, 9]]), want, atol=CLOSE)
