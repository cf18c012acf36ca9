"""Sessions with pictures: pieces, ragged batches, turns; and what they refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from seeing import INPUTS, VOCABULARY, WIDTH, Model, graph_with, prompt, session

from lmcast.exporter.backends.runner import Limits
from lmcast.exporter.runtime import session as sessions
from lmcast.exporter.runtime.conversation import Conversation
from lmcast.exporter.runtime.images import Images, Picture
from lmcast.exporter.runtime.session import Session, SessionError
from lmcast.plugins.errors import InputError

KINDS: dict[str, tuple[str, ...]] = {
    "rows alone": (),
    "tokens that see their picture": ("visible_ends",),
    "rotation by rows and columns": ("rope_positions",),
}
CLOSE = 1e-5  # fp32 sums in another order, of logits near 1
# Of three rows of a batch: what they say, pictures as -n, and how often they are pieces.
PROMPTS = [(5, -7, 3, -4, 2), (3,), (-9, 1, -2, -6, 1)]
STEPS = [[1], [2], [3]]


def given(kinds: tuple[str, ...]) -> tuple[np.ndarray, list[int], list[Images | None]]:
    """Return a ragged batch: ids B,T, counts, and the images of its rows, one without any."""
    rows = [prompt(kinds, *parts) for parts in PROMPTS]
    counts = [len(ids) for ids, _ in rows]
    ids = np.zeros((len(rows), max(counts)), np.int64)
    for row, (own, _) in zip(ids, rows, strict=True):
        row[: len(own)] = own
    return ids, counts, [images if images.pictures else None for _, images in rows]


def alone(kinds: tuple[str, ...], row: int) -> list[np.ndarray]:
    """Return the logits of a row by itself, in one call, and of the steps behind it."""
    ids, counts, images = given(kinds)
    one = session(graph_with(*kinds), 1)
    out = [one.append(ids[row : row + 1, : counts[row]], None, [images[row]])[0]]
    return out + [one.append([STEPS[row]])[0] for _ in range(3)]


@pytest.mark.parametrize("name", KINDS)
def test_a_graph_is_given_what_it_takes(name: str):
    """By hand, from the definition of a call."""
    kinds = KINDS[name]
    ids, images = prompt(kinds, *PROMPTS[0])
    model, features = Model(), images.features()
    inputs: dict[str, Any] = {
        "input_ids": np.where(images.image_rows < 0, ids, 0)[None],
        "cache_lengths": np.zeros(1, np.int64),
        "token_counts": np.array([len(ids)]),
        "logit_rows": np.array([[len(ids) - 1]]),
        "image_features": features,
        "image_rows": images.image_rows[None],
    }
    for kind in ("visible_ends", "rope_positions"):
        if kind in kinds:
            inputs[kind] = getattr(images, kind)[None]
    taken = {n: inputs[n] for n in (*INPUTS, *kinds)}
    (want,) = model.run(taken, {"kept": np.zeros((1, 64, WIDTH))}, rows=slice(0, 1))
    np.testing.assert_allclose(alone(kinds, 0)[0], want[0, 0], atol=CLOSE)
    session(graph_with(*kinds), 1, model).append([ids], None, [images])
    assert {n: a.tolist() for n, a in model.calls[1].items()} == {
        n: a.tolist() for n, a in taken.items()
    }


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 11, 512])
@pytest.mark.parametrize("name", KINDS)
def test_ragged_batches_in_pieces(name: str, piece: int, monkeypatch: pytest.MonkeyPatch):
    """Rows with and without pictures, cut at different places, are as each row alone."""
    kinds = KINDS[name]
    want = [alone(kinds, row) for row in range(3)]
    monkeypatch.setattr(sessions, "PIECE", piece)
    ids, counts, images = given(kinds)
    model = Model()
    batch = session(graph_with(*kinds), 3, model)
    got = [batch.append(ids, counts, images)]
    longest = max(call["input_ids"].shape[1] for call in model.calls)
    if "visible_ends" in kinds:
        whole = max(-part for parts in PROMPTS for part in parts)
        assert longest <= max(piece, whole), "a picture is of one call, and nothing else grows"
        assert all((call["visible_ends"] < call["cache_lengths"][:, None]
                    + call["token_counts"][:, None])[:, 0].all() for call in model.calls
                   if call["token_counts"].all())  # fmt: skip
    else:
        assert longest == min(piece, max(counts))
    got += [batch.append(STEPS) for _ in range(3)]
    for row in range(3):
        for mine, wanted in zip(got, want[row], strict=True):
            np.testing.assert_allclose(mine[row], wanted, atol=CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_begin_anew_keep_their_pictures(name: str):
    kinds = KINDS[name]
    want = [alone(kinds, row) for row in range(3)]
    ids, counts, images = given(kinds)
    model = Model()
    batch = session(graph_with(*kinds, anew_beyond=(19, 22)), 3, model)
    got = [batch.append(ids, counts, images)] + [batch.append(STEPS) for _ in range(3)]
    begun = [call for call in model.calls[1:] if not call["cache_lengths"].any()]
    assert len(begun) >= 2, "both rows outgrow a length, one of them in its steps"
    for row in range(3):
        for mine, wanted in zip(got, want[row], strict=True):
            np.testing.assert_allclose(mine[row], wanted, atol=CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_a_conversation_computes_what_is_new(name: str):
    """Two turns, the second with another picture; and a third whose first picture is another."""
    kinds = KINDS[name]
    graph, seen = graph_with(*kinds), []

    def said(*parts: int, seed: int = 0) -> tuple[list[list[int]], list[Images]]:
        ids, images = prompt(kinds, *parts, seed=seed)
        found = [picture.features for picture in images.pictures]
        hidden = tuple(Picture((), p.rows, p.digest) for p in images.pictures)

        def see(pictures: Any) -> None:
            seen.append(len(pictures))
            for picture in pictures:
                picture.features = found[hidden.index(picture)]

        rows, ends, turned = images.image_rows, images.visible_ends, images.rope_positions
        return [ids], [Images(hidden, rows, ends, turned, see)]

    model = Model()
    talk = Conversation(lambda: session(graph, 1, model))
    first, images = said(2, -6, 3)
    talk.append(first, None, images)
    talk.append([[9]])
    longer, more = prompt(kinds, 2, -6, 3, 1, -4, 2)
    longer[: len(first[0])] = first[0]
    longer[len(first[0])] = 9
    old, new = images[0].pictures[0], more.pictures[1]
    both = Images((old, new), more.image_rows, more.visible_ends, more.rope_positions)
    want = session(graph, 1).append([longer], None, [both])
    talk.begin()
    model.calls.clear()
    np.testing.assert_allclose(talk.append([longer], None, [both]), want, atol=CLOSE)
    assert [call["input_ids"].shape[1] for call in model.calls] == [len(longer) - len(first[0]) - 1]
    assert seen == [1], "the first picture is not seen again"
    talk.begin()
    model.calls.clear()
    changed = Images((Picture.of_features(old.features + 1), new), *(
        getattr(both, n) for n in ("image_rows", "visible_ends", "rope_positions")
    ))  # fmt: skip
    want = session(graph, 1).append([longer], None, [changed])
    np.testing.assert_allclose(talk.append([longer], None, [changed]), want, atol=CLOSE)
    assert sum(call["input_ids"].shape[1] for call in model.calls) == len(longer), "from the start"


ROWS = np.array([-1, 0, 1, -1])
SEEN = Picture.of_features(np.ones((2, WIDTH), np.float32))
ENDS, TURNED = np.arange(4), np.arange(12).reshape(4, 3) // 3
REFUSED: dict[str, tuple[tuple[str, ...], Callable[[], Any], str]] = {
    "no list": ((), lambda: 3, "images is 3; accepted: a list, Images or None each"),
    "paths": ((), lambda: ["a.png"], "images is ['a.png']; accepted: a list"),
    "rows that differ": ((), lambda: [None, None], "images has 2 rows; the session has 1"),
    "rows of no features": (
        (), lambda: [Images((SEEN,), ROWS + 1)], "image_rows holds 3; accepted: 0 to 2",
    ),
    "few rows": ((), lambda: [Images((SEEN,), ROWS[:3])], "are of 3 tokens; the row has 4 new"),
    "floats": ((), lambda: [Images((SEEN,), ROWS * 1.0)], "float64 [4]; accepted: int64 [4]"),
    "a list": ((), lambda: [Images((SEEN,), [0, 1])], "image_rows is [0, 1]; accepted: an array"),
    "another model's": (
        (), lambda: [Images((Picture.of_features(np.ones((2, 3))),), ROWS)],
        f"features are [2, 3]; accepted: [features, {WIDTH}]",
    ),
    "no tower": ((), lambda: [Images((Picture((), 2, b""),), ROWS)], "there is no tower to see it"),
    "ends of no use": (
        (), lambda: [Images((SEEN,), ROWS, ENDS)], "visible_ends is array([0, 1, 2, 3]); accepted",
    ),
    "ends that are missing": (
        ("visible_ends",), lambda: [Images((SEEN,), ROWS)], "visible_ends is None; accepted: an",
    ),
    "ends behind": (
        ("visible_ends",), lambda: [Images((SEEN,), ROWS, ENDS + 1)], "visible_ends holds 1 to 4;",
    ),
    "ends before": (
        ("visible_ends",), lambda: [Images((SEEN,), ROWS, ENDS * 0)], "no token ends before itself",
    ),
    "no positions": (
        ("rope_positions",), lambda: [Images((SEEN,), ROWS)], "rope_positions is None; accepted",
    ),
    "positions of an axis": (
        ("rope_positions",), lambda: [Images((SEEN,), ROWS, None, TURNED[:, 0])],
        "rope_positions is int64 [4]; accepted: int64 [4, 3]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_images_are_refused(name: str):
    kinds, images, message = REFUSED[name]
    one = session(graph_with(*kinds), 1)
    with pytest.raises(InputError) as refused:
        one.append([[1, 2, 3, 4]], None, images())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert one.lengths.tolist() == [0]
    assert one._states == []


def test_a_text_model_takes_no_pictures():
    graph = graph_with()
    text = type(graph)(**{**vars(graph), "inputs": graph.inputs[:4]})
    with pytest.raises(SessionError, match="takes no pictures"):
        session(text, 1).append([[1, 2, 3, 4]], None, [Images((SEEN,), ROWS)])


def test_a_picture_longer_than_a_call_is_refused():
    ids, images = prompt(("visible_ends",), 2, -9, 1)
    for more, remedy in (
        ({"most_tokens": 8}, "export with another --target"),
        ({}, "`build {'max_tokens': 9}` makes one that does"),
    ):
        model = Model()
        if not more:
            model.limits = Limits(1, 64, 8, 8, lambda **sizes: f"build {sizes}")
        one = Session(model, graph_with("visible_ends", **more), 64, VOCABULARY, 1)
        with pytest.raises(SessionError, match="a picture of 9 tokens is of one call, and 8 are"):
            one.append([ids], None, [images])
        with pytest.raises(SessionError) as refused:
            one.append([ids], None, [images])
        assert remedy in str(refused.value)
        assert one.lengths.tolist() == [0]
