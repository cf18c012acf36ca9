"""Text for calibration and measurement: samples of a file, and their tokens in chunks."""

import platform
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lmcast.exporter import texts
from lmcast.exporter.checkpoint import CheckpointError, strict_json
from lmcast.exporter.checkpoint.files import read_capped
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.runtime.chat import CHATS_PER_WORKER, Chat, Messages
from lmcast.exporter.runtime.generate import LINE_BYTES
from lmcast.exporter.runtime.text import Text
from lmcast.plugins.errors import InputError, printable

Sample = str | Messages | Chat

MOST_BYTES = 256 << 20  # 256 MiB: tokenizing that takes minutes, and no method needs more
PIECE = 1 << 20  # characters tokenized at once
Part = Literal["calibration", "choice", "measuring"]
# The tokens of a corpus are divided into equal spans, which the parts take in turn. Spans depend
# on nothing else, so that chunks of one length never reach into those of another.
SPANS = 16
TURNS: tuple[Part, ...] = ("calibration", "choice", "calibration", "measuring")


class CorpusError(InputError):
    """Text that cannot be read, or is not enough."""


def read_corpus(path: Path | None) -> list[Sample]:
    """Return the samples of a file; None: the documentation that comes with Python, in English.

    A .txt file is one text. A line of a .jsonl file is a text, an object with "text", or one with
    "messages", as Chat.from_json takes it, other keys aside; blank lines are skipped.
    Raises InputError naming file and line.
    """
    if path is None:
        from pydoc_data.topics import topics

        return [topics[name] for name in sorted(topics)]
    kind = path.suffix.lower()
    if kind not in (".txt", ".jsonl"):
        raise CorpusError(f"{path}: is no .txt or .jsonl file; text must be in one of these")
    data = read_capped(path, MOST_BYTES).removeprefix(b"\xef\xbb\xbf")
    if kind == ".txt":
        samples: list[Sample] = [_text(data, str(path))] if data.strip() else []
    else:
        # Not splitlines, which also splits at characters that JSON strings may hold.
        lines = enumerate(data.split(b"\n"), 1)
        samples = [_sample(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not samples:
        raise CorpusError(f"{path}: holds no text")
    return samples


def name_of(path: str | PathLike[str] | None) -> str:
    """Return what a person calls the text that read_corpus reads: one printable line."""
    if path is None:
        return f"the manual of Python {platform.python_version()}"
    return printable(Path(path).name)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        place = where if line == 1 else f"{where}:{line}"
        raise CorpusError(f"{place}: is not UTF-8; save the file as UTF-8") from None


def _sample(line: bytes, where: str) -> Sample:
    if len(line) > LINE_BYTES:
        raise CorpusError(f"{where}: is a line of more than {LINE_BYTES >> 20} MiB; split it")
    try:
        value = strict_json.parse_value(_text(line, where))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{where}: is not JSON: {str(error) or 'nested too deeply'}") from None
    if isinstance(value, dict) and ("text" in value) != ("messages" in value):
        if isinstance(value.get("messages"), list):
            try:
                return Chat.from_json(value)
            except InputError as error:
                raise CorpusError(f"{where}: {error}") from None
        value = value["text"] if "text" in value else value["messages"]
    elif not isinstance(value, str):
        keys = f"the keys {sorted(value)}" if isinstance(value, dict) else type(value).__name__
        raise CorpusError(
            f'{where}: must be a text or an object with either "text" or "messages", not'
            f" {keys:.200}"
        )
    if not isinstance(value, str) or not value:
        raise CorpusError(
            f'{where}: must be a text that is not empty or a list of "messages", not {value!r:.80}'
        )
    return value


def text_of(source: Checkpoint) -> Text:
    """Return the tokenizer of a checkpoint; raises CheckpointError if it has none."""
    text = texts.text_of(source)
    if text is None:
        raise CheckpointError(
            source.texts.problem
            or f"{source.path}: tokenizer.json is missing, without which text has no tokens; add it"
            " (save_pretrained of the fast tokenizer writes it)"
        )
    return text


def chunks(
    samples: Sequence[Sample],
    text: Text,
    tokens: int,
    count: int,
    part: Part = "calibration",
    seed: int = 0,
) -> Tensor:
    """Return chunks of token ids, int64 count,tokens; equal input gives equal chunks.

    samples, text: what is tokenized, with which tokenizer and chat template.
    tokens, count: size and number of chunks; each begins with what the tokenizer puts before a text
        (BOS, where it does).
    part: of the text; parts do not overlap: for calibration, for choices between results, for
        measurements.
    seed: which chunks, where there are more.

    Raises CorpusError for too little text.
    """
    prefix = text.prefix()
    if tokens <= len(prefix) + 1 or count < 1:
        raise CorpusError(
            f"{count} chunks of {tokens} tokens; accepted: at least 1 of {len(prefix) + 2}"
        )
    stream = _stream(samples, text)
    # The last span takes what the division leaves.
    bounds = [len(stream) * i // SPANS for i in range(SPANS + 1)]
    spans = [
        stream[begin:end]
        for i, (begin, end) in enumerate(pairwise(bounds))
        if TURNS[i % len(TURNS)] == part
    ]
    found = sum(1 for span in spans for _ in _cut(span, prefix, tokens))
    if found < count:
        needed = SPANS * tokens * -(-count // len(spans))
        raise CorpusError(
            f"the text has {len(stream):,} tokens, which give {found} chunks of {tokens} for"
            f" {part}; {needed:,} are enough for {count}: give more text, or ask for less"
        )
    order = torch.randperm(found, generator=torch.Generator().manual_seed(seed))
    chosen = set(order[:count].tolist())
    # Cut again: places of millions of chunks take more memory than their tokens.
    places = enumerate(place for span in spans for place in _cut(span, prefix, tokens))
    taken = [[*head, *part.tolist()] for i, (head, part) in places if i in chosen]
    return torch.tensor(taken, dtype=torch.int64)


def _stream(samples: Sequence[Sample], text: Text) -> np.ndarray:
    """Return the tokens of all samples, one behind the other, each with its special tokens.

    int32: ids of a large file take as much memory as its text, not forty times that.
    """
    chats = _rendered((sample for sample in samples if not isinstance(sample, str)), text)
    parts = [np.empty(0, np.int32)]
    for sample in samples:
        pieces = map(text.encode, _pieces(sample)) if isinstance(sample, str) else [next(chats)]
        parts += [np.array(ids, np.int32) for ids in pieces]
    return np.concatenate(parts)


def _rendered(chats: Iterator[Messages | Chat], text: Text) -> Iterator[list[int]]:
    """Yield the tokens of chats, several at once: a template is rendered in a process of its own,
    which takes a while to start."""
    while several := list(islice(chats, CHATS_PER_WORKER)):
        yield from text.chats(several, PIECE)


def _pieces(sample: str) -> Iterator[str]:
    """Yield a text in pieces that end with a line; tokenizing takes 100 times their memory."""
    start = 0
    while len(sample) - start > PIECE:
        end = sample.rfind("\n", start, start + PIECE) + 1 or start + PIECE
        yield sample[start:end]
        start = end
    yield sample[start:]


def _cut(
    span: np.ndarray, prefix: list[int], tokens: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield what a chunk begins with, and the part of the span behind that."""
    at = 0
    while True:
        # Where a text begins with the chunk, its own prefix is there.
        head = [] if span[at : at + len(prefix)].tolist() == prefix else prefix
        end = at + tokens - len(head)
        if end > len(span):
            return
        yield head, span[at:end]
        at = end
