"""Arguments of public functions: every one of every function refuses what it does not mean."""

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmcast.exporter import Chat, Engine, Session, export, load
from lmcast.exporter.backends.tensorrt.request import Sizes
from lmcast.exporter.bench import bench
from lmcast.exporter.build import build
from lmcast.exporter.calibrate.calibrate import calibrate
from lmcast.exporter.diff.engines import diff
from lmcast.exporter.engine import manifest, signing
from lmcast.exporter.engine.inspect import inspect as inspect_path
from lmcast.exporter.engine.relink import relink
from lmcast.exporter.pack import pack, pack_for
from lmcast.exporter.prove.parity import parity
from lmcast.exporter.prove.quality import quality
from lmcast.exporter.runtime.chat import TextError
from lmcast.exporter.runtime.conversation import Conversation
from lmcast.exporter.runtime.generate import read_prompts
from lmcast.exporter.runtime.prepare import Pictured
from lmcast.exporter.runtime.sampling import Sampling
from lmcast.exporter.runtime.text import Text
from lmcast.graphs import define, defined
from lmcast.graphs import load as load_eager
from lmcast.plugins.arguments import ArgumentError, checked
from lmcast.plugins.errors import InputError

HUGE, NAN, INFINITE = 10**5000, float("nan"), float("inf")
ONE_LINE = re.compile(".+; accepted: .{1,250}")
ITSELF: list[Any] = []
ITSELF.append(ITSELF)

PATHS = [3, True, b"engine", "", "a\0b", "\ud800", [], ["engine"], NAN, object(), None]
SOME_PATHS = PATHS[:-1]
FLAGS = [0, 1, "yes", "", None, [], np.bool_(True)]
COUNTS = [0, -1, 1.0, "1", b"1", True, NAN, HUGE, -HUGE, [1], np.float32(1), np.int64(0)]
SEEDS = [-1, *COUNTS[2:-1]]
SHARES = ["0.5", True, NAN, INFINITE, -INFINITE, -1, HUGE, [0.5], b"1", np.float64("nan")]
WORDS = ["", "cpoy", "LINK", "link ", b"link", 1, True, ["link"], {}, NAN]
TEXTS = [3, True, b"main", ["main"], NAN]
NAMES = ["a", "", b"a", 3, True, [3], [b"a"], [None], {"a": 1}, ITSELF, NAN, None]
SMS = ["89", 89, [89.0], ["89"], [True], [8], [-89], [HUGE], b"YY", {89: 1}, None]
OBJECTS = [3, "x", b"x", [], {}, True]
MAPPINGS = [3, "x", [], [("a", 1)], {3: 1}, {b"a": 1}, True]
PROMPTS = [3, None, b"x", True, {"a": 1}, [3.0], [True], [None], [[b"a"]], [["a"]], ITSELF,
           {"a"}, object(), np.zeros(3), np.float64(3), [["a", 1]]]  # fmt: skip
IMAGES = [3, True, NAN, {"a": 1}, {"a.png"}, object(), [3], [None], [[3]], [[[b""]]], "", ITSELF]
USER = [{"role": "user", "content": "x"}]
MESSAGES = [3, "x", b"x", True, None, USER[0], ["x"], [3], [USER], [{3: 1}], {"a"}, ITSELF]
CHATS = [3, "x", {"a": 1}, None, [3], ["x"], [[3]], USER]
LISTS = [3, "x", b"x", True, {"name": "f"}, ["x"], [3], [None], [print], [{3: 1}]]
DTYPES = [torch.int64, torch.float8_e4m3fn, "float32", np.float32, 32, None]

LOADS = {"threads": COUNTS, "prepack": FLAGS, "portable": FLAGS, "exact": FLAGS}
OF_PLAN = {"sms": SMS, "sizes": OBJECTS}
# Public function -> its parameters -> values of the kind that it must refuse.
REFUSED: dict[Callable[..., Any], dict[str, list[Any]]] = {
    export: {
        "checkpoint": PATHS, "output": PATHS, "target": TEXTS, "dtype": WORDS, "weights": WORDS,
        "parity": FLAGS, "inert": NAMES, "untie": FLAGS,
        "text_only": FLAGS, "revision": TEXTS, "context": COUNTS,
        "full_check": FLAGS[:4], "tokenizer": FLAGS, "matformer": SOME_PATHS,
        "recipe": SOME_PATHS, "activations": WORDS, **OF_PLAN, "widen": FLAGS,
        "clients": FLAGS, "force": FLAGS, "progress": OBJECTS,
    },
    load: {"engine_dir": PATHS, **LOADS, "verify": FLAGS},
    Engine: {"directory": PATHS, **LOADS, "variant": OBJECTS, "whole": FLAGS},
    Engine.session: {"batch": COUNTS},
    Engine.encode: {"prompts": PROMPTS, "chat": FLAGS[:4], "chat_kwargs": MAPPINGS},
    Engine.prepare: {
        "prompts": PROMPTS, "images": IMAGES, "chat": FLAGS[:4], "chat_kwargs": MAPPINGS,
    },
    Engine.picture: {
        "source": [*IMAGES, [np.zeros((1, 1, 3))]], "max_pixels": COUNTS, "crops": FLAGS,
    },
    Engine.sound: {"source": [3, None, True, [3], ["a.wav"], object()]},
    Engine.generate: {
        "prompts": PROMPTS, "max_new_tokens": COUNTS, "sampling": WORDS,
        "stop": [3, b"x", [3], [b"x"], {"x": 1}, None], "chat": FLAGS[:4],
        "chat_kwargs": MAPPINGS, "on_token": OBJECTS, "conversation": OBJECTS,
        "images": IMAGES, "max_pixels": COUNTS,
    },
    Text.encode: {"text": [*TEXTS, None], "special": FLAGS},
    Text.decode: {"ids": ["1", b"1", 1, [-1], [1.0], [True], [1 << 32], [HUGE], None, {1}]},
    Text.id_of: {"token": [*TEXTS, None]},
    Text: {
        "tokenizer": [3, "x", None, []], "chat_templates": [*MAPPINGS, {"a": 3}],
        "special_tokens": [*MAPPINGS, {"a": 3}],
    },
    Text.chat: {"messages": MESSAGES},
    Text.chats: {"chats": CHATS, "most": COUNTS},
    Text.rendered: {"chats": CHATS, "most": COUNTS},
    Engine.video: {
        "source": [3, None, True, [3], [[b""]], object()], "fps": [0, *SHARES[1:]],
        "max_pixels": COUNTS,
    },
    Pictured: {
        "prompt": PROMPTS, "images": [*IMAGES[:-1], "a.png", b"", [[b""]], None],
        "videos": [*IMAGES[:-1], "a.png", b"", [["a.png"]], None], "fps": [0, *SHARES[1:]],
        "sounds": [*IMAGES[:-1], "a.wav", b"", [["a.wav"]], None],
    },
    Chat: {
        "messages": MESSAGES, "tools": LISTS, "documents": LISTS, "template": TEXTS,
        "continue_final_message": [0, 1, None, [], b"content", np.bool_(True)],
        "variables": [*MAPPINGS, None],
    },
    Chat.of: {"messages": MESSAGES, "given": [*MAPPINGS, None]},
    Chat.from_json: {"value": [*MAPPINGS, None]},
    Conversation: {"fresh": [3, "x", None, []]},
    Conversation.check_room: {"tokens": SEEDS},
    Session.check_room: {"tokens": SEEDS},
    Session.reserve: {"tokens": SEEDS},
    Sampling: {
        "temperature": SHARES, "top_k": COUNTS, "top_p": [0, 1.5, *SHARES],
        "min_p": [1.5, *SHARES], "repetition_penalty": [0, 1000, *SHARES], "seed": SEEDS,
    },
    read_prompts: {"path": PATHS, "most": COUNTS},
    pack: {"engine": PATHS, "output": SOME_PATHS, "progress": OBJECTS, "force": FLAGS},
    pack_for: {
        "engine": PATHS, "program": WORDS, "output": PATHS, "progress": OBJECTS, "force": FLAGS,
    },
    build: {"engine": PATHS, "target": TEXTS, **OF_PLAN, "progress": OBJECTS},
    Sizes: {
        **dict.fromkeys(("max_batch", "max_context", "max_tokens", "opt_batch"), COUNTS),
        "opt_tokens": COUNTS, "max_pixels": COUNTS, "widen": FLAGS,
    },
    bench: {
        "engine_dir": PATHS, "prompt_tokens": COUNTS, "new_tokens": COUNTS, "batch": COUNTS,
        "runs": [*COUNTS, 10**6], "image": SOME_PATHS, **LOADS,
    },
    inspect_path: {
        "path": PATHS, "batch": COUNTS, "context": COUNTS, "inert": NAMES, "untie": FLAGS,
        "text_only": FLAGS,
        "revision": TEXTS,
        "progress": OBJECTS,
    },
    manifest.verify: {
        "directory": PATHS, "quick": FLAGS, "times": FLAGS, "advance": OBJECTS,
    },
    signing.verify: {"engine": PATHS, "key": PATHS},
    signing.sign: {"engine": PATHS, "key": PATHS},
    relink: {"engine": PATHS, "progress": OBJECTS},
    parity: {
        "engine": PATHS, "against": PATHS, "prompts": SOME_PATHS, "tokens": COUNTS,
        "bisect": FLAGS, "progress": OBJECTS, "portable": FLAGS, "recipe": SOME_PATHS,
        "revision": TEXTS, "quality": FLAGS, "exact": FLAGS, "baseline": SOME_PATHS,
        "layers": FLAGS, "client": WORDS, "images": [3, "a.png", b"", [[b""]], None],
    },
    diff: {"before": PATHS, "after": PATHS, "progress": OBJECTS},
    quality: {
        "engine": PATHS, "against": PATHS, "data": SOME_PATHS, "tokens": COUNTS, "chunk": COUNTS,
        "recipe": SOME_PATHS, "portable": FLAGS, "progress": OBJECTS, "revision": TEXTS,
        "exact": FLAGS,
    },
    calibrate: {
        "checkpoint": PATHS, "output": PATHS, "recipe": WORDS, "data": SOME_PATHS,
        "tokens": COUNTS, "chunk": [1, *COUNTS], "seed": SEEDS, "observer": WORDS,
        "ids": [3, "ab", [], [[1], [2]], np.zeros((2, 2), int), torch.zeros(2, 3)],
        "fewest_tokens": SEEDS, "inert": NAMES, "untie": FLAGS, "revision": TEXTS,
        "bits": [0, *SHARES], "most_kl": [0, *SHARES], "head": FLAGS, "kv": WORDS,
        "force": FLAGS, "progress": OBJECTS,
    },
    load_eager: {"checkpoint": PATHS, "dtype": DTYPES, "untie": FLAGS},
    define: {
        "config": MAPPINGS, "shapes": [*MAPPINGS, {"a": 3}, {"a": [1.0]}, {"a": "3"}],
        "inert": NAMES, "dtypes": [*MAPPINGS, {"a": "float32"}], "untie": FLAGS, "text_only": FLAGS,
    },
    defined: {
        "config": MAPPINGS, "tensors": [*MAPPINGS, {"a": (3, 4)}], "inert": NAMES,
        "untie": FLAGS, "text_only": FLAGS,
    },
}  # fmt: skip
# What stands for arguments that are not looked at: no path of these is there.
GIVEN: dict[str, Any] = {
    "self": None, "checkpoint": "/nowhere", "output": "/nowhere/out", "engine": "/nowhere",
    "engine_dir": "/nowhere", "directory": "/nowhere", "key": "/nowhere", "against": "/nowhere",
    "path": "/nowhere", "before": "/nowhere", "after": "/nowhere", "target": "cpu",
    "program": "genai", "config": {}, "shapes": {}, "tensors": {}, "prompts": "x",
    "messages": USER, "given": {}, "chats": [], "source": "a.png", "text": "x", "images": [],
    "prompt": "x",
    "tokenizer": b"", "chat_templates": {}, "special_tokens": {},
}  # fmt: skip


def name(function: Callable[..., Any]) -> str:
    return f"{function.__module__.removeprefix('lmcast.')}.{function.__qualname__}"


def refusal(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    try:
        function(**arguments)
    except ArgumentError as error:
        return str(error)
    except (TypeError, ValueError, AttributeError, OSError, LookupError, ArithmeticError) as error:
        return f"{type(error)}: {error}"
    return "accepted"


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return those of a function that have a name of their own."""
    parameters = inspect.signature(function).parameters.items()
    return {n: p for n, p in parameters if n != "self" and p.kind is not p.VAR_KEYWORD}


@pytest.mark.parametrize("function", REFUSED, ids=name)
def test_refused_before_anything_is_done(function: Callable[..., Any]):
    parameters = inspect.signature(function).parameters
    assert REFUSED[function].keys() == parameters_of(function).keys()
    needed = {n: GIVEN[n] for n, p in parameters.items() if p.default is p.empty and n in GIVEN}
    accepted = []
    for parameter, values in REFUSED[function].items():
        for value in values:
            said = refusal(function, {**needed, parameter: value})
            if not ONE_LINE.fullmatch(said) or not said.startswith(f"{parameter} is "):
                accepted.append(f"{parameter}: {type(value)}: {said}"[:300])
    assert not accepted, "\n".join(accepted)


def test_what_is_meant_is_taken():
    """Numbers of numpy, arrays, other sequences and paths arrive as what is annotated."""
    from collections.abc import Collection, Mapping, Sequence

    @checked
    def taken(
        count: int, share: float, file: Path, names: Collection[str], sms: tuple[int, ...],
        prompts: Sequence[Sequence[int]], more: Mapping[str, tuple[int, ...]],
    ) -> tuple[Any, ...]:  # fmt: skip
        return count, share, file, names, sms, prompts, more

    found = taken(
        np.int64(3), np.float32(0.5), "a", {"b"}, [np.uint8(89)], np.ones((1, 2), np.int32),
        {"c": [np.int64(4)]},
    )  # fmt: skip
    assert found == (3, 0.5, Path("a"), ("b",), (89,), [[1, 1]], {"c": (4,)})
    assert [type(x) for x in (found[0], found[1], found[4][0], found[5][0][0])] == [
        int, float, int, int,
    ]  # fmt: skip


@pytest.mark.parametrize("function", REFUSED, ids=name)
def test_arguments_that_do_not_fit_are_named(function: Callable[..., Any]):
    """A misspelled name, whose own is proposed first; one too many; one missing; one twice."""
    parameters = parameters_of(function)
    needed = [n for n, p in parameters.items() if p.default is p.empty]
    given = {n: GIVEN.get(n) for n in needed}
    signature = inspect.signature(function).parameters
    own = (None,) if "self" in signature else ()
    called = function.__qualname__
    places = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    for word in parameters if parameters.keys() == signature.keys() - {"self"} else ():
        with pytest.raises(ArgumentError) as said:
            function(*own, **given, **{f"{word}_": None})
        first, *others = str(said.value).partition("accepted: ")[2].split(", ")
        assert str(said.value).startswith(f"{called}: there is no parameter '{word}_'; accepted")
        assert first == word and {first, *others} == parameters.keys()
    with pytest.raises(ArgumentError, match=f"{called}: 'surplus' is one too many; accepted by pl"):
        function(*own, *[None] * len(places), "surplus")
    for word in needed:
        with pytest.raises(ArgumentError, match=f"{called}: {word} is missing; accepted: "):
            function(*own, **{n: value for n, value in given.items() if n != word})
    for word in places[:1]:
        with pytest.raises(ArgumentError, match=f"{called}: {word} is given twice"):
            function(*own, None, **{word: None})


def test_a_wrong_argument_is_an_error_of_input_and_python_s_own():
    for error in (InputError, ValueError, TypeError):
        with pytest.raises(error, match="no parameter 'weight'; accepted: weights, checkpoint"):
            export("/nowhere", "/nowhere/out", weight="link")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": ()}, "at least one message"),
        ({"messages": [{}]}, 'message 0 is not an object with a "role"'),
        ({"messages": [*USER, {"role": 3}]}, 'message 1 is not an object with a "role"'),
        ({"messages": [{"content": "x"}]}, 'message 0 is not an object with a "role"'),
    ],
)
def test_chats_are_checked_when_they_are_made(fields: dict[str, Any], words: str):
    for make in (Chat, partial(Chat.of, given={}), lambda **given: Chat.from_json(given)):
        with pytest.raises(TextError, match=words):
            make(**fields)
    made = Chat(USER)
    assert replace(made, messages=tuple(USER)) == made
    with pytest.raises(TextError, match=words):
        replace(made, **fields)
    with pytest.raises(TextError, match='has no "messages"'):
        Chat.from_json({})
