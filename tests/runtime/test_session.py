"""Sessions: what they refuse, what they give, and that their memory stays where it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from session_calls import CLOSE, CONTEXT, VOCABULARY, drawn, limited

from lmcast.exporter import Engine
from lmcast.exporter.runtime.conversation import Conversation
from lmcast.exporter.runtime.session import FIRST_CAPACITY, Session, SessionError
from lmcast.plugins.arguments import ArgumentError
from lmcast.plugins.errors import InputError


class Failing:
    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise OSError("no array\nhere")


ITSELF: list[Any] = []
ITSELF.append(ITSELF)
BAD_IDS: dict[str, tuple[Any, str]] = {
    "too large": ([[1, 97]], "input_ids holds 97; accepted: 0 to 96"),
    "negative": ([[1, -1]], "input_ids holds -1; accepted: 0 to 96"),
    "huge": ([[2**70]], "input_ids"),
    "above int64": (np.array([[2**63 + 1]], np.uint64), "input_ids holds"),
    "floats": ([[1.0, 2.0]], "input_ids holds float64; accepted: integers"),
    "booleans": ([[True]], "input_ids holds bool; accepted: integers"),
    "texts": ([["a"]], "input_ids holds"),
    "ragged lists": ([[1, 2], [3]], "input_ids is not a rectangular array"),
    "no tokens": (np.zeros((1, 0), np.int64), "accepted: [rows, tokens], not empty"),
    "an empty list": ([[]], "input_ids"),
    "no rows": (np.zeros((0, 3), np.int64), "accepted: [rows, tokens], not empty"),
    "one axis": ([1, 2], "input_ids has shape [2]"),
    "three axes": ([[[1]]], "input_ids has shape [1, 1, 1]"),
    "None": (None, "input_ids"),
    "NaN": ([[float("nan")]], "input_ids holds float64; accepted: integers"),
    "complex numbers": ([[1j]], "input_ids holds complex128"),
    "objects": (np.array([[1, None]], object), "input_ids holds object"),
    "integers as objects": (np.array([[1, 2]], object), "input_ids holds object"),
    "dates": (np.zeros((1, 2), "datetime64[s]"), "input_ids holds datetime64[s]"),
    "spans of time": (np.zeros((1, 2), "timedelta64[s]"), "input_ids holds timedelta64[s]"),
    "records": (np.zeros((1, 2), [("id", np.int64)]), "input_ids holds [('id', '<i8')]"),
    "bytes": (b"12", "input_ids holds |S2; accepted: integers"),
    "a set": ({1, 2}, "input_ids holds object"),
    "a mapping": ({"input_ids": [[1]]}, "input_ids holds object"),
    "a generator": ((i for i in range(3)), "input_ids holds object"),
    "a list of itself": (ITSELF, "input_ids is not a rectangular array of integers"),
    "a mask": (np.ma.masked_array([[1, 2]], [[False, True]]), "input_ids is a masked array"),
    "floats of torch": (torch.ones(1, 2), "input_ids holds float32; accepted: integers"),
    "a gradient": (torch.ones(1, 2, requires_grad=True), "input_ids is not a rectangular array"),
    "no data": (torch.ones(1, 2, dtype=torch.int64, device="meta"), "input_ids is not a rectan"),
    "an array that fails": (Failing(), "of integers: no array here"),
    "a view of more than any memory": (
        np.broadcast_to(np.int8(1), (1, 1 << 40)), "is 1099511627776; accepted: an integer from 0",
    ),
}  # fmt: skip


# Every way of ids into an engine.
THROUGH: dict[str, Callable[[Engine, Session], Callable[[Any], object]]] = {
    "append": lambda engine, session: session.append,
    "run": lambda engine, session: lambda ids: session.run(ids, None, [[0]]),
    "logits": lambda engine, session: engine.logits,
    "conversation": lambda engine, session: engine.conversation().append,
}


@pytest.mark.parametrize("name", BAD_IDS)
@pytest.mark.parametrize("through", THROUGH)
def test_bad_ids_are_refused(engine: Engine, name: str, through: str):
    ids, message = BAD_IDS[name]
    session = engine.session(1)
    with pytest.raises(InputError) as refused:
        THROUGH[through](engine, session)(ids)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert session.lengths.tolist() == [0]
    assert session._states == [], "refused before memory is taken"


BAD_COUNTS: dict[str, tuple[Any, str]] = {
    "none valid": ([0, 1], "counts holds 0 to 1; accepted: 1 to 3"),
    "more than given": ([1, 4], "counts holds 1 to 4; accepted: 1 to 3"),
    "too few": ([1], "counts has shape [1]; accepted: [2]"),
    "too many": ([1, 1, 1], "counts has shape [3]; accepted: [2]"),
    "two axes": ([[1, 1]], "counts has shape [1, 2]; accepted: [2]"),
    "floats": ([1.0, 1.0], "counts holds float64; accepted: integers"),
    "NaN": ([1, float("nan")], "counts holds float64; accepted: integers"),
    "booleans": ([True, True], "counts holds bool; accepted: integers"),
    "texts": ("11", "counts holds <U2; accepted: integers"),
    "a number": (2, "counts has shape []; accepted: [2]"),
    "nothing": ([], "counts has shape [0]; accepted: [2]"),
    "negative": ([-1, 3], "counts holds -1 to 3; accepted: 1 to 3"),
    "above int64": (np.array([1, 2**63 + 1], np.uint64), "counts holds 1 to 9223372036854775809"),
    "objects": (np.array([1, None], object), "counts holds object"),
    "a mask": (np.ma.masked_array([1, 2], [False, True]), "counts is a masked array"),
    "a view of more than any memory": (
        np.broadcast_to(np.int8(1), (1 << 40,)), "counts has shape [1099511627776]; accepted: [2]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_COUNTS)
def test_bad_counts_are_refused(engine: Engine, name: str):
    counts, message = BAD_COUNTS[name]
    session = engine.session(2)
    with pytest.raises(SessionError) as refused:
        session.append([[1, 2, 3], [4, 5, 6]], counts)
    assert message in str(refused.value)
    assert session._states == []


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "none": (np.zeros((2, 0), int), "rows has shape [2, 0]; accepted: [2, positions]"),
    "one axis": ([0, 1], "rows has shape [2]; accepted: [2, positions]"),
    "of one row": ([[0]], "rows has shape [1, 1]; accepted: [2, positions]"),
    "behind the end": ([[0], [3]], "rows holds 3; accepted: 0 to 2"),
    "before the beginning": ([[0], [-1]], "rows holds -1; accepted: 0 to 2"),
    "floats": ([[0.0], [1.0]], "rows holds float64; accepted: integers"),
    "None": (None, "rows holds object; accepted: integers"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_positions_are_refused(engine: Engine, name: str):
    rows, message = BAD_ROWS[name]
    session = engine.session(2)
    with pytest.raises(SessionError) as refused:
        session.run([[1, 2, 3], [4, 5, 6]], None, rows)
    assert message in str(refused.value)
    assert session._states == []


def test_a_conversation_is_of_one_engine(engine: Engine):
    """Another with the same vocabulary would answer, from other weights."""
    other = Engine(engine.directory, threads=1)
    with pytest.raises(InputError, match="of another engine"):
        engine.generate([[1, 2]], conversation=other.conversation(), max_new_tokens=1)
    for wrong in (lambda: None, lambda: engine.session(2)):
        with pytest.raises(SessionError, match="accepted: a session of one row"):
            Conversation(wrong)


@pytest.mark.parametrize("ids", [[[1], [2]], [[1, 97]], [[1.0]], [[1] * (CONTEXT + 1)]], ids=repr)
def test_a_conversation_goes_on_after_what_it_refused(engine: Engine, ids: Any):
    said = drawn(1, 6)
    alone = engine.session().append(said)
    talk = engine.conversation()
    talk.append(said[:, :4])
    with pytest.raises(SessionError):
        talk.append(ids)
    np.testing.assert_allclose(talk.append(said[:, 4:]), alone, atol=CLOSE)
    talk.begin()
    with pytest.raises(SessionError):
        talk.append(ids)
    with pytest.raises(SessionError, match=r"counts is \[5\]; accepted: \[6\]"):
        talk.append(said, [5])
    longer = np.concatenate([said, said], 1)
    expected = engine.session().append(longer)
    np.testing.assert_allclose(talk.append(longer), expected, atol=CLOSE)
    assert talk.cached == 12


@pytest.mark.parametrize("most", [0, 2], ids=["one call", "the second of two"])
def test_no_call_follows_one_that_failed(engine: Engine, most: int, monkeypatch):
    """As some states may be of it, and others of the call before; a conversation begins anew."""
    session, talk = limited(engine, 1, most_tokens=most), engine.conversation()
    said, run, calls = drawn(1, 4), engine.runner.run, list[int]()
    for one in (session, talk):
        one.append(said[:, :1])

    def fails(inputs: Any, *given: Any, **named: Any) -> Any:
        calls.append(inputs["input_ids"].shape[1])
        if len(calls) > bool(most):
            raise InputError("no more")
        return run(inputs, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "run", fails)
        for one in (session, talk):
            with pytest.raises(InputError, match="no more"):
                one.append(said[:, 1:])
    with pytest.raises(SessionError, match="has failed, or is still running in another thread"):
        session.append([[1]])
    assert session.lengths.tolist() == [1 + most]
    talk.begin()
    expected = engine.session().append(said)
    np.testing.assert_allclose(talk.append(said), expected, atol=CLOSE)


@pytest.mark.parametrize("batch", [0, -1, 1.0, True, "2", None])
def test_bad_batch_is_refused(engine: Engine, batch: Any):
    with pytest.raises(ArgumentError, match="accepted: an integer from 1"):
        engine.session(batch)


def test_rows_must_match_the_session(engine: Engine):
    with pytest.raises(SessionError, match="input_ids has 1 rows; the session has 2"):
        engine.session(2).append([[1]])


def test_absurd_batch_is_refused_before_memory_is_taken(engine: Engine):
    """A billion rows are refused by name, not by the kernel that ends the process."""
    with pytest.raises(InputError, match=r"batch is 1000000000; accepted: an integer from 1 to"):
        engine.session(10**9)
    with pytest.raises(SessionError, match=r"need [\d,]+ bytes"):
        engine.session(1 << 16).reserve(1 << 30)


def test_more_than_the_context_is_refused(engine: Engine):
    message = f"a row would hold {CONTEXT + 1} tokens; the context of this engine is {CONTEXT}"
    with pytest.raises(SessionError, match=message):
        engine.logits(drawn(1, CONTEXT + 1))
    session = engine.session(2)
    session.append(drawn(2, CONTEXT - 1), [CONTEXT - 1, 5])
    session.append([[1], [1]])
    with pytest.raises(SessionError, match=message):
        session.append([[1], [1]])
    assert session.lengths.tolist() == [CONTEXT, 6]


def test_logits_of_a_full_pass(engine: Engine):
    ids = drawn(2, 7)
    logits = engine.logits(ids)
    assert logits.shape == (2, 7, VOCABULARY)
    assert logits.dtype == np.float32
    last = engine.session(2).append(ids)
    assert last.shape == (2, VOCABULARY)
    assert last.dtype == np.float32
    np.testing.assert_allclose(last, logits[:, -1], atol=CLOSE)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint16, np.int64])
def test_any_integers_will_do(engine: Engine, dtype: type):
    np.testing.assert_array_equal(
        engine.logits(drawn(1, 5).astype(dtype)), engine.logits(drawn(1, 5))
    )


def test_a_row_does_not_depend_on_its_neighbours(engine: Engine):
    ids, counts = drawn(3, 20), np.array([20, 1, 9])
    together, alone = engine.session(3), [engine.session(1) for _ in range(3)]
    for step, (part, count) in enumerate(
        [(ids, counts), *[(drawn(3, 1, s), None) for s in (1, 2)]]
    ):
        rows = together.append(part, count)
        for r, session in enumerate(alone):
            length = part.shape[1] if count is None else int(count[r])
            want = session.append(part[r : r + 1, :length])[0]
            np.testing.assert_allclose(rows[r], want, atol=CLOSE, err_msg=f"step {step}, row {r}")


def test_padding_is_never_read(engine: Engine):
    one, other = drawn(2, 9), drawn(2, 9)
    other[1, 4:] = 3
    counts = [9, 4]
    a, b = engine.session(2), engine.session(2)
    np.testing.assert_array_equal(a.append(one, counts), b.append(other, counts))
    np.testing.assert_array_equal(a.append([[5], [6]]), b.append([[5], [6]]))


def test_growing_keeps_what_is_held(engine: Engine):
    """One token a time across the first capacity, which has room behind a prompt, against all at
    once."""
    prompt, room = 8, 8 + FIRST_CAPACITY
    ids = drawn(2, room + 4)
    session = engine.session(2)
    session.append(ids[:, :prompt])
    before = session._states
    session.append(ids[:, prompt : room - 3])
    got = [session.append(ids[:, t : t + 1]) for t in range(room - 3, room)]
    assert session._states is before, "steps behind a prompt wait for nothing"
    got += [session.append(ids[:, t : t + 1]) for t in range(room, ids.shape[1])]
    assert session._states is not before, "the states were not moved: this tests nothing"
    assert session._states[0][1].shape[2] == 2 * room
    assert not before, "what was moved is given back"
    want = engine.logits(ids)[:, room - 3 :]
    np.testing.assert_allclose(np.stack(got, 1), want, atol=CLOSE)


def test_room_is_no_reason_to_refuse(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    session, exactly = engine.session(1), 300
    need, _ = engine.runner.memory(session._shaped(exactly))
    monkeypatch.setattr(engine.runner, "memory", lambda states: (measured(states), need))
    measured = lambda states: 4 * sum(int(np.prod(shape)) for _, shape, _ in states)  # noqa: E731
    session.append(drawn(1, exactly))
    assert session._states[0][1].shape[2] == exactly
    with pytest.raises(SessionError, match=r"need [\d,]+ bytes"):
        session.append([[1]])


def test_states_stay_in_place(engine: Engine):
    session = engine.session(2)
    session.append(drawn(2, 3))
    arrays = [array for _, array in session._states]
    written = [array.copy() for array in arrays]
    for seed in range(4):
        session.append(drawn(2, 1, seed))
    assert all(a is b for a, (_, b) in zip(arrays, session._states, strict=True))
    for old, now in zip(written, arrays, strict=True):
        np.testing.assert_array_equal(now[:, :, :3], old[:, :, :3])
        assert np.abs(now[:, :, 3:7]).max(axis=(1, 3)).all(), "every new token was written"
        assert not now[:, :, 7:].any(), "and nothing behind them"


def test_calls_of_other_sizes_take_turns(engine: Engine):
    """The states are bound once; inputs and logits are those of each call."""
    session, ids = engine.session(2), drawn(2, 9)
    parts = [slice(0, 1), slice(1, 2), slice(2, 7), slice(7, 8), slice(8, 9)]
    given = [session.append(ids[:, part]) for part in parts]
    kept = [logits.copy() for logits in given]
    session.append(drawn(2, 1))
    for part, logits, copy in zip(parts, given, kept, strict=True):
        np.testing.assert_array_equal(logits, copy, "what was returned is the caller's")
        whole = engine.session(2).append(ids[:, : part.stop])
        np.testing.assert_allclose(logits, whole, atol=CLOSE, rtol=0)


def test_capacity_does_not_pass_the_context(engine: Engine):
    session = engine.session(1)
    session.append(drawn(1, CONTEXT))
    assert {array.shape[2] for _, array in session._states} == {CONTEXT}


def test_two_sessions_of_one_engine_are_apart(engine: Engine):
    one, other = engine.session(1), engine.session(1)
    one.append(drawn(1, 5))
    np.testing.assert_array_equal(other.append([[7]]), engine.session(1).append([[7]]))


def test_engine_takes_a_path_as_text(engine: Engine):
    assert Engine(str(engine.directory)).directory == Path(engine.directory)
