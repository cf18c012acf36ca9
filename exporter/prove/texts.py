"""Whether an engine holds the texts of its checkpoint: tokenizer, chat templates, ends of text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.engine.names import GENERATION, TEMPLATE, TEMPLATES, TOKENIZER
from lmcast.exporter.progress import silent
from lmcast.exporter.prove.scenarios import Part
from lmcast.exporter.prove.spoken import other_chats, other_file, other_tokens
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.texts import text_of, without_texts, write_texts
from lmcast.plugins.errors import InputError

TOKENS, CHATS = "token ids", "chats"  # what is made with texts, as checks are called


@dataclass(frozen=True)
class TextCheck:
    """One file or field of texts, or what is made with them, compared."""

    name: str
    problem: str | None  # None where it is equal
    part: Part = "generation"
    seconds: float = 0.0

    def text(self) -> str:
        return f"{self.name}: {'equal' if self.problem is None else f'FAILED: {self.problem}'}"


def compare_texts(
    engine: Engine, source: Checkpoint, identities: Sequence[SourceFile]
) -> tuple[TextCheck, ...]:
    """Compare an engine's texts with what an export of the checkpoint writes: their bytes, and what
    both tokenizers and both chat templates make of a table of texts and chats.

    An engine without a tokenizer was asked to take token ids alone.
    """
    names = [file.path for file in engine.manifest.files]
    if TOKENIZER not in names:
        source = without_texts(source)
    with TemporaryDirectory() as folder:
        fields = write_texts(source, Path(folder), identities, engine.vocab_size, silent)
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        expected = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    held = {
        name: engine.read(name)
        for name in names
        if name in (TOKENIZER, TEMPLATE, GENERATION) or name.startswith(f"{TEMPLATES}/")
    }
    return (
        *(_file(name, held, expected) for name in sorted(expected.keys() | held.keys())),
        *(_field(name, value, engine) for name, value in sorted(fields.items())),
        *_made(engine, source, held.get(TOKENIZER), expected.get(TOKENIZER)),
    )


def _file(name: str, held: Mapping[str, bytes], expected: Mapping[str, bytes]) -> TextCheck:
    if name not in held:
        problem = "the engine has none, the checkpoint has"
    elif name not in expected:
        problem = "the checkpoint has none, the engine has"
    elif held[name] != expected[name]:
        found = other_file(name, held[name], expected[name])
        problem = f"is not what an export of the checkpoint writes: {found}"
    else:
        problem = None
    return TextCheck(name, problem, _part(name))


def _part(name: str) -> Part:
    if name in (TOKENIZER, "special_tokens"):
        return "tokenizer"
    return "generation" if name in (GENERATION, "eos_ids") else "chat template"


def _field(name: str, value: object, engine: Engine) -> TextCheck:
    found = engine.manifest.fields.get(name)
    problem = (
        None if found == value else f"{found!r:.80} in the engine, {value!r:.80} of the checkpoint"
    )
    return TextCheck(name, problem, _part(name))


def _made(
    engine: Engine, source: Checkpoint, held: bytes | None, expected: bytes | None
) -> Iterator[TextCheck]:
    """Yield what is made of texts and chats, where both sides have a tokenizer."""
    theirs = text_of(source)
    if held is None or expected is None or theirs is None:
        return
    begin = perf_counter()
    try:
        problem = other_tokens(engine.text, theirs, held, expected)
    except InputError as error:
        yield TextCheck(TOKENS, str(error), "tokenizer", perf_counter() - begin)
        return
    yield TextCheck(TOKENS, problem, "tokenizer", perf_counter() - begin)
    if engine.chat_templates or theirs.chat_templates:
        begin = perf_counter()
        problem = other_chats(engine.text, theirs)
        yield TextCheck(CHATS, problem, "chat template", perf_counter() - begin)
