"""Sessions whose calls are several: prompts in pieces, and rows that begin anew."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from session_calls import CLOSE, VOCABULARY, drawn, limited

from lmcast.exporter import Engine
from lmcast.exporter.backends.runner import Limits
from lmcast.exporter.runtime import session as sessions
from lmcast.exporter.runtime.session import Session, SessionError


def test_a_row_that_grows_beyond_a_length_is_computed_anew(engine: Engine):
    """Without frequencies that change there: the same logits, of other calls."""
    ids = drawn(3, 24)
    ours, theirs = limited(engine, 3, anew_beyond=(8, 16), most_tokens=17), engine.session(3)
    calls, run = [], engine.runner.run
    with pytest.MonkeyPatch.context() as patched:

        def watched(inputs: Any, states: Any, **rows: Any) -> Any:
            calls.append((inputs["cache_lengths"].tolist(), inputs["token_counts"].tolist()))
            return run(inputs, states, **rows)

        for counts in ((7, 2, 9), (1, 2, 8), (16, 6, 1)):
            given = np.zeros((3, max(counts)), np.int64)
            for row, count in enumerate(counts):
                given[row, :count] = ids[row, (start := theirs.lengths[row]) : start + count]
            at = np.array([[0, count - 1] for count in counts])
            want = theirs.run(given, counts, at)
            with patched.context() as watching:
                watching.setattr(engine.runner, "run", watched)
                got = ours.run(given, counts, at)
            np.testing.assert_allclose(got, want, atol=CLOSE)
    assert ours.lengths.tolist() == theirs.lengths.tolist() == [24, 10, 18]
    assert calls == [
        *[([0], [7]), ([0], [2]), ([0], [9])],
        *[([7], [1]), ([2], [2]), ([0], [17])],
        *[([17], [1]), ([0], [17]), ([17], [7]), ([0], [10])],
    ]  # each row alone


class Planned:
    """A runner with the limits of a plan."""

    def __init__(self, runner: Any, tokens: int, logits: int):
        self.runner = runner
        self.limits = Limits(1, 64, tokens, logits, lambda **sizes: f"build {sizes}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


@pytest.mark.parametrize(
    ("planned", "remedy"),
    [(False, "export with another --target"), (True, "`build {'max_tokens': 17}` makes one")],
)
def test_a_first_call_too_short_to_show_that_a_row_is_long(engine: Engine, planned, remedy):
    graph = replace(engine.manifest.about.graph, anew_beyond=(8, 16), most_tokens=16)
    runner = Planned(engine.runner, 16, 16) if planned else engine.runner
    session = Session(runner, graph, engine.context, engine.vocab_size, 1)
    session.append(drawn(1, 15))
    assert session.context == 16
    message = f"would hold 17 tokens; the first call of one of more than 16 has more, too.*{remedy}"
    with pytest.raises(SessionError, match=message):
        session.append(drawn(1, 2))
    assert session.append(drawn(1, 1)).shape == (1, VOCABULARY)


def test_a_plan_that_gives_few_logits_of_a_long_row(engine: Engine):
    graph = replace(engine.manifest.about.graph, anew_beyond=(16,))
    session = Session(Planned(engine.runner, 17, 4), graph, engine.context, engine.vocab_size, 1)
    ids, many = drawn(1, 20), np.arange(5)[None]
    with pytest.raises(SessionError, match="5 rows of logits of 20 tokens; beyond 16 this plan"):
        session.run(ids, None, many)
    assert session.run(ids, None, many[:, :4]).shape == (1, 4, VOCABULARY)
    assert session.lengths.tolist() == [20]


@pytest.mark.parametrize("by", ["kernels", "memory"])
def test_prompts_run_in_pieces(engine: Engine, monkeypatch: pytest.MonkeyPatch, by: str):
    """Of which some rows have none; logits of any positions; and even rows, some of them a call."""
    ids, counts, at = (
        drawn(3, 9),
        np.array([9, 2, 6]),
        np.array([[8, 0, 3], [1, 1, 0], [5, 4, 0]]),
    )
    theirs, other = engine.session(3), engine.session(3)
    want, whole = theirs.run(ids, counts, at), other.append(ids[:, :4])
    calls, run = [], engine.runner.run
    if by == "memory":
        monkeypatch.setattr(sessions, "PIECE", 8)
    ours, even = limited(engine, 3, most_tokens=4 if by == "kernels" else 0), engine.session(3)

    def watched(inputs: Any, states: Any, **rows: Any) -> Any:
        calls.append(inputs["input_ids"].shape)
        return run(inputs, states, **rows)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine.runner, "run", watched)
        got = ours.run(ids, counts, at)
        assert max(tokens for _, tokens in calls) == (4 if by == "kernels" else 8)
        calls.clear()
        first = even.append(ids[:, :4])
        assert calls == ([(3, 4)] if by == "kernels" else [(2, 4), (1, 4)])
    np.testing.assert_allclose(got, want, atol=CLOSE)
    np.testing.assert_allclose(first, whole, atol=CLOSE)
    for one, another in ((ours, theirs), (even, other)):
        np.testing.assert_allclose(one.append(ids[:, :1]), another.append(ids[:, :1]), atol=CLOSE)
    with pytest.raises(SessionError, match="batch is 3; this engine takes up to 2 rows"):
        limited(engine, 3, most_rows=2)


def test_pieces_where_angles_depend_on_the_length(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """Rows that grow beyond a length of LongRoPE show it in their first piece; those whose angles
    change with every token are one call."""
    calls, run = [], engine.runner.run
    monkeypatch.setattr(sessions, "PIECE", 4)

    def watched(inputs: Any, states: Any, **rows: Any) -> Any:
        calls.append(inputs["input_ids"].shape[1])
        return run(inputs, states, **rows)

    monkeypatch.setattr(engine.runner, "run", watched)
    for most, tokens, want in (
        ({"anew_beyond": (6,)}, 6, [4, 2]),
        ({"anew_beyond": (6,)}, 9, [7, 2]),
        ({"whole_beyond": 6}, 6, [4, 2]),
        ({"whole_beyond": 6}, 9, [9]),
    ):
        calls.clear()
        limited(engine, 1, **most).append(drawn(1, tokens))
        assert calls == want
