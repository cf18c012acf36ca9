"""Vocabularies of bytes by rank, as tiktoken has them: tiktoken.model, tekken.json, Grok 2's."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.tokenizers import parts

# Expressions that the libraries of both tokenizers, fancy-regex and Oniguruma, read alike: no
# class within a class, no count with a plus sign (possessive in one, a repetition in the other),
# no letter whose meaning they see differently (\w, \h, \R, the ends of lines).
CLASS = r"\\[rntsS]|\\[pP]\{[A-Z][a-z]?\}|\\[^\w\s]"
CLASSES = rf"\[\^?(?:{CLASS}|[^\[\]\\&~-])+\]"
GROUP = r"\((?:\?(?:i?:|!|=))?|\)|\|"
PIECE = rf"(?:{CLASS}|{CLASSES}|{GROUP}|[^\\\[\](){{}}?*+.^$|])"
COUNT = r"(?:[?*+]\+?|\{\d+(?:,\d*)?\})?(?![?*+{])"
PATTERN = re.compile(f"(?:{PIECE}{COUNT})+")


class Special(NamedTuple):
    """A token that no text is merged into."""

    content: str
    id: int
    special: bool = True  # decoding leaves it out
    matched: bool = True  # found where a text spells it


def require_pattern(pattern: object, shown: Path, key: str) -> str:
    """Return an expression that means the same here as where the tokenizer was made."""
    if not isinstance(pattern, str) or not PATTERN.fullmatch(pattern):
        raise CheckpointError(
            f"{shown}: {key} is {pattern!r:.200}, an expression that this library may read"
            " otherwise than tiktoken; add the tokenizer.json of the maker"
        )
    return pattern


def tokenizer(
    ranks: Sequence[bytes],
    first: int,
    special: Iterable[Special],
    pattern: str,
    around: tuple[parts.Named | None, parts.Named | None],
    shown: Path,
) -> parts.Part:
    """Return the tokenizer.json of tokens by rank, whose ids begin with `first`.

    around: the tokens before and after every text. Raises CheckpointError for a vocabulary with a
    token twice, or without all 256 bytes.
    """
    if max(map(len, ranks), default=0) > parts.LONGEST_TOKEN:
        raise CheckpointError(f"{shown}: has a token of over {parts.LONGEST_TOKEN} bytes")
    if sum(map(len, ranks)) > parts.MOST_CHARACTERS:
        raise CheckpointError(f"{shown}: has over {parts.MOST_CHARACTERS} bytes in all tokens")
    spelled = {byte: character for character, byte in parts.byte_alphabet().items()}
    names = ["".join([spelled[byte] for byte in token]) for token in ranks]
    vocab = {name: first + rank for rank, name in enumerate(names)}
    if len(vocab) < len(names) or "" in vocab:
        raise CheckpointError(f"{shown}: has an empty token, or one token twice")
    if missing := [byte for byte, name in spelled.items() if name not in vocab]:
        raise CheckpointError(
            f"{shown}: has no token for the byte {missing[0]}; without all 256 not every text has"
            " tokens"
        )
    merges = parts.merges_of(vocab, names)
    special = list(special)
    _add(vocab, special, shown)
    pre_tokenizer, decoder = parts.byte_level((pattern,))
    return parts.whole(
        parts.byte_pairs(vocab, merges, ignore_merges=True),
        [parts.added_token(t.id, t.content, special=t.special) for t in special if t.matched],
        pre_tokenizer=pre_tokenizer,
        post_processor=parts.around(*around),
        decoder=decoder,
    )


def _add(vocab: dict[str, int], special: Iterable[Special], shown: Path) -> None:
    """Add special tokens to a vocabulary; a name or an id twice is refused."""
    taken = set(vocab.values())
    for token in special:
        if token.content in vocab or token.id in taken or not token.content:
            raise CheckpointError(
                f"{shown}: the special token {token.content!r} with the id {token.id} has its name"
                " or its id twice, or is empty"
            )
        vocab[token.content] = token.id
        taken.add(token.id)
