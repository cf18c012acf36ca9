"""Public functions, with arguments of any kind; and calls in a row, of which some are refused.

The functions and their parameters are those of test_arguments.py's table.
"""

import inspect
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_arguments import COUNTS, FLAGS, NAMES, REFUSED, SHARES, SOME_PATHS, TEXTS, WORDS
from tiny.llama import shapes, tiny_llama

from fuzz.folders import state
from fuzz.trial import INPUT
from lmcast.exporter import Chat, Engine, export
from lmcast.exporter.bench import bench
from lmcast.exporter.build import build
from lmcast.exporter.calibrate.calibrate import calibrate
from lmcast.exporter.engine.manifest import verify
from lmcast.exporter.pack import pack
from lmcast.exporter.runtime.generate import read_prompts
from lmcast.exporter.runtime.sampling import Sampling
from lmcast.exporter.runtime.text import Text
from lmcast.plugins.arguments import shown
from lmcast.plugins.errors import CheckFailed, InputError

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}<s>assistant:"
USER = {"role": "user", "content": "hi"}
ROWS = 2  # of the session
IDS = ([[1, 2], [3, 4]], [[5], [6]], np.full((ROWS, 40), 7), torch.ones(ROWS, 2, dtype=torch.int32))
LENGTHS = ([1, 1], [2, 1], [1, 2], [0, 1], [3, 3], [-1, 1], [[1], [1]], [1.0, 1.0], [True, True])
# Beside the table's: values of a kind that a function takes, or nearly.
VALUES: tuple[Any, ...] = (
    0, 1, 2, 7, -1, 1 << 31, 1 << 63, 10**30, 0.0, 0.5, 1.5, 1e-320, 1e308, True, None, "", "x",
    "abc", "é\u202e", "\ud800", "a\nb", "x" * 5000, "float32", "link", "cpu", "greedy", "model",
    b"", b"x", [], (), {}, set(), [0], [1, 2, 3], [[1, 2], [3, 4]], [[1], [2, 3]], [[]], [[96]],
    [[97]], [[-1]], [[1 << 40]], [[1 << 70]], [1.0], ["a"], ["a", 1], [None], [USER], [[USER]],
    [{"role": 3}], [{}], {"a": 1}, {1: 2}, {"tools": []}, {"chat_template": None}, {"messages": []},
    {"continue_final_message": "x"}, {"documents": [{}]}, {"x": float("nan")}, {"x": object()},
    {"x": print}, np.zeros((1, 3), np.int8), np.zeros((2, 0), np.int64), np.zeros(3, np.uint64),
    np.full((1, 2), 1 << 63, np.uint64), np.array(3), np.array("x"), np.array([[1.5]]),
    np.array([[None]], object), np.zeros((1, 2, 3), int), np.ma.masked_array([[1, 2]], [[0, 1]]),
    torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 2), torch.tensor(1), range(3),
    iter([1, 2]), (i for i in range(3)), np.datetime64("2020-01-01"), print, int, Ellipsis,
    Chat([USER]), Chat([USER], template="x"), Chat([USER], tools=[{"a": 1}]),
    Sampling(), Sampling(temperature=1.0, top_k=1, seed=3), Path("/nowhere"), complex(1, 2),
)  # fmt: skip


# A pool of the table, which says the kind of a parameter -> values that are of it.
FITTING: tuple[tuple[list[Any], tuple[Any, ...]], ...] = (
    (FLAGS, (True, False)),
    (COUNTS, (1, 2, 3, 16, 64, 128, 129, 4096, 65536, 1 << 31, np.int64(2))),
    (SHARES, (0.01, 0.5, 1.0, 4.0, 4.5, 8.0, 1e9, 1, np.float32(0.5))),
    (WORDS, ("link", "copy", "float32", "bfloat16", "int8", "int4", "mxfp4", "mse", "maximum",
             "fp8", "entropy", "percentile", "model", "greedy")),
    (SOME_PATHS, ("in/engine", "in/checkpoint", "in/corpus.txt", "in/prompts.jsonl", "out", "in",
                  Path("in/engine/engine.json"), "nowhere/below/it", ".")),
    (NAMES, (["x"], ("hidden_size",), ["rope_theta", "a.b"], [])),
    (TEXTS, ("main", "cpu", "onnx", "cuda", "tensorrt", "abc", "</s>", "<s>")),
)  # fmt: skip
# What functions are called with where nothing odd is given: all of it ends soon.
CHEAP: dict[str, Any] = {
    "tokens": 32, "chunk": 16, "runs": 1, "prompt_tokens": 4, "new_tokens": 2, "max_new_tokens": 4,
    "threads": 1, "parity": False, "prompts": "abc", "target": "cpu", "ids": [1, 2, 3],
    "token": "a", "text": "abc", "opt_tokens": 1, "messages": [USER], "given": {},
    "value": {"messages": [USER]}, "chats": [[USER]], "chat_templates": {},
    "special_tokens": {},
}  # fmt: skip
OF: dict[Callable[..., Any], dict[str, Any]] = {
    calibrate: {"recipe": "int8", "ids": None}, build: {"target": "tensorrt-rtx"},
    bench: {"batch": 1},
}  # fmt: skip
SELDOM = {bench: 0.05, calibrate: 0.3, build: 0.3}
EXPECTED = (CheckFailed, InputError)


def fitting(refused: Sequence[Any]) -> Sequence[Any]:
    """Return values of the kind of a parameter that refuses these."""
    for pool, values in FITTING:
        if all(any(one is other for other in refused) for one in pool):
            return values
    return VALUES


class World:
    """The files of a trial, an engine, a session and a conversation of it, and what they gave."""

    def __init__(self, work: Path):
        self.work, self.folder = work, work / INPUT
        self.engine = Engine(self.folder / "engine", threads=1)
        self.text, self.session = self.engine.text, self.engine.session(ROWS)
        self.conversation = self.engine.conversation()
        self.appended: list[tuple[Any, Any, np.ndarray]] = []

    def own(self, function: Callable[..., Any]) -> Any:
        """Return the object that a method is called on."""
        return getattr(self, function.__qualname__.partition(".")[0].lower())

    def good(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return arguments that a function accepts."""
        paths = {
            "checkpoint": "checkpoint", "against": "checkpoint", "output": "out", "path": "engine",
            "engine": "engine", "engine_dir": "engine", "directory": "engine", "key": "key.pem",
            "data": "corpus.txt",
        }  # fmt: skip
        config = {"config": json.loads((self.folder / "checkpoint/config.json").read_text())}
        tokenizer = (self.folder / "checkpoint/tokenizer.json").read_bytes()
        held = {"shapes": shapes(), "tensors": {}, "tokenizer": tokenizer}
        known = CHEAP | config | held | {n: self.folder / p for n, p in paths.items()}
        known |= {"fresh": self.engine.session} | OF.get(function, {})
        if function is read_prompts:
            known["path"] = self.folder / "prompts.jsonl"
        if not isinstance(function, type) and "self" in inspect.signature(function).parameters:
            known["self"] = self.own(function)
        return {n: known[n] for n in inspect.signature(function).parameters if n in known}

    def answer(self, **more: Any) -> tuple[Any, ...]:
        """Return what the engine says to a good prompt."""
        (found,) = self.engine.generate([[USER]], max_new_tokens=4, **more)
        return found.ids, found.text

    def append(self, ids: Any, counts: Any) -> None:
        """Append, and keep what was accepted."""
        before = self.session.lengths.copy()
        try:
            logits = self.session.append(ids, counts)
        except InputError:
            assert np.array_equal(before, self.session.lengths), "a refused append changes lengths"
            raise
        self.appended.append((np.array(ids), None if counts is None else np.array(counts), logits))

    def harm(self) -> str | None:
        """Return what the objects do otherwise than fresh ones, after all that was refused."""
        fresh = Engine(self.folder / "engine", threads=1)
        (found,) = fresh.generate([[USER]], max_new_tokens=4)
        wanted = (found.ids, found.text)
        if self.answer() != wanted:
            return "the engine says another thing"
        if self.answer(conversation=self.conversation) != wanted:
            return "the conversation says another thing"
        session = fresh.session(ROWS)
        for ids, counts, logits in self.appended:
            if not np.array_equal(session.append(ids, counts), logits):
                return "the session gives other logits"
        if not np.array_equal(session.lengths, self.session.lengths):
            return "the session has other lengths"
        last = np.ones((ROWS, 1), np.int64)
        if int(session.lengths.max()) < fresh.context and not np.array_equal(
            session.append(last), self.session.append(last)
        ):
            return "the session gives other logits then"
        return None


@dataclass(frozen=True)
class Given:
    """A function, and one argument that it is given."""

    function: Callable[..., Any]
    parameter: str
    value: Any

    def __str__(self) -> str:
        return f"{self.function.__qualname__} {self.parameter} = {kind_of(self.value)}"


@dataclass(frozen=True)
class Step:
    """A call in a row of them."""

    about: str
    act: Callable[[World], object]

    def __str__(self) -> str:
        return self.about


def kind_of(value: Any) -> str:
    return f"{type(value).__name__} {shown(value):.60}"


class Calls:
    name, about = "api", "public functions and methods: arguments of any kind, calls in a row"

    def prepare(self, folder: Path) -> None:
        tiny_llama(folder / "checkpoint")
        (folder / "checkpoint/chat_template.jinja").write_text(TEMPLATE)
        export(folder / "checkpoint", folder / "engine", weights="copy", parity=False)
        (folder / "prompts.jsonl").write_text(json.dumps([USER]))
        (folder / "corpus.txt").write_text("It was the best of times, it was the worst. " * 40)
        self.folder = folder

    def edits(self, chance: random.Random) -> Sequence[Given | Step]:
        if chance.random() < 0.4:
            return [step(chance) for _ in range(1 + int(chance.expovariate(0.4)))]
        function = chance.choices(list(REFUSED), [SELDOM.get(f, 1) for f in REFUSED])[0]
        found = []
        for _ in range(chance.choice([1, 1, 2])):
            parameter = chance.choice(list(REFUSED[function]))
            refused = REFUSED[function][parameter]
            pool = chance.choice([refused, VALUES, fitting(refused), fitting(refused)])
            found.append(Given(function, parameter, chance.choice(pool)))
        return found

    def run(self, edits: Sequence[Given | Step], work: Path) -> str | None:
        shutil.copytree(self.folder, work / INPUT)
        world, before = World(work), state(work)
        refused: Exception | None = None
        for act in acts(edits):
            try:
                if wrong := act(world):
                    return str(wrong)
                before = state(work)
            except EXPECTED as error:
                refused = error
                if state(work) != before:
                    return f"refused, and changed a file: {error}"
        if wrong := world.harm():
            return wrong
        if refused is not None:
            raise InputError(str(refused))
        return None


def acts(edits: Sequence[Given | Step]) -> Iterator[Callable[[World], object]]:
    """Yield what a trial does: its steps, and a call of each function with all that it is given."""
    yield from (edit.act for edit in edits if isinstance(edit, Step))
    calls: dict[Callable[..., Any], dict[str, Any]] = {}
    for edit in edits:
        if isinstance(edit, Given):
            calls.setdefault(edit.function, {})[edit.parameter] = edit.value
    for function, odd in calls.items():
        yield partial(call, function, odd)


def call(function: Callable[..., Any], odd: Mapping[str, Any], world: World) -> str | None:
    """Call a function; return what is wrong with what it gave."""
    given = {**world.good(function), **odd}
    result = function(*[given.pop("self")] if "self" in given else (), **given)
    if function is Engine.generate:
        return wrong_rows(given, result, world)
    if function in (Engine.encode, Text.encode):
        rows = result if function is Engine.encode else [result]
        if not all(
            isinstance(id, int) and 0 <= id < world.engine.vocab_size for r in rows for id in r
        ):
            return f"ids that are none: {result!r:.80}"
    if function is Text.decode and not isinstance(result, str):
        return f"a text that is none: {result!r:.80}"
    if function in (export, pack, build) and verify(Path(given.get("output") or given["engine"])):
        return "the engine is not whole"
    return None


def wrong_rows(given: Mapping[str, Any], rows: Sequence[Any], world: World) -> str | None:
    """Return what is wrong with generated rows."""
    for row in rows:
        if not 1 <= len(row.ids) <= given["max_new_tokens"]:
            return f"{len(row.ids)} tokens"
        if any(text and text in row.text for text in given.get("stop", ())):
            return f"{row.text!r} holds what ends it"
    return None


def step(chance: random.Random) -> Step:
    """Return a call of an object, good or odd."""
    value, other = chance.choice([*VALUES, *IDS * 3]), chance.choice([*VALUES, *LENGTHS])
    text = chance.choice(["abc", "x y", "\ud800", "é" * 9, "x" * 70_000, ""])
    name = chance.choice(["messages", "tools", "documents", "template", "variables",
                          "continue_final_message"])  # fmt: skip
    steps: dict[str, Callable[[World], object]] = {
        f"append {kind_of(value)}": lambda w: w.append(value, None),
        f"append {kind_of(value)}, counts {kind_of(other)}": lambda w: w.append(value, other),
        "append a good one": lambda w: w.append(np.ones((ROWS, 3), np.int64), [3, 1]),
        f"logits {kind_of(value)}": lambda w: none(w.engine.logits(value)),
        f"encode {text:.10}": lambda w: none(w.engine.text.encode(text)),
        "generate": lambda w: none(w.engine.generate(text, max_new_tokens=2)),
        "a failing on_token": failing,
        f"in a conversation, {kind_of(value)}": lambda w: none(
            w.engine.generate(value, max_new_tokens=2, conversation=w.conversation)
        ),
        "in a conversation": lambda w: none(w.answer(conversation=w.conversation)),
        "in a conversation, of another engine": lambda w: none(
            w.engine.generate([[USER]], max_new_tokens=200, conversation=w.conversation)
        ),
        f"a chat's {name} {kind_of(other)}": lambda w: none(
            w.engine.encode(Chat(**{"messages": [USER], name: other}))
        ),
        f"chat_kwargs {kind_of(other)}": lambda w: none(
            w.engine.encode([[USER]], chat_kwargs={name: other})
        ),
        f"a chat of {name} {kind_of(other)}": lambda w: none(Chat.of([USER], {name: other})),
        f"a chat of JSON, {name} {kind_of(other)}": lambda w: none(
            Chat.from_json({"messages": [USER], name: other})
        ),
    }
    about = chance.choice(list(steps))
    return Step(about, steps[about])


def none(_: object) -> None:
    """A result that nothing is known of."""


class CallbackError(Exception):
    """Of a caller's own."""


def failing(world: World) -> None:
    """A caller's function fails in the midst of an answer."""

    def on_token(row: int, piece: str) -> None:
        raise CallbackError

    with suppress(CallbackError):
        world.answer(on_token=on_token, conversation=world.conversation)


PART = Calls()
