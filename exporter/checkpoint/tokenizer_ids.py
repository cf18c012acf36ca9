"""Whether a tokenizer.json gives every token one id, and every id one token.

The tokenizers library (0.23) reads the others, too, and is silent: of two tokens with one id it
keeps either, of one token with two ids the last, and an added token whose id is taken, or is not
the first behind all before it, gets another one.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lmcast.exporter.checkpoint.errors import CheckpointError


def require_one_each(whole: Mapping[str, Any], tokenizer: Tokenizer, shown: Path) -> None:
    """Raise CheckpointError, which names `shown`, where a token or an id is there twice.

    whole: the file, of whose objects none has one key twice. tokenizer: what the library made of
    it, which it refuses if parts of it are not of their types.
    """
    vocabulary = whole["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        _refuse_second(((id, token) for token, id in vocabulary.items()), "id", "tokens", shown)
    else:  # of Unigram: pairs of a token and its score, by id
        _refuse_second(((pair[0], id) for id, pair in enumerate(vocabulary)), "token", "ids", shown)
    added = [(token["id"], token["content"]) for token in whole.get("added_tokens") or ()]
    _refuse_second(dict.fromkeys(added), "id", "added tokens", shown)
    for id, content in added:
        given = tokenizer.token_to_id(content)
        if given != id:
            owner = tokenizer.id_to_token(id)
            why = "in the order of added_tokens, each new one gets the first id behind all others"
            if owner is not None and owner != content:
                why = f"{id} is that of {owner!r:.80}"
            raise CheckpointError(
                f"{shown}: the added token {content!r:.80} has id {id}, but the tokenizers library"
                f" gives it {given}: {why}"
            )


def _refuse_second(pairs: Iterable[tuple[Any, Any]], kind: str, others: str, shown: Path) -> None:
    for name, first, second in _twice(pairs):
        raise CheckpointError(
            f"{shown}: the {kind} {name!r:.80} has two {others}: {first!r:.80} and {second!r:.80}"
        )


def _twice(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, Any]]:
    seen: dict[Any, Any] = {}
    for name, value in pairs:
        if name in seen:
            yield name, seen[name], value
        seen[name] = value
