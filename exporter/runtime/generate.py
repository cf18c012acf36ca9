"""Generation: a batch of prompts through one session, token by token, to text.

Letters: B rows, T tokens of one call, V vocabulary.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lmcast.exporter.checkpoint import strict_json
from lmcast.exporter.runtime.chat import CHAT_KEYS, Chat
from lmcast.exporter.runtime.images import Images
from lmcast.exporter.runtime.prepare import Pictured
from lmcast.exporter.runtime.sampling import Sampler, Sampling
from lmcast.exporter.runtime.text import Text, TextStream
from lmcast.plugins.annotations import Count, Rows
from lmcast.plugins.arguments import checked
from lmcast.plugins.errors import InputError

MOST_PROMPTS = 1 << 16  # rows of a session
PROMPTS_BYTES = 64 << 20  # 64 MiB: far more prompts than one session takes
LINE_BYTES = 16 << 20  # 16 MiB: more than a context of a million tokens holds
KINDS = ("images", "videos", "sounds")  # keys of a line that name files
FILLER = 0  # the token fed to rows that have finished; what it gives is ignored


class GenerateError(InputError):
    """Prompts or limits that cannot be generated from, or a prompt file that cannot be read."""


class Session(Protocol):
    """The part of a session that generation uses."""

    @property
    def context(self) -> int | None: ...

    def append(
        self,
        input_ids: np.ndarray,
        counts: np.ndarray | None = None,
        images: Sequence[Images | None] | None = None,
    ) -> np.ndarray:
        """input_ids int64 B,T; counts int64 B; images: of each row -> float32 B,V: logits at each
        last valid token."""
        ...


@dataclass(frozen=True)
class Generated:
    """One finished row: the prompt and its continuation."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]  # every token picked; the one that ended the row included
    text: str | None  # of ids, without the end token, up to a stop string; None without a tokenizer
    finish_reason: Literal["eos", "stop", "length"]
    image_tokens: tuple[int, ...] = ()  # tokens of the prompt that each of its pictures takes


@checked
def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: Count,
    sampling: Sampling,
    eos_ids: frozenset[int] = frozenset(),
    stop: tuple[str, ...] = (),
    text: Text | None = None,
    on_token: Callable[[int, str], None] | None = None,
    images: Sequence[Images | None] | None = None,
) -> list[Generated]:
    """Continue each prompt until an id of eos_ids, a stop string or max_new_tokens.

    session: fresh, with one row per prompt.
    prompts: token ids.
    text: the tokenizer, None for ids only.
    on_token: called with a row and its new text as soon as that is certain; the pieces of a row
        join to its text, and contain no part of a stop string.
    images: the pictures of each prompt, None for none.

    Raises GenerateError before anything runs, SamplingError for logits that are not finite.
    """
    if text is None and on_token is not None:
        raise GenerateError("on_token: text needs a tokenizer, which the engine lacks")
    seen = images or [None] * len(prompts)
    check_request(session.context, prompts, max_new_tokens, stop, text, seen)
    sampler = Sampler(sampling, len(prompts))
    rows = [
        Row(list(prompt), Shown(text.stream(), stop) if text is not None else None)
        for prompt in prompts
    ]
    logits = session.append(*padded(prompts), *([seen] if any(seen) else []))
    while True:
        open_rows = [i for i, row in enumerate(rows) if row.reason is None]
        histories = [rows[i].history for i in open_rows]
        picked = sampler.pick(logits[open_rows], histories, open_rows)
        ids = np.full((len(rows), 1), FILLER, dtype=np.int64)
        for i, token in zip(open_rows, picked, strict=True):
            piece = rows[i].take(token, eos_ids, max_new_tokens)
            if piece and on_token is not None:
                on_token(i, piece)
            ids[i] = token
        if all(row.reason is not None for row in rows):
            break
        logits = session.append(ids, None)
    return [
        row.result(len(prompt), () if own is None else own.tokens)
        for row, prompt, own in zip(rows, prompts, seen, strict=True)
    ]


def padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return prompts as int64 B,T, filled on the right, and int64 B: how many tokens each has."""
    counts = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    ids = np.full((len(prompts), counts.max()), FILLER, dtype=np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return ids, counts


def check_request(
    context: int | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: tuple[str, ...],
    text: Text | None,
    images: Sequence[Images | None],
) -> None:
    """Refuse what cannot run, before anything is allocated."""
    if not prompts:
        raise GenerateError("prompts: there is none; give at least one")
    if "" in stop:
        raise GenerateError("stop: an empty string would stop at once; give some text")
    if stop and text is None:
        raise GenerateError("stop: stop strings need a tokenizer, which the engine lacks")
    for i, (prompt, seen) in enumerate(zip(prompts, images, strict=True)):
        if not len(prompt):
            raise GenerateError(f"prompt {i}: is empty; give at least one token")
        total = len(prompt) + max_new_tokens
        if context is not None and total > context:
            taken = [] if seen is None else list(map(str, seen.tokens))
            of_images = f", of which its pictures take {', '.join(taken)}," if taken else ""
            raise GenerateError(
                f"prompt {i}: its {len(prompt)} tokens{of_images} and {max_new_tokens} new ones"
                f" make {total}, over the context of {context}; shorten the prompt or lower"
                " max_new_tokens"
            )


@dataclass
class Row:
    """One sequence being generated."""

    history: list[int]  # prompt and picked tokens
    shown: "Shown | None"
    picked: int = 0
    reason: Literal["eos", "stop", "length"] | None = None

    def take(self, token: int, eos_ids: frozenset[int], limit: int) -> str:
        """Add one token, decide whether the row ends with it, and return text to show."""
        self.history.append(token)
        self.picked += 1
        ended = token in eos_ids
        if ended:
            self.reason = "eos"
        elif self.picked == limit:
            self.reason = "length"
        if self.shown is None:
            return ""
        piece = "" if ended else self.shown.push(token)
        if self.reason and not self.shown.stopped:
            piece += self.shown.finish()
        if self.shown.stopped:
            self.reason = "stop"
        return piece

    def result(self, prompt_length: int, image_tokens: tuple[int, ...]) -> Generated:
        """Return the finished row."""
        assert self.reason is not None
        return Generated(
            prompt=tuple(self.history[:prompt_length]),
            ids=tuple(self.history[prompt_length:]),
            text="".join(self.shown.pieces) if self.shown else None,
            finish_reason=self.reason,
            image_tokens=image_tokens,
        )


@dataclass
class Shown:
    """The text of a row as far as it can be shown: up to a stop string, or what may become one.

    The first complete stop string counts, the longest of those that end together; so the text does
    not depend on how it is divided into tokens.
    """

    stream: TextStream
    stop: tuple[str, ...]
    pieces: list[str] = field(default_factory=list)
    stopped: bool = False
    held: str = ""  # what could begin a stop string

    def push(self, token: int) -> str:
        """Return the text that this token made certain."""
        return self._add(self.stream.push(token), final=False)

    def finish(self) -> str:
        """Return the rest."""
        return self._add(self.stream.finish(), final=True)

    def _add(self, text: str, *, final: bool) -> str:
        text = self.held + text
        found = [(at + len(s), at) for s in self.stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped = True
            end = min(found)[1]
        else:
            end = len(text) if final else len(text) - self._unsure(text)
        piece, self.held = text[:end], text[end:]
        if piece:
            self.pieces.append(piece)
        return piece

    def _unsure(self, text: str) -> int:
        """Return the length of the longest end of text that begins a stop string."""
        longest = max((len(s) - 1 for s in self.stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self.stop):
                return length
        return 0


Read = str | Chat | Pictured | list[int]


@checked
def read_prompts(path: Path, most: Rows = MOST_PROMPTS) -> list[Read]:
    """Read prompts: a line each of a .txt file, or a JSON value each of a .jsonl file.

    Values are as `parse_prompt` takes them; blank lines are skipped. Raises GenerateError that
    names the line, and for more than `most` prompts.
    """
    kind = path.suffix.lower()
    if kind not in (".txt", ".jsonl"):
        raise GenerateError(f"{path}: prompts must be in a .txt or .jsonl file")
    lines = list(islice(read_lines(path), most + 1))
    if len(lines) > most:
        raise GenerateError(f"{path}: holds more than {most} prompts; split it")
    prompts: list[Read] = [
        parse_prompt(line, f"{path}:{number}", path.parent) if kind == ".jsonl" else line
        for number, line in lines
    ]
    if not prompts:
        raise GenerateError(f"{path}: holds no prompt")
    return prompts


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line that is not blank."""
    try:
        # Without O_NONBLOCK a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise GenerateError(f"{path}: is not a regular file")
            if found.st_size > PROMPTS_BYTES:
                raise GenerateError(f"{path}: is larger than {PROMPTS_BYTES >> 20} MiB; split it")
            # Not splitlines, which also splits at characters that JSON strings may hold.
            for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), 1):
                if line.strip():
                    yield number, _decoded(line, number, path)
    except OSError as error:
        raise GenerateError(f"{path}: cannot be read: {error.strerror}") from error


def _decoded(line: bytes, number: int, path: Path) -> str:
    """Return the text of a line without its end."""
    if len(line) > LINE_BYTES:
        raise GenerateError(f"{path}:{number}: is a line of more than {LINE_BYTES >> 20} MiB")
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise GenerateError(f"{path}:{number}: is not UTF-8; save the file as UTF-8") from error


def parse_prompt(line: str, where: str, folder: Path) -> Read:
    """Return the prompt of one line of JSON.

    {"prompt": text or token ids}, or {"messages": [...]} with what CHAT_KEYS names beside; either
    with what KINDS names: files, from `folder` on, and "fps" of the videos; or a text, a list of
    messages or a list of token ids by itself.
    """
    try:
        value = strict_json.parse_value(line)
    except (ValueError, RecursionError) as error:
        raise GenerateError(f"{where}: is not JSON: {str(error) or 'nested too deeply'}") from error
    if not isinstance(value, dict):
        return parse_value(value, where)
    shown = {key: value.pop(key) for key in (*KINDS, "fps") if key in value}
    prompt = parse_object(value, where)
    if not shown:
        return prompt
    shown |= {key: find_files(shown[key], where, key, folder) for key in KINDS if key in shown}
    try:
        return Pictured(prompt, **shown)
    except InputError as error:
        raise GenerateError(f"{where}: {error}") from None


def find_files(names: Any, where: str, key: str, folder: Path) -> list[Path]:
    """Return the files that a key of KINDS names; raises GenerateError where one is not there."""
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise GenerateError(f'{where}: "{key}" must be a list of files, not {names!r:.80}')
    files = [folder / name for name in names]
    for file in files:
        if not file.is_file() and not (key == "videos" and file.is_dir()):
            raise GenerateError(f'{where}: "{key}": there is no file {str(file)!r:.200}')
    return files


def parse_object(value: dict[str, Any], where: str) -> str | Chat | list[int]:
    """Return the prompt of an object; raises GenerateError for keys that are not read."""
    if ("prompt" in value) == ("messages" in value):
        found = str(sorted(value))
        raise GenerateError(
            f'{where}: must be an object with either "prompt" or "messages", not the keys'
            f" {found:.200}"
        )
    accepted = CHAT_KEYS if "messages" in value else ()
    if unknown := sorted(value.keys() - {"prompt", "messages", *accepted}):
        what = "messages" if accepted else "prompt"
        beside = f'"{what}" with {", ".join((*accepted, *KINDS, "fps"))}'
        raise GenerateError(f"{where}: has {', '.join(unknown)}, which is not read; {beside} is")
    if accepted:
        try:
            return Chat.from_json(value)
        except InputError as error:
            raise GenerateError(f"{where}: {error}") from None
    prompt = value["prompt"]
    if not is_ids(prompt) and not (isinstance(prompt, str) and prompt):
        raise GenerateError(
            f'{where}: "prompt" must be a text that is not empty or a list of token ids, not'
            f" {prompt!r:.80}"
        )
    return parse_value(prompt, where)


def parse_value(value: Any, where: str) -> str | Chat | list[int]:
    """Return a prompt that stands by itself: a text, token ids or messages."""
    if isinstance(value, str) and value:
        return value
    if is_ids(value):
        ids: list[int] = value
        return ids
    try:
        return Chat(value)
    except InputError as error:
        raise GenerateError(
            f'{where}: must be an object with either "prompt" or "messages", a text that is not'
            f" empty, a list of token ids or a list of messages, not {value!r:.80} ({error})"
        ) from None


def is_ids(value: object) -> bool:
    """Say whether a JSON value is a list of token ids."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    )
