"""Generation over fake sessions: ragged batches, ends, stop strings, streaming."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lmcast.exporter.runtime.generate import (
    FILLER,
    generate,
)
from lmcast.exporter.runtime.sampling import Sampler, Sampling, SamplingError
from lmcast.exporter.runtime.text import Text
from lmcast.plugins.errors import InputError

GREEDY = Sampling()
EOS = 1
VOCABULARY = 400


class History:
    """A session whose logits depend on all tokens that a row was given, and on nothing else."""

    def __init__(self, rows: int, context: int | None = None):
        self.context = context
        self.held: list[list[int]] = [[] for _ in range(rows)]
        self.calls: list[np.ndarray] = []

    def append(self, input_ids: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        assert input_ids.dtype == np.int64
        assert input_ids.shape[0] == len(self.held)
        self.calls.append(input_ids)
        counts = np.full(len(self.held), input_ids.shape[1]) if counts is None else counts
        for held, ids, count in zip(self.held, input_ids, counts, strict=True):
            held += ids[:count].tolist()
        return np.stack([self.logits(held) for held in self.held])

    def logits(self, held: Sequence[int]) -> np.ndarray:
        scores = np.random.default_rng(held).standard_normal(VOCABULARY)
        scores[EOS] += 2.5  # rows end at different times
        return scores.astype(np.float32)


class Script(History):
    """A session in which row i answers with the ids of script i, whatever it is asked."""

    def __init__(self, scripts: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]]):
        super().__init__(len(scripts))
        self.scripts, self.lengths = scripts, [len(p) for p in prompts]

    def append(self, input_ids: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        super().append(input_ids, counts)
        logits = np.zeros((len(self.held), VOCABULARY), dtype=np.float32)
        for row, script in enumerate(self.scripts):
            at = len(self.held[row]) - self.lengths[row]
            logits[row, script[at] if at < len(script) else FILLER] = 9
        return logits


def tokenizer(*merged: str) -> Tokenizer:
    """A byte-level vocabulary of single bytes and of some longer tokens, without merges."""
    names = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *merged]
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "</s>"])
    return made


MERGED = ("END", "abE", "ND!", "xENDy", "EN", "aEEN")
TOKENIZER = tokenizer(*MERGED)
TEXT = Text(TOKENIZER.to_str().encode(), {}, {})
LONG = {name: TOKENIZER.token_to_id(name) for name in MERGED}


def spell(*parts: str) -> list[int]:
    """One long token for each part that is one, otherwise a token for each byte."""
    return [id for part in parts for id in ([LONG[part]] if part in LONG else TEXT.encode(part))]


def test_batch_is_each_prompt_alone():
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15]]
    alone = [
        generate(History(1), [p], max_new_tokens=40, sampling=GREEDY, eos_ids=frozenset([EOS]))[0]
        for p in prompts
    ]
    session = History(4)
    together = generate(
        session, prompts, max_new_tokens=40, sampling=GREEDY, eos_ids=frozenset([EOS])
    )
    assert together == alone
    assert {row.finish_reason for row in alone} == {"eos"}
    assert len({len(row.ids) for row in alone}) > 1  # so some rows ran on while others had ended
    longest = max(len(row.ids) for row in alone)
    # The last token of the longest row is not asked about.
    assert [call.shape for call in session.calls] == [(4, 5)] + [(4, 1)] * (longest - 1)
    for row, prompt, held in zip(together, prompts, session.held, strict=True):
        given = [*prompt, *row.ids]
        assert held[: len(given)] == given[: len(held)]
        assert set(held[len(given) :]) <= {FILLER}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_p=0.9, seed=3)])
def test_row_does_not_depend_on_its_neighbours(sampling: Sampling):
    def run(*prompts: list[int]) -> list:
        session = History(len(prompts))
        eos = frozenset([EOS])
        return generate(session, prompts, max_new_tokens=30, sampling=sampling, eos_ids=eos)

    assert run([5, 6, 7], [8], [9, 10])[1] == run([20] * 9, [8])[1]
    assert run([5, 6, 7], [8], [9, 10])[0] == run([5, 6, 7])[0]


def test_repetition_penalty_sees_prompt_and_answer():
    class Ladder(History):
        def logits(self, held: Sequence[int]) -> np.ndarray:
            return np.arange(1, VOCABULARY + 1, dtype=np.float32)

    (row,) = generate(
        Ladder(1),
        [[VOCABULARY - 1]],
        max_new_tokens=4,
        sampling=Sampling(repetition_penalty=100),
    )
    # The highest one was in the prompt; each pick takes the next below.
    assert row.ids == tuple(VOCABULARY - 2 - i for i in range(4))


@pytest.mark.parametrize(
    ("script", "stop", "text", "reason", "count"),
    [
        ([*spell("hello"), EOS], (), "hello", "eos", 6),
        ([EOS], (), "", "eos", 1),
        (spell("hello world!"), (), "hello worl", "length", 10),
        (spell("abENDcd"), ("END",), "ab", "stop", 5),
        (spell("ab", "EN", "D"), ("END",), "ab", "stop", 4),
        (spell("abE", "ND!", "xyz"), ("END",), "ab", "stop", 2),
        (spell("xENDy"), ("END",), "x", "stop", 1),
        (spell("END"), ("END",), "", "stop", 1),
        (spell("abENxENDy"), ("END",), "abENx", "stop", 8),
        (spell("aEEN", "D"), ("END",), "aE", "stop", 2),  # a false start inside a true one
        ([*spell("abEN"), EOS], ("END",), "abEN", "eos", 5),  # what was held comes at the end
        (spell("012345", "abE"), ("END",), "012345abEEEE", "length", 10),
        (spell("abcd"), ("abcd", "bc"), "a", "stop", 3),  # the first that is complete
        (spell("xENDy"), ("xENDy", "ND"), "xE", "stop", 1),  # also within one token
        (spell("abcd"), ("cd", "bcd"), "a", "stop", 4),  # of two that end together, the longer
        (spell("日本語です"), ("語",), "日本", "stop", 9),
        (spell("日本語です"), (), "日本語\ufffd", "length", 10),
        ([*spell("日本")[:5], EOS], ("\ufffd",), "日", "stop", 6),  # complete only at the end
    ],
)
def test_ends(script: list[int], stop: tuple[str, ...], text: str, reason: str, count: int):
    script = script + spell("E") * 9
    pieces: list[str] = []
    (row,) = generate(
        Script([script], [[7]]),
        [[7]],
        max_new_tokens=10,
        sampling=GREEDY,
        eos_ids=frozenset([EOS]),
        stop=stop,
        text=TEXT,
        on_token=lambda row, piece: pieces.append(piece),
    )
    assert (row.text, row.finish_reason, len(row.ids)) == (text, reason, count)
    assert row.ids == tuple(script[:count])
    assert row.prompt == (7,)
    assert "".join(pieces) == text
    assert "" not in pieces


TOKENS = st.sampled_from([*"aENDb日", *MERGED, "<raw>"])


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(TOKENS, min_size=1, max_size=20),
    stop=st.sets(st.sampled_from(["END", "ND", "EE", "aE", "日", "b", "NDEND", "\ufffd"])),
)
def test_streaming_shows_the_text_and_nothing_of_a_stop_string(parts: list[str], stop: set[str]):
    raw = TOKENIZER.token_to_id("æ")  # the first byte of 日
    script = [id for part in parts for id in ([raw] if part == "<raw>" else spell(part))]
    shown = ""

    def show(row: int, piece: str) -> None:
        nonlocal shown
        shown += piece

    (row,) = generate(
        Script([script], [[7]]),
        [[7]],
        max_new_tokens=len(script),
        sampling=GREEDY,
        stop=tuple(sorted(stop)),
        text=TEXT,
        on_token=show,
    )
    whole = TEXT.decode(script)
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stop if s in whole]
    assert row.text == shown == (whole[: min(ends)[1]] if ends else whole)
    assert row.finish_reason == ("stop" if ends else "length")


def test_streaming_is_prompt():
    """What cannot begin a stop string is out with its token, in rows of their own."""
    prompts = [[7], [8, 9]]
    scripts = [spell("abEx"), spell("zEND")]
    seen: list[tuple[int, str]] = []
    rows = generate(
        Script(scripts, prompts),
        prompts,
        max_new_tokens=4,
        sampling=GREEDY,
        stop=("END",),
        text=TEXT,
        on_token=lambda row, piece: seen.append((row, piece)),
    )
    assert seen == [(0, "a"), (1, "z"), (0, "b"), (0, "Ex")]
    assert [row.text for row in rows] == ["abEx", "z"]


def test_end_token_is_no_text_even_where_the_tokenizer_spells_it():
    end = spell("x")
    (row,) = generate(
        Script([spell("abx")], [[7]]),
        [[7]],
        max_new_tokens=9,
        sampling=GREEDY,
        eos_ids=frozenset([EOS, *end]),
        text=TEXT,
    )
    assert (row.text, row.ids, row.finish_reason) == ("ab", tuple(spell("abx")), "eos")


def test_without_tokenizer_there_are_ids_alone():
    (row,) = generate(Script([[5, 6]], [[7]]), [[7]], max_new_tokens=2, sampling=GREEDY)
    assert (row.ids, row.text) == ((5, 6), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "prompts: there is none; give at least one"),
        ({"prompts": [[1], []]}, "prompt 1: is empty; give at least one token"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; accepted: an integer from 1"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5; accepted: an integer from 1"),
        (
            {"max_new_tokens": 1 << 30},
            "prompt 0: its 1 tokens and 1073741824 new ones make 1073741825, "
            "over the context of 16; shorten the prompt or lower max_new_tokens",
        ),
        (
            {"prompts": [[1], [2] * 13]},
            "prompt 1: its 13 tokens and 4 new ones make 17, over the context of 16; "
            "shorten the prompt or lower max_new_tokens",
        ),
        ({"stop": ("x", "")}, "stop: an empty string would stop at once; give some text"),
        ({"stop": ("x", 3)}, "stop is ('x', 3); accepted: a list, each item a text"),
        ({"text": None, "stop": ("x",)}, "stop: stop strings need a tokenizer"),
        ({"text": None, "on_token": print}, "on_token: text needs a tokenizer"),
    ],
)
def test_wrong_request_is_refused_before_anything_runs(change: dict, message: str):
    session = History(1, context=16)
    request = {"prompts": [[1]], "max_new_tokens": 4, "sampling": GREEDY, "text": TEXT, **change}
    with pytest.raises(InputError) as caught:
        generate(session, **request)
    assert str(caught.value).startswith(message)
    assert not session.calls


def test_context_may_be_filled():
    session = History(1, context=16)
    (row,) = generate(session, [[2] * 12], max_new_tokens=4, sampling=GREEDY)
    assert len(row.ids) == 4


def test_logits_of_ended_rows_are_not_looked_at():
    class Broken(Script):
        def append(self, input_ids: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
            logits = super().append(input_ids, counts)
            logits[self.broken, :] = np.nan if len(self.calls) > 2 else logits[self.broken]
            return logits

    prompts = [[7], [8]]
    for broken, refused in ((0, False), (1, True)):
        session = Broken([[5, EOS], [5, 5, 5, 5]], prompts)
        session.broken = broken
        request = {"max_new_tokens": 4, "sampling": GREEDY, "eos_ids": frozenset([EOS])}
        if refused:
            with pytest.raises(SamplingError, match="those of row 1 hold NaN"):
                generate(session, prompts, **request)
        else:
            assert generate(session, prompts, **request)[1].ids == (5, 5, 5, 5)


def test_greedy_is_argmax():
    session = History(1)
    (row,) = generate(session, [[3]], max_new_tokens=5, sampling=GREEDY)
    held = [3]
    for id in row.ids:
        assert id == int(session.logits(held).argmax())
        held.append(id)


def test_sampled_rows_are_those_of_a_sampler():
    """generate adds nothing to what Sampler picks from the same logits."""
    sampling = Sampling(temperature=1.0, top_k=20, repetition_penalty=1.2, seed=9)
    session, sampler, held = History(1), Sampler(sampling, 1), [3]
    (row,) = generate(session, [[3]], max_new_tokens=6, sampling=sampling)
    for id in row.ids:
        assert [id] == sampler.pick(session.logits(held)[None], [held])
        held.append(id)
