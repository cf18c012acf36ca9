"""Tokenizers that lie in another file than tokenizer.json, written as one: one file a kind."""

from collections.abc import Callable, Mapping
from typing import Any

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.tokenizers import grok, sentencepiece, tekken, tiktoken
from lmcast.exporter.checkpoint.tokenizers.given import INSTEAD, Converted, Given

FILE_BYTES = 256 << 20  # 256 MiB; the largest in use have about 20
# In the order in which they count where several lie together: Mistral's library takes tekken.json
# before tokenizer.model, and the first and the third are read by their makers' code alone.
KINDS: Mapping[str, Callable[[Given], Converted]] = {
    "tiktoken.model": tiktoken.convert,
    "tekken.json": tekken.convert,
    "tokenizer.tok.json": grok.convert,
    "tokenizer.model": sentencepiece.convert,
}

# Files of tokenizers that are not read, in whole or by how they end.
UNREAD = ("vocab.json", "merges.txt", "vocab.txt", ".model", ".tiktoken")
VERSIONED = "tokenizer.model."  # Mistral's, by version of its instructions


def converted(
    folder: Folder, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> Converted | None:
    """Return the tokenizer of a folder without tokenizer.json, None where there is none.

    config: tokenizer_config.json; special_tokens: those that it and its neighbours name. Raises
    CheckpointError for a file that cannot be converted, and for two that differ in their number of
    ids.
    """
    found: dict[str, Converted] = {}
    for name, convert in KINDS.items():
        data = folder.read(name, FILE_BYTES)
        if data is None:
            continue
        try:
            found[name] = convert(Given(data, folder.root / name, config, special_tokens))
        except CheckpointError:
            if not found:
                raise
    if not found:
        _require_none(folder)
        return None
    (first, taken), *others = found.items()
    for name, other in others:
        if other.ids() != taken.ids():
            raise CheckpointError(
                f"{folder.root}: {first} has {taken.ids()} ids and {name} has {other.ids()}; remove"
                " the one that is not of this model"
            )
    return taken


def _require_none(folder: Folder) -> None:
    """Name a file that holds a tokenizer, where none is read."""
    for name in folder.names():
        if name.endswith(UNREAD) or name.startswith(VERSIONED):
            raise CheckpointError(
                f"{folder.root / name}: is of a tokenizer of a kind that is not read; accepted:"
                f" tokenizer.json, {', '.join(KINDS)}; {INSTEAD}"
            )
