"""Prompt files, corpora and chat templates: read as Python and transformers read them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from files.chat_templates import ANSWER, SYSTEM, TEMPLATES, TOOLS, USER
from files.odd_texts import CODE, EMOJI, MARKS, NUMBERS, SCRIPTS, SPACES, WORDS
from jinja2 import TemplateError
from tiny.llama import tiny_llama
from transformers.utils.chat_template_utils import render_jinja_template

from fuzz.edits import Edit
from fuzz.files import Files
from lmcast.exporter import Engine, export
from lmcast.exporter.checkpoint.files import read_capped
from lmcast.exporter.prove.corpus import chunks, read_corpus
from lmcast.exporter.runtime.chat import Chat, TextError, render_chats
from lmcast.exporter.runtime.generate import read_prompts
from lmcast.plugins.errors import InputError

CHAT = TEMPLATES["qwen3"]  # of the engine
NAMES = ("qwen3", "mistral", "gpt-oss", "granite", "environment")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENS, CHUNKS = 16, 2  # of a corpus
TEXTS = (*SCRIPTS.values(), *SPACES, *WORDS, *NUMBERS, *MARKS, *EMOJI, *CODE)
MILLION = 1 << 20
# More than anybody means: of a line, of lines, of what JSON holds, of what a template gives.
LARGE: dict[str, Callable[[], bytes]] = {
    "a line of 1 MiB": lambda: b"x" * MILLION,
    "a line of 4 MiB": lambda: b"a word and " * (4 * MILLION // 11),
    "4 MiB of marks": lambda: b"a" + "\u0301".encode() * (2 * MILLION),
    "200,000 lines": lambda: b'"x"\n' * 200_000,
    "blank lines": lambda: b"\n" * (2 * MILLION) + b'"x"',
    "a text of 32 MiB in JSON": lambda: b'{"text": "' + b"x " * (16 * MILLION) + b'"}',
    "a message of 4 MiB": lambda: json.dumps(
        {"messages": [{"role": "user", "content": "x " * (2 * MILLION)}]}
    ).encode(),
    "many messages": lambda: json.dumps({"messages": [USER] * 30_000}).encode(),
    "15 MiB of []": lambda: b"[" + b"[]," * (5 * MILLION) + b"1]",
    "15 MiB of ids": lambda: b"[" + b"12," * (5 * MILLION) + b"1]",
    "many keys": lambda: json.dumps({str(i): i for i in range(300_000)}).encode(),
    "deep": lambda: b"[" * 1_000_000,
    "deep objects": lambda: b'{"messages":' * 100_000,
    "a long number": lambda: b"[" + b"9" * MILLION + b"]",
    "zeros": lambda: bytes(MILLION),
}
HOSTILE = (
    "{{ 'x' * 10 ** 9 }}", "{% for i in range(10 ** 9) %}x{% endfor %}", "{{ messages | string }}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "{{ 9 ** 9 ** 9 }}", "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}",
    "{{ messages.append(1) }}", "{{ raise_exception('a\\nb' * 999) }}",
    "{{ '%1000000000d' | format(1) }}", "{{ 1 / 0 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ (1).x.y }}", "{{ 'a' + 1 }}",
    "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ '\\ud800' }}",
    "{{ strftime_now('%') }}", "{{ strftime_now('%Y' * 99999) | length }}",
    "{{ lipsum(n=10 ** 7) }}", "{{ 'x' | center(10 ** 9) }}", "{{ range(10 ** 9) | list }}",
    "{{ 'x'.ljust(10 ** 8) | length }}", "{{ '\\0' }}", "{{ int }}",
    "{% set messages = 3 %}{{ messages }}", "{{ [1, 2] | tojson(indent=10 ** 6) | length }}",
    "{{ {1: 2, 'a': 3} | dictsort }}", "{{ messages | map('x') | list }}", "{% if %}", "{{",
    "{% raw %}", "{{ messages[0].content.encode() }}", "{{ 'a'.format(x=1) }}",
    "{{ '{0.__class__}'.format(1) }}", "{{ namespace(_a=1) }}", "{{ self }}", "{{ dict(a=self) }}",
    "{{ joiner }}", "{{ loop }}", "{{ messages | tojson | length }}", "{{ messages | pprint }}",
    "{{ {'a': messages} | xmlattr }}", "{{ '<a>' | e }}", "{{ 'a' | urlize }}",
    "{{ 'a b' | wordwrap(0) }}", "{{ [] | first }}", "{{ [] | random }}",
    "{{ [3, 1] | sort | join }}", "{{ 2 ** 100000 }}", "{{ 10 ** 5000 }}",
)  # fmt: skip


def large(folder: Path, chance: random.Random) -> Edit:
    """Return an edit to more than anybody means."""
    name = chance.choice(["prompts.txt", "prompts.jsonl", "corpus.txt", "corpus.jsonl"])
    about = chance.choice(list(LARGE))
    return Edit(name, about, lambda path: path.write_bytes(LARGE[about]()))


def odd(folder: Path, chance: random.Random) -> Edit:
    """Return an edit that puts an odd text into a line."""
    name = chance.choice(["prompts.txt", "prompts.jsonl", "corpus.txt", "corpus.jsonl"])
    text = "".join(chance.choice(TEXTS) for _ in range(chance.choice([1, 1, 3])))
    at = chance.random()

    def change(path: Path) -> None:
        lines = path.read_text().split("\n")
        line = json.dumps(text) if path.suffix == ".jsonl" else text
        lines[int(at * len(lines))] = line
        path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))

    return Edit(name, f"has {text!r:.80}", change)


def hostile(folder: Path, chance: random.Random) -> Edit:
    """Return an edit that puts what no template needs before, behind or into one."""
    text, at = chance.choice(HOSTILE), chance.choice([0.0, 1.0, chance.random()])

    def change(path: Path) -> None:
        held = path.read_text()
        cut = int(at * len(held))
        path.write_text(held[:cut] + text + held[cut:])

    return Edit(chance.choice(sorted(TEMPLATE_FILES)), f"has {text} at {at:.2f}", change)


TEMPLATE_FILES = {f"{name}.jinja": TEMPLATES[name] for name in NAMES}


class Texts:
    """What is read, and an engine that reads it."""

    def make(self, folder: Path) -> None:
        lines: list[Any] = [
            "abc", [5, 6, 7], {"prompt": "x\ny"}, {"prompt": [8]}, [USER],
            {"messages": [SYSTEM, USER], "enable_thinking": False},
            {"messages": [USER], "tools": TOOLS, "chat_kwargs": {"enable_thinking": True}},
            {"messages": [USER, ANSWER], "continue_final_message": True},
        ]  # fmt: skip
        (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (folder / "prompts.txt").write_text("one\n\ntwo  \r\n  \n drei é\x0b\u2028x", newline="")
        text = "It was the best of times, it was the worst of times. " * 30
        (folder / "corpus.txt").write_text(text)
        samples: list[Any] = [
            text, {"text": text, "url": "x"}, {"messages": [USER, ANSWER] * 9},
            {"messages": [SYSTEM, USER, ANSWER], "tools": TOOLS},
        ]  # fmt: skip
        (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, samples)))
        for name, template in TEMPLATE_FILES.items():
            (folder / name).write_text(template)
        beside = folder.parent
        tiny_llama(beside / "checkpoint")
        (beside / "checkpoint/chat_template.jinja").write_text(CHAT)
        export(beside / "checkpoint", beside / "engine", parity=False)
        self.engine, self.folder = Engine(beside / "engine", threads=1), folder

    def use(self, folder: Path, work: Path) -> str | None:
        """Read the files that are not as they were, or all; raises the first refusal where there is
        one, once all were tried."""
        ways = {
            "prompts.txt": self.prompts, "prompts.jsonl": self.prompts,
            "corpus.txt": self.corpus, "corpus.jsonl": self.corpus,
            **dict.fromkeys(TEMPLATE_FILES, self.template),
        }  # fmt: skip
        changed = [name for name in ways if not same(folder / name, self.folder / name)]
        refused: list[InputError] = []
        for name in changed or ways:
            try:
                if wrong := ways[name](folder / name):
                    return f"{name}: {wrong}"
            except InputError as error:
                refused.append(error)
        if refused:
            raise refused[0]
        return None

    def prompts(self, path: Path) -> str | None:
        """Read and encode prompts, and compare them with what Python reads."""
        found = read_prompts(path)
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
        lines = [line.removesuffix("\r") for line in data.split("\n") if line.strip()]
        if path.suffix == ".txt":
            if found != lines:
                return f"{len(found)} prompts of {len(lines)} lines"
        else:
            for line, prompt in zip(lines, found, strict=True):
                if wrong := unlike(json.loads(line), prompt):
                    return wrong
        ids = self.engine.encode(found)
        if not all(row and min(row) >= 0 and max(row) < self.engine.vocab_size for row in ids):
            return "ids that are none"
        text = self.engine.text
        for row in ids:
            stream = text.stream()
            if "".join([*map(stream.push, row), stream.finish()]) != text.decode(row):
                return f"{row[:20]} is streamed otherwise than it is decoded"
        for prompt in found:
            if isinstance(prompt, Chat) and (wrong := unlike_theirs(CHAT, prompt)):
                return wrong
        return None

    def corpus(self, path: Path) -> str | None:
        """Read a corpus, and look for its chunks in its tokens."""
        found = read_corpus(path)
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
        if path.suffix == ".txt":
            samples: list[Any] = [data]
        else:
            samples = [json.loads(line) for line in data.split("\n") if line.strip()]
        for value, sample in zip(samples, found, strict=True):
            texts = [value] if isinstance(value, str) else [value.get("text")]
            if isinstance(sample, str) and [sample] != texts:
                return f"{sample!r:.80} is not the text of its line"
        text = self.engine.text
        taken = chunks(found, text, TOKENS, CHUNKS)
        if tuple(taken.shape) != (CHUNKS, TOKENS):
            return f"{CHUNKS} chunks of {TOKENS} tokens are {list(taken.shape)}"
        if len(data) > MILLION:  # which is tokenized in pieces, for tokens take much memory
            return None
        rows = [text.encode(s) if isinstance(s, str) else text.chats([s])[0] for s in found]
        whole = " ".join(str(id) for row in rows for id in row)
        for row in taken.tolist():
            if " ".join(map(str, row)) not in whole:
                return f"{row} are not in the text"
        return None

    def template(self, path: Path) -> str | None:
        """Render chats with a template, and compare them with what transformers renders."""
        try:
            template = read_capped(path, MILLION).decode()
        except UnicodeDecodeError:
            raise TextError(f"{path}: is not UTF-8") from None  # as checkpoints say it
        for chat in (
            Chat([SYSTEM, USER, ANSWER, USER]),
            Chat([USER], TOOLS if "tools" in template else None),
        ):
            if wrong := unlike_theirs(template, chat):
                return wrong
        return None


def same(path: Path, other: Path) -> bool:
    """Whether a file is the copy of another, which nothing has touched."""
    return (
        path.is_file()
        and path.stat().st_size == other.stat().st_size
        and path.stat().st_mtime_ns == other.stat().st_mtime_ns
    )


def unlike(value: Any, prompt: str | Chat | list[int]) -> str | None:
    """Return how a prompt differs from the JSON value of its line."""
    if isinstance(value, dict):
        value = value["messages" if "messages" in value else "prompt"]
    held = prompt.messages if isinstance(prompt, Chat) else prompt
    return None if held == value else f"{held!r:.80} is not {value!r:.80}"


def unlike_theirs(template: str, chat: Chat) -> str | None:
    """Return how a chat is rendered otherwise than by transformers; raises InputError where it is
    refused."""
    (ours,) = render_chats({"default": template}, SPECIAL, [chat])
    try:
        (theirs,), _ = render_jinja_template(
            [list(chat.messages)],
            tools=None if chat.tools is None else list(chat.tools),
            documents=None if chat.documents is None else list(chat.documents),
            chat_template=template,
            continue_final_message=chat.continue_final_message,
            add_generation_prompt=not chat.continue_final_message,
            **SPECIAL,
            **chat.variables,
        )
    except (TemplateError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        return f"rendered, and refused by transformers: {error!s:.200}"
    return None if ours == theirs else f"rendered as {ours[:80]!r}, not as {theirs[:80]!r}"


TEXT = Texts()
PART = Files(
    "prompts", "prompt files, corpora, chats and their templates", TEXT.make, TEXT.use,
    (large, odd, hostile),
)  # fmt: skip
