"""What differs between two files tokenizer.json: entries by their spelling, and all else."""

import json
from collections.abc import Iterator
from typing import Any

from lmcast.exporter.diff.values import ABSENT, Change, changes
from lmcast.exporter.runtime.chat import TextError


def changed_entries(before: bytes, after: bytes) -> list[Change]:
    """Return the tokens whose ids are others, by their spelling: place is that, sides are ids."""
    old, new = ids_of(before), ids_of(after)
    every = (*old, *(token for token in new if token not in old))
    return [
        Change(token, old.get(token, ABSENT), new.get(token, ABSENT))
        for token in every
        if old.get(token) != new.get(token)
    ]


def ids_of(data: bytes) -> dict[str, int]:
    """Return the id of each token by its spelling; raises TextError for what is no tokenizer."""
    return _entries(_content(data))


def changed_rules(before: bytes, after: bytes) -> Iterator[Change]:
    """Yield what differs beside the ids: merges, scores, how a text is normalized and split."""
    old, new = (_without_ids(_content(data)) for data in (before, after))
    yield from changes(old, new)


def _content(data: bytes) -> dict[str, Any]:
    """Return what a tokenizer.json says; raises TextError for what has not the parts of one."""
    try:
        content = json.loads(data)
        _entries(content), _without_ids(content)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise TextError("tokenizer.json: is not a tokenizer; export again") from None
    return dict(content)


def _entries(content: dict[str, Any]) -> dict[str, int]:
    held = content["model"].get("vocab") or {}
    if isinstance(held, list):  # of Unigram, with scores
        held = {piece: id for id, (piece, _) in enumerate(held)}
    return {
        **held,
        **{token["content"]: token["id"] for token in content.get("added_tokens") or ()},
    }


def _without_ids(content: dict[str, Any]) -> dict[str, Any]:
    model = {key: value for key, value in content["model"].items() if key != "vocab"}
    held = content["model"].get("vocab")
    if isinstance(held, list):
        model["scores"] = dict(held)
    added = {
        token["content"]: {key: value for key, value in token.items() if key != "id"}
        for token in content.get("added_tokens") or ()
    }
    return {**content, "model": model, "added_tokens": added}
