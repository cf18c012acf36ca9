"""Tokenizers without tokenizer.json: ids and texts equal to those of their makers' libraries."""

import base64
import json
import random
import re
from collections.abc import Callable
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece
import tiktoken
from files.odd_texts import CODE, SCRIPTS, TEXTS, WORDS, with_tokens
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.texts import read_texts
from lmcast.exporter.runtime.text import byte_alphabet

CORPUS = [*SCRIPTS.values(), *CODE, *WORDS, "the quick brown fox jumps over the lazy dog " * 3]
# The expressions as the releases have them; those of the product are written otherwise.
KIMI = "|".join(
    [
        r"""[\p{Han}]+""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GROK = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Case(NamedTuple):
    """A checkpoint's files, and what the maker's library makes of a text."""

    files: dict[str, bytes]
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    control: dict[str, int]  # tokens that are found in texts
    before: tuple[int, ...] = ()  # what every text gets
    # A part of a text that follows a control token, where it is encoded otherwise than a whole one.
    encode_later: Callable[[str], list[int]] | None = None
    # SentencePiece adds scores in 32 bits: of paths with the same pieces in another order, whose
    # scores are the same, it takes the one whose sum was rounded up.
    any_order: bool = False
    # A model that makes one space of several: SentencePiece decodes none at the beginning, also
    # where a text had ▁ itself there, of which the library takes one away.
    squeezes: bool = False

    def ids(self, text: str) -> list[int]:
        """Ids as the makers' loaders build them: control tokens part a text."""
        longest_first = sorted(self.control, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        ids = list(self.before)
        for index, part in enumerate(parts):
            later = self.encode_later if index and self.encode_later else self.encode
            ids += [self.control[part]] if part in self.control else later(part) if part else []
        return ids


@cache
def ranks(pattern: str, size: int = 600, shuffled: bool = False) -> tuple[bytes, ...]:
    """Tokens by rank: all bytes, then merges of a corpus; shuffled: as no training orders them."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splits, level])
    alphabet = byte_alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=list(alphabet)
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokens = [bytes(alphabet[c] for c in token) for token in tokenizer.get_vocab()]
    merged = sorted((t for t in tokens if len(t) > 1), key=lambda t: (len(t), t))
    merged += [
        run * n for run in (b" ", b"\n", b"=", b"ab") for n in range(2, 20) if run * n not in merged
    ]
    if shuffled:
        random.Random(3).shuffle(merged)
    return (*(bytes([i]) for i in range(256)), *dict.fromkeys(merged))


def kimi(shuffled: bool) -> Case:
    tokens = ranks(KIMI, shuffled=shuffled)
    lines = [base64.b64encode(t) + b" %d" % rank for rank, t in enumerate(tokens)]
    base = len(tokens)
    named = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 11: "<think>", 254: "[UNK]"}
    config = {
        "tokenizer_class": "TikTokenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "added_tokens_decoder": {
            str(base + i): {"content": name, "special": i != 11, "lstrip": False}
            for i, name in named.items()
        },
    }
    special = {named.get(i, f"<|reserved_token_{base + i}|>"): base + i for i in range(256)}
    encoding = tiktoken.Encoding(
        "kimi",
        pat_str=KIMI,
        mergeable_ranks=dict(zip(tokens, range(base), strict=True)),
        special_tokens=special,
    )
    files = {"tiktoken.model": b"\n".join(lines), "tokenizer_config.json": as_json(config)}
    return Case(
        files, lambda text: encoding.encode(text, allowed_special="all"), encoding.decode, special
    )


def tekken_json(**changed: Any) -> dict[str, Any]:
    tokens = ranks(TEKKEN)
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<pad>", "[THINK]"]
    config = {
        "pattern": TEKKEN,
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": len(tokens) + 15,
        "default_num_special_tokens": 25,
        "version": "v11",
    }
    return {
        "config": config | {k: v for k, v in changed.items() if k in config},
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None}
            for i, t in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(special)
        ],
    } | {k: v for k, v in changed.items() if k not in config}


def tekken(tmp_path: Path, **changed: Any) -> Case:
    data = as_json(tekken_json(**changed))
    (tmp_path / "tekken.json").write_bytes(data)
    theirs = Tekkenizer.from_file(tmp_path / "tekken.json")
    control = {theirs.id_to_piece(i): i for i in range(theirs.num_special_tokens)}
    return Case(
        {"tekken.json": data},
        lambda text: theirs.encode(text, bos=False, eos=False),
        lambda ids: theirs.decode(ids, SpecialTokenPolicy.IGNORE),
        control,
        (theirs.bos_id,),
    )


def grok() -> Case:
    tokens, names = ranks(GROK), ["<|pad|>", "<|separator|>", "<|eos|>", "<|control7|>", "<|own|>"]
    special = {name: i for i, name in enumerate(names)}
    data = {
        "regular_tokens": [{"token": 5 + i, "bytes": list(t)} for i, t in enumerate(tokens)],
        "special_tokens": [{"token": i, "bytes": list(n.encode())} for n, i in special.items()],
        "word_split": "V1",
        "vocab_size": 5 + len(tokens),
    }
    ids = dict(zip(tokens, range(5, 5 + len(tokens)), strict=True))
    encoding = tiktoken.Encoding("grok", pat_str=GROK, mergeable_ranks=ids, special_tokens=special)
    allowed = set(names[:4])  # <|own|> is no token that SGLang lets a text spell
    return Case(
        {"tokenizer.tok.json": as_json(data)},
        lambda text: encoding.encode(text, allowed_special=allowed, disallowed_special=()),
        encoding.decode,
        {name: special[name] for name in allowed},
    )


OWN = ["<u>", "\n\n", "▁▁▁", "<|x|>", "ab<u>"]  # user-defined symbols
PIECES: dict[str, dict[str, Any]] = {
    "Llama 2": {"model_type": "bpe", "byte_fallback": True},
    "Gemma": {
        "model_type": "bpe",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "user_defined_symbols": OWN,
    },
    "BPE, prefix and symbols": {
        "model_type": "bpe",
        "byte_fallback": True,
        "user_defined_symbols": OWN,
    },
    "BPE, no bytes": {"model_type": "bpe", "remove_extra_whitespaces": True},
    "Unigram": {"model_type": "unigram", "byte_fallback": True},
    "Unigram, no bytes": {
        "model_type": "unigram",
        "remove_extra_whitespaces": True,
        "user_defined_symbols": OWN,
    },
}


@cache
def trained(name: str) -> bytes:
    out = BytesIO()
    options = {"remove_extra_whitespaces": False, "vocab_size": 900, **PIECES[name]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        normalization_rule_name="identity",
        character_coverage=0.98,
        hard_vocab_limit=False,
        control_symbols=["[INST]"],
        minloglevel=2,
        num_threads=1,
        **options,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())
    if name == "Llama 2":  # runs of spaces have one score
        known = {piece.piece for piece in model.pieces}
        for count in range(2, 17):
            if "▁" * count not in known:
                model.pieces.add(piece="▁" * count, score=-1e9)
    return bytes(model.SerializeToString())


def pieces(name: str, legacy: bool | None = None, listed: bool = False) -> Case:
    data = trained(name)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    model = sentencepiece_model_pb2.ModelProto.FromString(data)
    model.normalizer_spec.add_dummy_prefix = False
    bare = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    config: dict[str, Any] = (
        {} if legacy is None else {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    )
    if listed:
        config["added_tokens_decoder"] = {
            str(theirs.piece_to_id(symbol)): {"content": symbol, "normalized": False}
            for symbol in OWN
        }
    control = {theirs.id_to_piece(i): i for i in range(4)}
    later = bare.encode if legacy is False else None
    files = {"tokenizer.model": data, "tokenizer_config.json": as_json(config)}
    return Case(
        files,
        theirs.encode,
        theirs.decode,
        control,
        (1,),
        later,
        "Unigram" in name,
        "no bytes" in name,
    )


def as_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def written(folder: Path, files: dict[str, bytes]) -> Folder:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return Folder.at(folder)


CASES: dict[str, Callable[[Path], Case]] = {
    "Kimi": lambda _: kimi(shuffled=False),
    "Kimi, ranks as nothing trains them": lambda _: kimi(shuffled=True),
    "tekken": tekken,
    "tekken v3": lambda path: tekken(path, version="v3", special_tokens=None),
    "Grok 2": lambda _: grok(),
    **{name: lambda _, name=name: pieces(name) for name in PIECES},  # type: ignore[misc]
    "Gemma, symbols listed": lambda _: pieces("Gemma", listed=True),
    "Llama 2, not legacy": lambda _: pieces("Llama 2", legacy=False),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_and_texts_are_those_of_the_makers_library(tmp_path: Path, name: str) -> None:
    case = CASES[name](tmp_path)
    texts = read_texts(written(tmp_path / "checkpoint", case.files))
    assert texts.problem is None and texts.tokenizer is not None
    ours = Tokenizer.from_buffer(texts.tokenizer)
    differ, reordered = [], 0
    no_text = {0, *case.control.values()}
    odd = (*TEXTS, *with_tokens(*list(case.control)[:4], "<u>", "<|own|>"))
    for text in odd:
        ids, theirs = ours.encode(text).ids, case.ids(text)
        if case.any_order and ids != theirs and sorted(ids) == sorted(theirs):
            reordered += 1
        elif ids != theirs:
            differ.append((text[:60], theirs[:20], ids[:20]))
        elif no_text.isdisjoint(plain := ids[len(case.before) :]):
            texts_back = ours.decode(ids), case.decode(plain)
            if case.squeezes:
                texts_back = texts_back[0].lstrip(" "), texts_back[1].lstrip(" ")
            assert texts_back[0] == texts_back[1], text[:60]
    assert not differ, (len(differ), differ[:6])
    assert reordered <= len(odd) // 20


def problem(tmp_path: Path, files: dict[str, bytes]) -> str:
    """Why files give no tokenizer: one line, and no exception."""
    texts = read_texts(written(tmp_path, files))
    assert texts.tokenizer is None and texts.problem is not None
    assert texts.problem.isprintable()
    return texts.problem


def spoiled(name: str, **changed: Any) -> bytes:
    """A SentencePiece model with other settings, or another first normal piece."""
    model = sentencepiece_model_pb2.ModelProto.FromString(trained(name))
    for key, value in changed.items():
        for part in (model.trainer_spec, model.normalizer_spec):
            if key in part.DESCRIPTOR.fields_by_name:
                setattr(part, key, value)
    model.pieces[400].MergeFrom(
        sentencepiece_model_pb2.ModelProto.SentencePiece(**changed.get("at", {}))
    )
    return bytes(model.SerializeToString())


Files = dict[str, bytes]


def changed_kimi(
    config: dict[str, Any] | None = None, data: bytes | None = None
) -> dict[str, bytes]:
    files = kimi(shuffled=False).files
    settings = json.loads(files["tokenizer_config.json"]) | (config or {})
    return {
        "tiktoken.model": data if data is not None else files["tiktoken.model"],
        "tokenizer_config.json": as_json({k: v for k, v in settings.items() if v is not None}),
    }


def changed_grok(changed: dict[str, Any]) -> Files:
    return {"tokenizer.tok.json": as_json(json.loads(grok().files["tokenizer.tok.json"]) | changed)}


NO_MODEL = "is no model of SentencePiece: it has"


def model_file(data: bytes, config: bytes = b"{}") -> Files:
    return {"tokenizer.model": data, "tokenizer_config.json": config}


DAMAGED: list[tuple[bytes, str]] = [
    (b"", f"{NO_MODEL} no pieces; download it again"),
    (b"\x0a\xff\x01", f"{NO_MODEL} a field that ends beyond"),
    (b"\xff" * 20, f"{NO_MODEL} a number that does not end"),
    (b"\x0f", f"{NO_MODEL} a field of the kind 7"),
    (b"\x08\x01", f"{NO_MODEL} a number in place of a message"),
    (b"\x0a\x03\x0a\x01\xff", f"{NO_MODEL} a piece that cannot be read"),
    (b"\x0a\x03\x0a\x01a" * 2, "has the piece 'a' twice"),
    (b"IQ== 0\nIg== 1\n", "it is tiktoken's, which does not say"),
]
SPOILED: list[tuple[str, dict[str, Any], str]] = [
    ("Llama 2", {"model_type": 4}, "is of the kind 4; accepted: unigram"),
    (
        "Unigram",
        {"precompiled_charsmap": b"\0\0\0\0"},
        "a table of characters to normalize .as nmt_nfkc has.*; add a tokenizer.json",
    ),
    ("Llama 2", {"treat_whitespace_as_suffix": True}, "asks treat_whitespace_as_suffix"),
    ("Llama 2", {"escape_whitespaces": False}, "asks escape_whitespaces false"),
    ("Llama 2", {"at": {"type": 5}}, "as unused"),
    ("Llama 2", {"at": {"type": 2}}, "no unknown piece, several"),
    ("Llama 2", {"unk_id": 5}, "no unknown piece, several"),
    ("Llama 2", {"unk_id": 1 << 30}, "no unknown piece, several"),
    ("BPE, no bytes", {"byte_fallback": True}, "no piece <0x00>"),
    ("Llama 2", {"at": {"score": -1.0}}, "2 pieces of one score, -1.0"),
    ("Llama 2", {"at": {"piece": "x y", "type": 4}}, "without a space"),
    ("Llama 2", {"at": {"piece": "x" * 1025}}, "over 1024 characters"),
    ("Llama 2", {"at": {"score": float("nan")}}, "a score that is no number"),
    ("Unigram", {"at": {"score": 0.5}}, "no logarithms"),
    ("Unigram", {"at": {"piece": "<0"}}, "could spell <0x0A>"),
]
SETTINGS: list[tuple[bytes, str]] = [
    (
        b'{"tokenizer_class": "T5Tokenizer"}',
        "tokenizer_class is 'T5Tokenizer'; tokenizer.model is read for LlamaTokenizer",
    ),
    (b'{"add_bos_token": 1}', "add_bos_token is 1; accepted: true or false"),
    (
        b'{"add_eos_token": true, "eos_token": "<end>"}',
        "every text gets the eos_token, which is '<end>'",
    ),
]
BYTES = b"\n".join(base64.b64encode(bytes([i])) + b" %d" % i for i in range(256))
LISTED = "added_tokens_decoder"
KIMIS: list[tuple[dict[str, Any], bytes | None, str]] = [
    ({}, b"", "is empty"),
    ({}, b"!!! 0", "line 1 does not begin with base64"),
    ({}, b"IQ== 1", "line 1 has the rank '1'; accepted: the ranks in order, here 0"),
    ({}, b"IQ==", "line 1 has the rank ''"),
    ({LISTED: {"2": {"content": "x"}}}, b"IQ== 0\nIQ== 1", "one token twice"),
    ({}, BYTES.partition(b"\n")[2], "line 1 has the rank '1'"),
    ({LISTED: {}}, BYTES, "added_tokens_decoder is missing"),
    ({LISTED: {"1": {"content": "x"}}}, BYTES, "accepted: the ids 256 to 511"),
    ({LISTED: {"512": {"content": "x"}}}, BYTES, "accepted: the ids 256 to 511"),
    ({LISTED: {"256": {"content": "a"}}}, BYTES, "'a' with the id 256 has its name or"),
    ({LISTED: {"300": {"content": "<b>", "lstrip": True}}}, BYTES, "asks lstrip for '<b>'"),
    (
        {LISTED: {"300": {"content": "<b>"}}},
        BYTES.rpartition(b"\n")[0],
        "no token for the byte 255",
    ),
    ({"tokenizer_class": "QWenTokenizer"}, None, "is 'QWenTokenizer' .defined in"),
    ({"tokenizer_class": None}, None, "tokenizer_class is ''"),
    ({"auto_map": {"AutoTokenizer": ["x.TikTokenTokenizer", None]}}, None, "defined in 'x.Tik"),
]
TEKKENS: list[tuple[dict[str, Any], str]] = [
    ({"pattern": r"\w+|\s"}, "config.pattern is .*an expression that"),
    ({"pattern": r"[\p{L}&&[^a]]+"}, "an expression that this library may read otherwise"),
    ({"pattern": r"\p{N}{1,3}+|."}, "an expression that"),
    ({"pattern": None}, "config.pattern is None"),
    ({"pattern": "(a"}, "the tokenizers library refuses it"),
    ({"default_vocab_size": 20}, "without the special tokens is -5"),
    ({"default_vocab_size": 10**6}, "vocab has .* tokens; config.default_vocab_size"),
    ({"default_num_special_tokens": 3}, "has 8 special tokens"),
    ({"default_num_special_tokens": True}, "is True; accepted: a positive integer"),
    ({"version": "5"}, "config.version is '5'"),
    ({"special_tokens": None}, "special_tokens is None; accepted: a list"),
    ({"special_tokens": [{"rank": 1, "token_str": "x"}]}, "the ranks in order, here 0"),
    ({"vocab": [{"rank": 1, "token_bytes": "IQ=="}] * 999}, "the ranks in order, here 0, each"),
    ({"vocab": [{"rank": 0, "token_bytes": "!"}] * 999}, "the ranks in order, here 0, each"),
    ({"normalizer": "nfkc"}, "sets normalizer, which nothing reads"),
    ({"config": {"lower": True}}, "sets config.lower, which nothing reads"),
    ({"config": []}, r"config is \[\]; accepted: an object"),
]
GROKS: list[tuple[dict[str, Any], str]] = [
    ({"word_split": "V2"}, "word_split is 'V2'; accepted: V1"),
    ({"word_split": ["V1"]}, r"word_split is \['V1'\]"),
    ({"pat_str": "^a"}, "pat_str is '.a'"),
    ({"lower": True}, "sets lower, which nothing reads"),
    ({"default_allowed_special": 7}, "default_allowed_special is 7"),
    ({"regular_tokens": []}, r"regular_tokens is \[\]"),
    ({"regular_tokens": [{"token": 5, "bytes": [256]}]}, "numbers from 0 to 255"),
    ({"regular_tokens": [{"token": -5, "bytes": [25]}]}, "an id of its own"),
    ({"regular_tokens": [{"token": i, "bytes": [i]} for i in (5, 7)]}, "have gaps"),
    ({"special_tokens": [{"token": 5, "bytes": [65]}]}, "'A' with the id 5 has its name or"),
    ({"special_tokens": [{"token": 0, "bytes": [255]}]}, "is not UTF-8"),
]
# Files are made when a test needs them: SentencePiece trains, tiktoken's ranks are trained.
PROBLEMS: list[tuple[Callable[[], Files], str]] = [
    *((partial(model_file, data), message) for data, message in DAMAGED),
    *(
        (lambda name=name, changed=changed: model_file(spoiled(name, **changed)), message)
        for name, changed, message in SPOILED
    ),
    *(
        (lambda config=config: model_file(trained("Llama 2"), config), message)
        for config, message in SETTINGS
    ),
    *((partial(changed_kimi, config, data), message) for config, data, message in KIMIS),
    *(
        (lambda changed=changed: {"tekken.json": as_json(tekken_json(**changed))}, message)
        for changed, message in TEKKENS
    ),
    *((partial(changed_grok, changed), message) for changed, message in GROKS),
]


@pytest.mark.parametrize(("make", "message"), PROBLEMS, ids=[message for _, message in PROBLEMS])
def test_what_cannot_be_converted_is_named(
    tmp_path: Path, make: Callable[[], Files], message: str
) -> None:
    found = problem(tmp_path, make())
    assert re.search(message, found), found


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model", "tekken.json"])
def test_damaged_files_are_a_problem_or_read(tmp_path: Path, name: str) -> None:
    files = {
        "tokenizer.model": lambda: pieces("Gemma").files,
        "tiktoken.model": lambda: kimi(shuffled=False).files,
        "tekken.json": lambda: {"tekken.json": as_json(tekken_json())},
    }[name]()
    rng = random.Random(name)
    for index in range(25):
        data = bytearray(files[name])
        if index % 2:
            del data[rng.randrange(len(data)) :]
        for _ in range(index % 5):
            data[rng.randrange(len(data))] = rng.randrange(256)
        texts = read_texts(written(tmp_path, files | {name: bytes(data)}))
        assert (texts.tokenizer is None) == (texts.problem is not None)


AROUND: list[tuple[dict[str, Any], list[int], list[int]]] = [
    ({}, [1], []),
    ({"add_bos_token": False}, [], []),
    ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
    ({"add_eos_token": True, "eos_token": "[INST]"}, [1], [3]),
    ({"bos_token": {"content": "</s>"}}, [2], []),
]


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json"])
@pytest.mark.parametrize(("config", "before", "after"), AROUND)
def test_bos_and_eos_are_those_of_the_config(
    tmp_path: Path, name: str, config: dict[str, Any], before: list[int], after: list[int]
) -> None:
    data = trained("Llama 2") if name == "tokenizer.model" else as_json(tekken_json())
    texts = read_texts(written(tmp_path, {name: data, "tokenizer_config.json": as_json(config)}))
    assert texts.tokenizer is not None, texts.problem
    assert Tokenizer.from_buffer(texts.tokenizer).encode("").ids == before + after


def test_special_tokens_are_those_that_the_file_names(tmp_path: Path) -> None:
    files = {
        "tekken.json": as_json(tekken_json()),
        "tokenizer_config.json": b'{"eos_token": "[INST]"}',
    }
    assert read_texts(written(tmp_path, files)).special_tokens == {
        "bos_token": "<s>", "eos_token": "[INST]", "unk_token": "<unk>", "pad_token": "<pad>",
    }  # fmt: skip


def test_of_several_files_the_makers_choice_counts(tmp_path: Path) -> None:
    tokens = tekken_json()
    files = {"tekken.json": as_json(tokens), "tokenizer.model": trained("Llama 2")}
    theirs = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    size = tokens["config"]["default_vocab_size"]
    found = problem(tmp_path, files)
    assert f"tekken.json has {size} ids and tokenizer.model has {theirs.vocab_size()}" in found
    (tmp_path / "tokenizer.model").write_bytes(b"of another kind")
    assert read_texts(Folder.at(tmp_path)).special_tokens["pad_token"] == "<pad>"
    (tmp_path / "tokenizer.json").write_text(Tokenizer(models.BPE()).to_str())
    texts = read_texts(Folder.at(tmp_path))
    assert texts.tokenizer == (tmp_path / "tokenizer.json").read_bytes()
    assert texts.special_tokens == {}
