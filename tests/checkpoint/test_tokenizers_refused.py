"""Tokenizers that cannot be converted are named; damaged files are one line."""

import base64
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from files.makers import (
    Files,
    as_json,
    changed_grok,
    changed_kimi,
    kimi,
    pieces,
    spoiled,
    tekken_json,
    trained,
    written,
)

from lmcast.exporter.checkpoint.texts import read_texts


def problem(tmp_path: Path, files: Files) -> str:
    """Why files give no tokenizer: one line, and no exception."""
    texts = read_texts(written(tmp_path, files))
    assert texts.tokenizer is None and texts.problem is not None
    assert texts.problem.isprintable()
    return texts.problem


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
    (b"\x0a\x03\x0a\x01\0", "has the piece '.x00'; accepted: pieces without a zero"),
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
    ("Llama 2", {"at": {"type": 6}}, "of a byte; accepted: <0x00> to <0xFF>"),
    ("BPE, no bytes", {"at": {"piece": "<0x41>", "type": 6}}, "'<0x41>' of a byte; accepted: none"),
    ("Llama 2", {"at": {"type": 2}}, "no unknown piece, several"),
    ("Llama 2", {"unk_id": 5}, "no unknown piece, several"),
    ("Llama 2", {"unk_id": 1 << 30}, "no unknown piece, several"),
    ("BPE, no bytes", {"byte_fallback": True}, "no piece <0x00>"),
    ("Llama 2", {"at": {"score": -1.0}}, "2 pieces of one score, -1.0"),
    ("Llama 2", {"at": {"piece": "x y", "type": 4}}, "without a space"),
    ("Llama 2", {"at": {"piece": "x" * 1025}}, "over 1024 characters"),
    ("Llama 2", {"at": {"piece": "xϠ"}}, "the piece 'xϠ', and none for its character 'Ϡ'"),
    ("Llama 2", {"at": {"score": float("nan")}}, "a score that is no number"),
    ("Unigram", {"at": {"piece": "▁Ϡ", "type": 3}}, "control symbol .▁Ϡ.; accepted: without ▁"),
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
SWAPPED = [
    {"rank": i, "token_bytes": base64.b64encode(bytes([i % 256 ^ 1])).decode(), "token_str": None}
    for i in range(999)
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
    ({"vocab": [{"rank": 0, "token_bytes": "AA=="}] * 999}, "in base64 and token_str alone"),
    ({"vocab": SWAPPED}, "has b'.x01' at the rank 0; accepted"),
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
UNREAD = ("vocab.json", "qwen.tiktoken", "spiece.model", "tokenizer.model.v3")
# Files are made when a test needs them: SentencePiece trains, tiktoken's ranks are trained.
PROBLEMS: list[tuple[Callable[[], Files], str]] = [
    *((partial(model_file, data), message) for data, message in DAMAGED),
    *((lambda name=name: {name: b""}, f"{name}: is of a tokenizer of a kind") for name in UNREAD),
    *(
        (lambda name=name, changed=changed: model_file(spoiled(name, **changed)), message)
        for name, changed, message in SPOILED
    ),
    *(
        (lambda config=config: model_file(trained("Llama 2"), config), message)
        for config, message in SETTINGS
    ),
    (
        lambda: pieces("Unigram, no bytes", legacy=False).files,
        "asks remove_extra_whitespaces, and tokenizer_config.json legacy false",
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
