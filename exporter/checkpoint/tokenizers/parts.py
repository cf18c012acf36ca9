"""tokenizer.json, written part by part.

It is written directly: its format is small, building it through the `tokenizers` library takes
seconds for a large vocabulary, and the library panics on some damaged input.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

Part = dict[str, Any]

SPACE = "▁"  # how SentencePiece writes a space
LONGEST_TOKEN = 1024  # characters or bytes; a real one may be a long run of spaces
MOST_CHARACTERS = 1 << 23  # of all tokens; Gemma has 2 million

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


class Kind(IntEnum):
    """What a piece of SentencePiece is, and tokenizer.ggml.token_type of GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Named(NamedTuple):
    """A token with a part to play, as the beginning of a text."""

    content: str
    id: int


def whole(
    model: Part,
    added: Iterable[Part] = (),
    *,
    normalizer: Part | None = None,
    pre_tokenizer: Part | None = None,
    post_processor: Part | None = None,
    decoder: Part | None = None,
) -> Part:
    """Return the contents of a tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def added_token(id: int, content: str, *, special: bool, normalized: bool = False) -> Part:
    """Return a token that is found in a text before all else; normalized: in what the normalizer
    has made of it."""
    return {
        "id": id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }


def sequence(kind: str, steps: Sequence[Part]) -> Part | None:
    """Return steps one after the other; kind: "normalizers", "pretokenizers" or "decoders"."""
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", kind: list(steps)}


def byte_pairs(vocab: Mapping[str, int], merges: list[tuple[str, str]], **options: Any) -> Part:
    """Return a model of byte pair encoding: tokens by id, and the merges from the first on."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": vocab,
        "merges": merges,
    }


def merges_of(pieces: Mapping[str, int], best_first: Iterable[str]) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, those of the best piece first.

    SentencePiece and tiktoken join the pair whose whole is best, the leftmost where several are.
    All that happens within a piece before it is whole happens there alone: so of its pairs one
    only, whatever stands around it, is ever joined, and their order means nothing.
    """
    merges = []
    for piece in best_first:
        pairs = [
            (piece[:at], piece[at:])
            for at in range(1, len(piece))
            if piece[:at] in pieces and piece[at:] in pieces
        ]
        if len(pairs) > 1:
            pairs.sort(key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
        merges += pairs
    return merges


def scored_merges(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges of SentencePiece's pieces by id, whose scores say which is best.

    Runs of spaces have one score in Llama 2 and Mistral 7B: the leftmost pair grows first, to the
    longest run there is, as it does when longer pieces come before shorter ones.
    """
    return merges_of(
        pieces,
        sorted(pieces, key=lambda piece: (-scores[pieces[piece]], -len(piece), pieces[piece])),
    )


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def byte_level(patterns: Iterable[str]) -> tuple[Part, Part]:
    """Return the pre-tokenizer that splits by expressions, one after the other, and spells bytes as
    characters; and its decoder."""
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    splits = [split({"Regex": pattern}) for pattern in patterns]
    return {"type": "Sequence", "pretokenizers": [*splits, level]}, level


def split(pattern: Part, behavior: str = "Isolated") -> Part:
    """Return the pre-tokenizer that parts a text at a pattern, which becomes a part itself."""
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def replace(pattern: Part, content: str) -> Part:
    """Return the normalizer, or decoder, that replaces a pattern."""
    return {"type": "Replace", "pattern": pattern, "content": content}


ESCAPE = replace({"String": " "}, SPACE)
PREPEND = {"type": "Prepend", "prepend": SPACE}


def piece_decoder(prefix: bool, kinds: Collection[int]) -> Part:
    """Return the decoder of SentencePiece's pieces.

    prefix: a text began with a space too many. kinds: of the pieces; <0x41> is a byte only where
    bytes are among them.
    """
    of_bytes: list[Part] = [{"type": "ByteFallback"}] if Kind.BYTE in kinds else []
    steps = [replace({"String": SPACE}, " "), *of_bytes, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {"type": "Sequence", "decoders": [*steps, strip] if prefix else steps}


def around(bos: Named | None, eos: Named | None) -> Part | None:
    """Return the step that puts tokens around a text, None where there are none."""
    special = {
        token.content: {"id": token.content, "ids": [token.id], "tokens": [token.content]}
        for token in (bos, eos)
        if token is not None
    }
    if not special:
        return None

    def text(letter: str, kind: int) -> list[Part]:
        before, after = (
            [] if token is None else [{"SpecialToken": {"id": token.content, "type_id": kind}}]
            for token in (bos, eos)
        )
        return [*before, {"Sequence": {"id": letter, "type_id": kind}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": special,
    }
