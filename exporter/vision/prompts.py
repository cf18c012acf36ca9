"""Prompts with pictures: what placeholders become, and where features stand among the tokens."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import cast

import numpy as np

from lmcast.exporter.vision import kinds
from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.positions import Piece
from lmcast.exporter.vision.processor import WORDS, Encoded, MediumName, Places, Processor


def counted(count: int, medium: MediumName) -> str:
    """Return a count in words: '1 picture', '2 pictures'."""
    return f"{count} {WORDS[medium][count != 1]}"


def groups(encoded: Sequence[Encoded]) -> list[list[Encoded]]:
    """Return what belongs to one placeholder each: clips of a video together."""
    found: list[list[Encoded]] = []
    for each in encoded:
        if each.continued:
            found[-1].append(each)
        else:
            found.append([each])
    return found


def written(processor: Processor, encoded: Sequence[Encoded]) -> str:
    """Return what stands for these where no chat template writes it: before the text, in order."""
    media = processor.media
    return "".join(media[group[0].medium].written for group in groups(encoded))


def refuse_tokens(processor: Processor, text: str, where: str = "the prompt") -> None:
    """Refuse a text of a user's own that would take the place of a picture; raises PictureError."""
    for medium in processor.media.values():
        for token in (medium.placeholder, medium.token):
            if token in text:
                raise PictureError(
                    f"{where} contains {token!r}, which stands for a picture, a video or a sound to"
                    " this model; leave it out: pictures are given beside the text"
                )


def expand(processor: Processor, text: str, encoded: Sequence[Encoded]) -> str:
    """Return a prompt whose placeholders are what the given become, in order of each medium.

    Raises PictureError where there are not as many placeholders as pictures, videos or sounds.
    """
    waiting: dict[MediumName, list[str]] = {name: [] for name in WORDS}
    for group in groups(encoded):
        waiting[group[0].medium].append("".join(each.text for each in group))
    named = {name: _placeholder(processor, name) for name in processor.media}
    pattern = re.compile("|".join(f"(?P<{name}>{found})" for name, found in named.items()))
    found = [cast(MediumName, match.lastgroup) for match in pattern.finditer(text)]
    for name, texts in waiting.items():
        if found.count(name) != len(texts):
            placeholders = f"{found.count(name)} placeholder{'s' * (found.count(name) != 1)}"
            raise PictureError(
                f"the prompt has {placeholders} of {WORDS[name][1]}"
                f"{_named(processor, name)}, and {counted(len(texts), name)}"
                f" {'is' if len(texts) == 1 else 'are'} given; give one for each"
            )
    if len({processor.media[name].id for name in found}) < len(set(found)):
        _require_order(found, encoded)
    made = {str(name): iter(texts) for name, texts in waiting.items()}
    return pattern.sub(lambda match: next(made[str(match.lastgroup)]), text)


def _require_order(found: Sequence[MediumName], encoded: Sequence[Encoded]) -> None:
    """Refuse media whose tokens are the same in another order than their placeholders have."""
    given = [group[0].medium for group in groups(encoded)]
    if given != found:
        raise PictureError(
            f"{', '.join(given)} are given, and the prompt has placeholders of"
            f" {', '.join(found)}; give them in the order of the prompt"
        )


def _named(processor: Processor, name: MediumName) -> str:
    medium = processor.medium(name)
    return "" if medium is None else f" ({medium.placeholder})"


def _placeholder(processor: Processor, name: MediumName) -> str:
    """Return the expression of what a placeholder's text replaces."""
    medium = processor.media[name]
    alone = re.escape(medium.placeholder)
    if not kinds.get(processor.kind).media[name].replaces:
        return alone
    return f"{re.escape(medium.written)}|{alone}"


def require_context(encoded: Sequence[Encoded], length: int, context: int) -> None:
    """Refuse a prompt of `length` tokens that a context does not hold, and say what pictures take.

    Raises PictureError.
    """
    if length <= context:
        return
    taken = [(group[0].medium, sum(e.tokens for e in group)) for group in groups(encoded)]
    alike = [(*one, len(list(same))) for one, same in groupby(taken)]
    each = ", ".join(
        f"{counted(many, medium)} of {count} each" if many > 1 else f"{WORDS[medium][0]} {count}"
        for medium, count, many in alike
    )
    raise PictureError(
        f"the prompt has {length} tokens, of which {sum(count for _, count in taken)} are of what"
        f" is shown ({each}), and the context holds {context}; give fewer or smaller pictures, or a"
        " limit of pixels (--max-pixels)"
    )


def places(
    processor: Processor,
    ids: Sequence[int],
    encoded: Sequence[Encoded],
    start: int = 0,
    rope_delta: int = 0,
) -> Places:
    """Return where the features of all `encoded`, joined in this order, stand among tokens.

    ids: of the expanded prompt, or of the part of it that goes on at position `start` of a session
    whose rotations are `rope_delta` ahead. Raises PictureError where the tokens that take features
    are not as many as the features.
    """
    tokens = np.asarray(ids, np.int64).reshape(-1)
    rows = np.full(len(tokens), -1, np.int64)
    sent = tokens.copy()
    first = np.cumsum([0, *(each.features for each in encoded)])
    pieces: list[Piece] = []
    media = processor.media
    for id in dict.fromkeys(medium.id for medium in media.values()):
        own = [(i, each) for i, each in enumerate(encoded) if media[each.medium].id == id]
        named = {name: medium for name, medium in media.items() if medium.id == id}
        # Fillers are in no text: there they have taken the place already, in ids that were placed.
        fillers = [medium.filler for medium in named.values() if medium.filler is not None]
        at = np.flatnonzero(np.isin(tokens, [id, *fillers]))
        if len(at) != (needed := sum(each.tokens for _, each in own)):
            plural = " and ".join(WORDS[name][1] for name in named)
            token = next(iter(named.values())).token
            raise PictureError(
                f"the prompt has {len(at)} tokens {token!r}, and the {plural} that are given take"
                f" {needed}; give one placeholder for each, and no such token in the text"
            )
        taken = 0
        for i, each in own:
            held, filled = np.split(at[taken : taken + each.tokens], [each.tokens - each.filled])
            rows[held] = first[i] + np.arange(len(held))
            sent[held], sent[filled] = 0, media[each.medium].filler or 0
            height, width = each.merged
            if not each.filled:
                pieces += [Piece(one, height, width) for one in held.reshape(-1, height * width)]
            taken += each.tokens
    found = Places(sent, rows, rope_delta=rope_delta)
    further = kinds.get(processor.kind).positions
    return found if further is None else further(found, pieces, start, rope_delta)
