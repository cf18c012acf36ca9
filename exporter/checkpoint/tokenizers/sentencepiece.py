"""tokenizer.model: SentencePiece's BPE and Unigram (Llama 2, Mistral 7B, Gemma).

A text is normalized as a whole: spaces become ▁, one is put before it. The library for which this
is written parts it at added tokens first. Control symbols are such, as in every loader of these
models, where SentencePiece alone never finds them in a text. User-defined symbols are parted from
the normalized text, as SentencePiece does; those that tokenizer_config.json lists become added
tokens later, as in transformers.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lmcast.exporter.checkpoint.tokenizers import parts
from lmcast.exporter.checkpoint.tokenizers.given import INSTEAD, Converted, Given
from lmcast.exporter.checkpoint.tokenizers.parts import ESCAPE, PREPEND, SPACE, Kind, Part
from lmcast.exporter.checkpoint.tokenizers.protobuf import DamagedError, fields

UNIGRAM, BPE = 1, 2
PIECE = 1  # the number of the field that holds one, many times
# The classes of transformers whose tokenizers are the file's own, with a BOS; "": none is named,
# as beside Meta's and Mistral's own releases.
CLASSES: dict[str, tuple[str, ...]] = {
    "": (),
    "LlamaTokenizer": (),
    "LlamaTokenizerFast": (),
    "GemmaTokenizer": (),
    "GemmaTokenizerFast": (),
}
ROLES = ("unk", "bos", "eos", "pad")  # in the order of their numbers, from UNK_ID on
UNK_ID = 40
LONGEST_SYMBOL = 256  # characters, of which each is a level of an expression
UNKNOWN_PENALTY = 10  # of both libraries: an unknown character scores so much less than the worst
# What a user-defined symbol scores in SentencePiece: meant as 0.1 less than the best piece for each
# of its bytes, but the best of its scores is never below C++'s FLT_MIN, which is above 0.
SYMBOL_SCORE = -0.1
# Scores are written times 2 to this power: numbers of 24 bits become integers.
MOST_BITS = 32
# Text that spells a piece of a byte, which the library would take for that byte.
SPELLED_BYTE = "<(?=0x[0-9A-F]{2}>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass
class Model:
    """What a tokenizer.model says, with the defaults of its format."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    algorithm: int = UNIGRAM
    suffix: bool = False  # the space that is put before a text is put behind it
    byte_fallback: bool = False
    roles: dict[str, int] = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2, "pad": -1})
    charsmap: bool = False
    prefix: bool = True
    squeeze: bool = True  # runs of spaces become one, those around a text none
    escape: bool = True
    denormalized: bool = False

    def named(self) -> dict[str, str]:
        """Return the tokens of roles, by transformers' names of the roles."""
        return {
            f"{role}_token": self.pieces[id]
            for role, id in self.roles.items()
            if 0 <= id < len(self.pieces)
        }

    def of(self, *kinds: Kind) -> list[int]:
        return [id for id, kind in enumerate(self.kinds) if kind in kinds]


def convert(given: Given) -> Converted:
    """Return the tokenizer.json of a tokenizer.model; raises CheckpointError."""
    given.require_class(CLASSES, "another class may number or mark tokens otherwise")
    model = read(given)
    _require_representable(model, given)
    own = model.named()
    ids = {piece: id for id, piece in enumerate(model.pieces)}
    symbols = [model.pieces[id] for id in model.of(Kind.USER_DEFINED)]
    apart = bool(symbols) and model.algorithm == BPE  # those of Unigram are pieces like others
    first_only = model.prefix and not given.flag("legacy", True)
    if first_only and model.squeeze:  # it no longer knows where a text began with spaces
        raise given.error(
            "asks remove_extra_whitespaces, and tokenizer_config.json legacy false, which the"
            f" tokenizers library cannot do both; {INSTEAD}"
        )
    normalizers, steps = _spaces(model, first_only)
    if apart:
        steps.append(parts.split({"Regex": _any_of(symbols)}))
    if model.byte_fallback and (apart or model.algorithm == UNIGRAM):
        steps.append(_spelled_bytes(model, given))
    content = parts.whole(
        _byte_pairs(model, given, apart) if model.algorithm == BPE else _unigram(model, given),
        _added(model),
        normalizer=parts.sequence("normalizers", normalizers),
        pre_tokenizer=parts.sequence("pretokenizers", steps),
        post_processor=parts.around(*given.around(own, ids, bos=True)),
        decoder=parts.piece_decoder(model.prefix, model.kinds),
    )
    return Converted(content, given.shown, own)


def _added(model: Model) -> list[Part]:
    """Return the tokens that a text is parted at before all else."""
    ids = model.of(Kind.UNKNOWN, Kind.CONTROL)
    return [parts.added_token(id, model.pieces[id], special=True) for id in ids]


def read(given: Given) -> Model:
    """Return what the file says; raises CheckpointError for one that is damaged."""
    model = Model()
    try:
        for number, value in fields(memoryview(given.data)):
            if number == PIECE:
                _read_piece(model, _message(value))
            elif number == 2:
                _read_trainer(model, _message(value))
            elif number == 3:
                _read_normalizer(model, _message(value))
            elif number == 5:
                model.denormalized = any(
                    n == 2 and len(_message(v)) for n, v in fields(_message(value))
                )
    except (DamagedError, ValueError, struct.error) as error:
        what = error if isinstance(error, DamagedError) else "a piece that cannot be read"
        raise given.error(
            f"is no model of SentencePiece: it has {what}; {_otherwise(given)}"
        ) from None
    if not model.pieces:
        raise given.error(f"is no model of SentencePiece: it has no pieces; {_otherwise(given)}")
    if sum(map(len, model.pieces)) > parts.MOST_CHARACTERS:
        raise given.error(f"has over {parts.MOST_CHARACTERS} characters in all pieces")
    if max(map(len, model.pieces)) > parts.LONGEST_TOKEN:
        raise given.error(f"has a piece of over {parts.LONGEST_TOKEN} characters")
    if not all(map(math.isfinite, model.scores)):
        raise given.error("has a score that is no number")
    if nul := next((piece for piece in model.pieces if "\0" in piece), None):
        raise given.error(f"has the piece {nul!r:.80}; accepted: pieces without a zero")
    twice, count = Counter(["", *model.pieces]).most_common(1)[0]
    if count > 1:
        raise given.error(f"has the piece {twice!r} twice, or an empty one")
    return model


def _otherwise(given: Given) -> str:
    """tiktoken's files are called so too: lines of base64 and ranks."""
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", given.data):
        return f"it is tiktoken's, which does not say how texts are split; {INSTEAD}"
    return "download it again"


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise DamagedError("a number in place of a message")
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise DamagedError("a message in place of a number")
    return value - (1 << 64) if value >> 63 else value


def _read_piece(model: Model, message: memoryview) -> None:
    piece, score, kind = "", 0.0, Kind.NORMAL
    for number, value in fields(message):
        if number == 1:
            piece = bytes(_message(value)).decode()
        elif number == 2:
            (score,) = struct.unpack("<f", _message(value))
        elif number == 3:
            kind = Kind(_number(value))
    model.pieces.append(piece)
    model.scores.append(score)
    model.kinds.append(kind)


def _read_trainer(model: Model, message: memoryview) -> None:
    for number, value in fields(message):
        if number == 3:
            model.algorithm = _number(value)
        elif number == 24:
            model.suffix = bool(_number(value))
        elif number == 35:
            model.byte_fallback = bool(_number(value))
        elif UNK_ID <= number < UNK_ID + len(ROLES):
            model.roles[ROLES[number - UNK_ID]] = _number(value)


def _read_normalizer(model: Model, message: memoryview) -> None:
    for number, value in fields(message):
        if number == 2:
            model.charsmap = len(_message(value)) > 0
        elif number == 3:
            model.prefix = bool(_number(value))
        elif number == 4:
            model.squeeze = bool(_number(value))
        elif number == 5:
            model.escape = bool(_number(value))


def _require_representable(model: Model, given: Given) -> None:
    """Refuse what the library cannot do, or does otherwise than SentencePiece."""
    if model.algorithm not in (UNIGRAM, BPE):
        raise given.error(f"is of the kind {model.algorithm}; accepted: unigram (1), bpe (2)")
    if model.charsmap or model.denormalized:
        raise given.error(
            "has a table of characters to normalize (as nmt_nfkc has), which the tokenizers library"
            f" applies otherwise than SentencePiece; {INSTEAD}"
        )
    if model.suffix or not model.escape:
        option = "treat_whitespace_as_suffix" if model.suffix else "escape_whitespaces false"
        raise given.error(f"asks {option}, which the tokenizers library cannot do; {INSTEAD}")
    if unused := model.of(Kind.UNUSED):
        raise given.error(
            f"has the piece {model.pieces[unused[0]]!r} as unused, which SentencePiece parts again"
            f" and the tokenizers library cannot; {INSTEAD}"
        )
    if model.of(Kind.UNKNOWN) != [model.roles["unk"]]:
        raise given.error("has no unknown piece, several, or another than its settings say")
    for id in model.of(Kind.UNKNOWN, Kind.CONTROL):
        if SPACE in (piece := model.pieces[id]):  # not seen when a text is parted, but by the model
            raise given.error(f"has the control symbol {piece!r:.80}; accepted: without {SPACE}")
    for id in model.of(Kind.USER_DEFINED):
        if " " in model.pieces[id] or len(model.pieces[id]) > LONGEST_SYMBOL:
            raise given.error(
                f"has the user-defined symbol {model.pieces[id]!r:.80}; accepted: without a space,"
                f" which no text has by then, of up to {LONGEST_SYMBOL} characters"
            )
    bytes_ = {model.pieces[id] for id in model.of(Kind.BYTE)}
    if missing := set(BYTES) - bytes_ if model.byte_fallback else set():
        raise given.error(f"falls back to bytes and has no piece {min(missing)}")
    if strange := bytes_ - set(BYTES) if model.byte_fallback else bytes_:
        accepted = "<0x00> to <0xFF>" if model.byte_fallback else "none without byte_fallback"
        raise given.error(f"has the piece {min(strange)!r:.80} of a byte; accepted: {accepted}")


def _spaces(model: Model, first_only: bool) -> tuple[list[Part], list[Part]]:
    """Return the steps that make ▁ of spaces: normalizers, and pre-tokenizers.

    first_only: only the beginning of the whole text gets a space, not what follows a control
    symbol. The library knows where a text begins in one pre-tokenizer, which puts its mark only
    where there is none; a mark that no text has any more when it gets there, a space, always.
    """
    if first_only:
        marks = [(" ", "first"), (SPACE, "never")]
        return [ESCAPE], [
            {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme, "split": False}
            for mark, scheme in marks
        ]
    before: list[Part] = []
    after: list[Part] = []
    if model.squeeze:
        before = [parts.replace({"Regex": r"\A +"}, ""), parts.replace({"Regex": " {2,}"}, " ")]
        after = [parts.replace({"Regex": f"{SPACE}+\\z"}, "")]
    return [*before, *([PREPEND] if model.prefix else []), ESCAPE, *after], []


def _any_of(symbols: Iterable[str]) -> str:
    """Return the expression that finds the longest of symbols, by their common beginnings: where
    Gemma 3 has six thousand, one after the other would take as long as a text's model."""
    tree: dict[str, Any] = {}
    for symbol in symbols:
        node = tree
        for character in symbol:
            node = node.setdefault(character, {})
        node[""] = {}
    return _expression(tree)


def _expression(node: Mapping[str, Any]) -> str:
    branches = [
        re.sub(r"([\\.*?+^$|()\[\]{}])", r"\\\1", character) + _expression(rest)
        for character, rest in node.items()
        if character
    ]
    ends = "" in node and bool(branches)
    joined = "|".join(branches)
    return f"(?:{joined}){'?' if ends else ''}" if ends or len(branches) > 1 else joined


def _spelled_bytes(model: Model, given: Given) -> Part:
    """Return the step that parts <0x0A> in a text behind its first character.

    BPE takes only a whole word for a piece, here a text between symbols; it is parted behind the
    first piece that merges make of it. In Unigram pieces are everywhere, so none may lie across
    that place.
    """
    if model.algorithm == BPE:
        scores = {model.pieces[id]: model.scores[id] for id in model.of(Kind.NORMAL)}
        longer: dict[str, list[str]] = {}
        for text in BYTES:
            if len(first := _first_piece(text, scores)) > 1:
                longer.setdefault(first, []).append(text.removeprefix(first))
        found = [rf"\A{first}(?=(?:{'|'.join(rest)})\z)" for first, rest in longer.items()]
        found.append(rf"\A{SPELLED_BYTE}\z)")
        return parts.split({"Regex": "|".join(found)}, "MergedWithPrevious")
    for id in model.of(Kind.NORMAL, Kind.USER_DEFINED):
        if "<0" in model.pieces[id]:
            raise given.error(
                f"has the piece {model.pieces[id]!r}, with which a text could spell <0x0A>;"
                f" {INSTEAD}"
            )
    return parts.split({"Regex": f"{SPELLED_BYTE})"}, "MergedWithPrevious")


def _first_piece(text: str, scores: Mapping[str, float]) -> str:
    """Return the first of the pieces that BPE makes of a short text; scores: of normal pieces."""
    made = list(text)
    while pairs := [
        (-scores[left + right], at)
        for at, (left, right) in enumerate(pairwise(made))
        if left + right in scores
    ]:
        at = min(pairs)[1]
        made[at : at + 2] = [made[at] + made[at + 1]]
    return made[0]


def _byte_pairs(model: Model, given: Given, apart: bool) -> Part:
    """apart: user-defined symbols come as words of their own, found in the vocabulary as such."""
    vocab = {piece: id for id, piece in enumerate(model.pieces)}
    pieces = {model.pieces[id]: id for id in model.of(Kind.NORMAL)}
    _require_characters(pieces, vocab, given)
    merges = parts.scored_merges(pieces, model.scores)
    _require_order({left + right for left, right in merges}, pieces, model, given)
    return parts.byte_pairs(
        vocab,
        merges,
        unk_token=model.pieces[model.roles["unk"]],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=apart,
    )


def _require_characters(pieces: Iterable[str], vocab: Mapping[str, int], given: Given) -> None:
    """Refuse a piece of a character that is none itself: SentencePiece merges characters, and the
    tokenizers library pieces."""
    for piece in pieces:
        if lost := next((c for c in piece if c not in vocab), None):
            raise given.error(
                f"has the piece {piece!r}, and none for its character {lost!r}: the tokenizers"
                f" library does not make it; {INSTEAD}"
            )


def _require_order(
    made: Iterable[str], pieces: Mapping[str, int], model: Model, given: Given
) -> None:
    """Refuse pieces of one score, of which SentencePiece makes the leftmost in a text; but runs of
    one character, which cannot overlap with others."""
    groups: dict[float, list[str]] = {}
    for piece in made:
        groups.setdefault(model.scores[pieces[piece]], []).append(piece)
    for score, group in groups.items():
        if len(group) > 1 and any(len(set(piece)) > 1 for piece in group):
            raise given.error(
                f"has {len(group)} pieces of one score, {score} ({min(group)!r} ...): which of them"
                " SentencePiece makes depends on where they stand in a text, and in the tokenizers"
                f" library it cannot; {INSTEAD}"
            )


def _unigram(model: Model, given: Given) -> Part:
    """Scores are written as integers, whose sums are exact: of paths that score alike both
    libraries then take the one whose last piece is the longest."""
    normal = [model.scores[id] for id in model.of(Kind.NORMAL)]
    if not normal or max(normal) >= 0:
        raise given.error(f"has scores that are no logarithms of probabilities; {INSTEAD}")
    whole = 2.0 ** max(_fraction_bits(score) for score in normal)
    unknown = (min(normal) - UNKNOWN_PENALTY) * whole
    other = {
        Kind.UNKNOWN: unknown + UNKNOWN_PENALTY,  # the lowest score, from which the library starts
        Kind.USER_DEFINED: SYMBOL_SCORE * whole,
        Kind.CONTROL: 0.0,
        Kind.BYTE: 0.0,
    }
    return {
        "type": "Unigram",
        "unk_id": model.roles["unk"],
        "byte_fallback": model.byte_fallback,
        "vocab": [
            [piece, float(round(score * whole if kind == Kind.NORMAL else other[kind]))]
            for piece, score, kind in zip(model.pieces, model.scores, model.kinds, strict=True)
        ],
    }


def _fraction_bits(score: float) -> int:
    """Return how many times a score is to be doubled until it is an integer, up to MOST_BITS."""
    denominator = score.as_integer_ratio()[1]
    return min(denominator.bit_length() - 1, MOST_BITS)
