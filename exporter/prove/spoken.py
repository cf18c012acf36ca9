"""Tokens and chats of an engine against those of its checkpoint: what both make of one table.

Bytes of files are compared as well (texts.py); here is what a difference does to a text, and
whether the engine, which reads its own files, makes of them what the checkpoint's make.
"""

import json
from collections.abc import Iterator
from itertools import zip_longest

from lmcast.exporter.diff.tokenizers import changed_entries, changed_rules
from lmcast.exporter.diff.values import ABSENT, Change, changes
from lmcast.exporter.engine.names import GENERATION, TOKENIZER
from lmcast.exporter.runtime.chat import Chat, Messages, TextError, render_chats
from lmcast.exporter.runtime.text import Text
from lmcast.plugins.errors import InputError

SHOWN = 60  # characters of a text, and ids of one, that a message has around a difference
MOST_CHANGED = 1000  # entries of a tokenizer whose spelling is tried: of another one it is all

# What tokenizers do differently: spaces, digits, case, scripts, joined and half characters.
TABLE: tuple[str, ...] = (
    "",
    " ",
    "The capital of France is Paris.",
    "  two spaces,\ta tab,\nand\n\n\nlines\r\n ",
    "0 1 12 123 1234567890 3.14159 1,000,000 2026-11-30",
    "don't I'll we've YOU'RE naïve café e\u0301",
    'def f(x: int) -> str:\n    return f"{x!r:>10}"  # noqa\n',
    '{"key": [1, 2.5e-3, null], "a\\nb": "<tag attr=\'1\'>&amp;</tag>"}',
    "https://example.org/a_b-c?d=e%20f&g#h user@example.org C:\\dir",
    "Größe ΑΒγδ Привет שלום مرحبا नमस्ते สวัสดี",
    "日本語のテキスト。中文文本,한국어 텍스트",
    "👍🏽 👩‍👩‍👧 🇫🇷 \u200b\ufeff\u00a0",
    "<s></s><unk><pad><|endoftext|><|im_start|>user<|im_end|>[INST][/INST]<bos><eos>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa================================",
)

# Chats that templates treat differently. One that refuses a chat is to refuse it in both.
ASKED = {"role": "user", "content": "What is 2 + 2?"}
TOLD = {"role": "assistant", "content": "4"}
CHATS: dict[str, Messages] = {
    "a question": [ASKED],
    "with a system message": [{"role": "system", "content": "Be brief."}, ASKED],
    "two turns": [ASKED, TOLD, {"role": "user", "content": "And  3?\n"}],
    "an answer with reasoning": [
        ASKED, {**TOLD, "reasoning_content": "It is even."}, {"role": "user", "content": "Why?"},
    ],
    "a call of a tool": [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [{
            "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}},
        }]},
        {"role": "tool", "name": "add", "content": "4"},
    ],
}  # fmt: skip
TOOLS = [{
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}]  # fmt: skip


def other_tokens(engine: Text, checkpoint: Text, held: bytes, expected: bytes) -> str | None:
    """Return the first text that two tokenizers make other ids of, and the ids of both; None where
    there is none.

    held, expected: both files tokenizer.json. Tokens whose ids are others there are texts, too.
    """
    changed = [] if held == expected else changed_entries(expected, held)[:MOST_CHANGED]
    spelled = (spelling for one in changed for spelling in _spellings(one.place, checkpoint))
    for text in (*TABLE, *spelled):
        ours, theirs = (_attempt(each, text) for each in (engine, checkpoint))
        if ours != theirs:
            return f"{text!r:.{SHOWN}} is {_beside(ours, theirs)}"
    return None


def _spellings(token: str, of: Text) -> Iterator[str]:
    """Yield texts that have a token: as it is written in tokenizer.json, and as it is decoded."""
    yield token
    if (id := of.id_of(token)) is not None:
        yield of.decode([id])


def _attempt(text: Text, given: str) -> list[int] | str:
    try:
        return text.encode(given)
    except InputError as error:  # what the library fails with, which both may
        return str(error)


def _beside(ours: object, theirs: object) -> str:
    return f"{ours!s:.{SHOWN}} in the engine, {theirs!s:.{SHOWN}} of the checkpoint"


def other_chats(engine: Text, checkpoint: Text) -> str | None:
    """Return the first chat that is rendered otherwise, and where; None where there is none.

    What both are given alike is not rendered: templates may write the time of day.
    """
    held, expected = engine.chat_templates, checkpoint.chat_templates
    same_words = engine.special_tokens == checkpoint.special_tokens
    for name in sorted(held.keys() & expected.keys()):
        if same_words and held[name] == expected[name]:
            continue
        given = [(title, Chat(messages, template=name)) for title, messages in CHATS.items()]
        if "tools" in held[name] and "tools" in expected[name]:
            given.append(("a question with tools", Chat([ASKED], tools=TOOLS, template=name)))
        chats = [chat for _, chat in given]
        both = (_rendered(each, chats) for each in (engine, checkpoint))
        for (title, _), ours, theirs in zip(given, *both, strict=True):
            if ours != theirs:
                where = "" if name == "default" else f" in template {name!r:.{SHOWN}}"
                return f"{title}{where} is {_beside(*_from_difference(ours, theirs))}"
    return None


def _rendered(text: Text, chats: list[Chat]) -> list[str]:
    """Render all at once, in one process; one by one where one of them is refused."""
    try:
        return render_chats(text.chat_templates, text.special_tokens, chats)
    except TextError as error:
        if len(chats) == 1:
            return [str(error)]
        return [_rendered(text, [chat])[0] for chat in chats]


def _from_difference(ours: str, theirs: str) -> tuple[str, str]:
    """Return both texts from shortly before their first difference."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    begin = max(0, at - SHOWN // 3)
    return repr(ours[begin : begin + SHOWN]), repr(theirs[begin : begin + SHOWN])


def other_file(name: str, held: bytes, expected: bytes) -> str:
    """Name the first thing in which a text of an engine is another than its checkpoint's."""
    try:
        return _other_file(name, held, expected)
    except (InputError, ValueError, RecursionError) as error:  # it is damaged
        return " ".join(str(error).split())[:SHOWN]


def _other_file(name: str, held: bytes, expected: bytes) -> str:
    if name == TOKENIZER:
        changed = changed_entries(expected, held)
        named = ", ".join(
            f"token {one.place!r:.{SHOWN}} is {_id(one.after)}, not {_id(one.before)}"
            for one in changed[:2]
        )
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        return named + more or _first(changed_rules(expected, held))
    if name == GENERATION:
        return _first(changes(json.loads(expected), json.loads(held)))
    lines = [data.decode(errors="replace").split("\n") for data in (held, expected)]
    pairs = enumerate(zip_longest(*lines, fillvalue=""), 1)
    number, (ours, theirs) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
    return f"line {number} is {_beside(*_from_difference(ours, theirs))}"


def _first(found: Iterator[Change]) -> str:
    one = next(found, None)
    return "it is written otherwise" if one is None else one.text()


def _id(given: object) -> str:
    return "absent" if given is ABSENT else str(given)
