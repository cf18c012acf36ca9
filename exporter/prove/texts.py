"""Whether an engine holds the texts of its checkpoint: tokenizer, chat templates, ends of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.engine.names import GENERATION, TEMPLATE, TEMPLATES, TOKENIZER
from lmcast.exporter.progress import silent
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.texts import without_texts, write_texts


@dataclass(frozen=True)
class TextCheck:
    """One file or field of texts, compared."""

    name: str
    problem: str | None  # None where it is equal

    def text(self) -> str:
        return f"{self.name}: {'equal' if self.problem is None else f'FAILED: {self.problem}'}"


def compare_texts(
    engine: Engine, source: Checkpoint, identities: Sequence[SourceFile]
) -> tuple[TextCheck, ...]:
    """Compare an engine's texts, by their bytes, with what an export of the checkpoint writes.

    An engine without a tokenizer was asked to take token ids alone.
    """
    names = [file.path for file in engine.manifest.files]
    if TOKENIZER not in names:
        source = without_texts(source)
    checks = []
    with TemporaryDirectory() as folder:
        fields = write_texts(source, Path(folder), identities, engine.vocab_size, silent)
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        expected = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    held = {
        name: engine.read(name)
        for name in names
        if name in (TOKENIZER, TEMPLATE, GENERATION) or name.startswith(f"{TEMPLATES}/")
    }
    for name in sorted(expected.keys() | held.keys()):
        problem = None
        if name not in held:
            problem = "the engine has none, the checkpoint has"
        elif name not in expected:
            problem = "the checkpoint has none, the engine has"
        elif held[name] != expected[name]:
            problem = "is not what an export of the checkpoint writes"
        checks.append(TextCheck(name, problem))
    for name, value in sorted(fields.items()):
        found = engine.manifest.fields.get(name)
        same = found == value
        checks.append(
            TextCheck(name, None if same else f"{found!r:.80} in the engine, of it {value!r:.80}")
        )
    return tuple(checks)
