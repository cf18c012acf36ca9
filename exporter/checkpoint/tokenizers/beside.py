"""How many ids the makers' own files have beside a tokenizer.json: counted, not converted."""

from collections.abc import Callable, Mapping
from contextlib import suppress

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.tokenizers.protobuf import DamagedError, fields
from lmcast.exporter.checkpoint.tokenizers.sentencepiece import PIECE
from lmcast.exporter.checkpoint.tokenizers.tiktoken import RESERVED


def _pieces(data: bytes) -> int:
    return sum(number == PIECE for number, _ in fields(memoryview(data)))


def _ranks(data: bytes) -> int:
    return sum(map(bool, data.splitlines())) + RESERVED


COUNTED: Mapping[str, Callable[[bytes], int]] = {
    "tokenizer.model": _pieces,
    "tiktoken.model": _ranks,
}


def more_ids(folder: Folder, ids: int, limit: int) -> tuple[str, ...]:
    """Name files of up to `limit` bytes that have more ids than tokenizer.json: it may be another
    model's. Fewer are usual, where tokens were added later."""
    notes = []
    for name, count in COUNTED.items():
        with suppress(CheckpointError, DamagedError):  # a file that does not count may be damaged
            data = folder.read(name, limit)
            if data is not None and (theirs := count(data)) > ids:
                notes.append(f"{name} has {theirs} ids, tokenizer.json, which counts, {ids}")
    return tuple(notes)
