"""GGUF: the tokenizer rebuilt from metadata, the chat template and the special tokens."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import pytest
from files.gguf import HIDDEN, tiny_gguf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen2 import tokenization_qwen2
from transformers.models.qwen3_5 import tokenization_qwen3_5

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.gguf import open_gguf
from lmcast.exporter.checkpoint.gguf.pre_tokenizers import PRE
from lmcast.exporter.pipeline import understand

CORPUS = [
    "The quick brown fox jumps over the lazy dog; don't they'll I'VE it's 2024 and 1234567.",
    "def f(x):\n    return x ** 2  # comment\n\n\tif y:\r\n        pass\n",
    "naïve café — déjà vu… 日本語のテキスト, emoji 👩‍👧 ok; العربية हिन्दी e\u0301",
    "    spaces   in   runs     and\t\ttabs <b>html</b> {json: [1, 2.5e-3]}",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "hello",
    " hello",
    "  hello  ",
    "\n\n\n x",
    "12345 ²³ ⅷ ٣٤ 1,000.50",
    "WE'LL we'll we’ll",
    "\u00a0nbsp\u3000wide",
    "\x00\x7f",
    "<|end|>",
    "a<|end|>b <|tool|> c",
    "é vs e\u0301 HELLOworld Iñtërnâtiônàl \u1100\u1161 e\u0301E\u0301",
    "汉字漢字 ひらがなカタカナ한국어 汉a字 1汉2 \u3007",
    "a//b\n//\r\n ///x ~~~ --- ...?!\n\n\n  \t  y",
    "हिन्दी ภาษาไทย ქართული Ⅷ ½ 一二三 x² ǅ ʰ",
    "x" * 200,
]
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# As makers' tokenizer.json have them, each in one piece.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KIMI = (
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
TEKKEN = json.loads(
    (Path(mistral_common.__file__).parent / "data/tekken_240911.json").read_bytes()
)["config"]["pattern"]


def split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, level])


DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
NFC = normalizers.NFC()
# What the models' own tokenizer.json have: name in GGUF, pre-tokenizer, normalizer, ignore_merges.
FAMILIES = {
    "deepseek-v3": (split(*DEEPSEEK3), None, False),
    "dbrx": (split(LLAMA3), None, False),  # OLMo 2, Phi-4
    "glm4": (split(LLAMA3), None, True),
    "gpt-2": (GPT2, None, False),
    "gpt-4o": (split(GPT4O), None, False),
    "granite-docling": (GPT2, None, False),
    "kimi-k2": (split(KIMI), None, False),
    "llama-bpe": (split(LLAMA3), None, True),
    "llama4": (split(GPT4O), None, False),
    "minimax-m2": (split(GPT4O), NFC, False),
    "qwen2": (split(tokenization_qwen2.PRETOKENIZE_REGEX), NFC, False),
    "qwen35": (split(tokenization_qwen3_5.PRETOKENIZE_REGEX), NFC, False),
    "refact": (DIGITS, None, False),  # Granite 3
    "smaug-bpe": (split(LLAMA3), None, False),  # SmolLM3
    "smollm": (DIGITS, None, False),
    "starcoder": (DIGITS, None, False),
    "tekken": (split(TEKKEN), None, True),
}
# Of the same rows: other names of Llama 3's, and what llama.cpp does where a file says nothing.
OTHERS = {"llama3", "llama-v3", "default"}


def test_every_pre_tokenizer_has_a_family() -> None:
    assert set(PRE) == FAMILIES.keys() | OTHERS
    assert PRE["llama3"] == PRE["llama-v3"] == PRE["llama-bpe"]


def trained(pre: str) -> Tokenizer:
    """A byte-level tokenizer of one family, trained on CORPUS, with two added tokens."""
    splits, normalizer, ignore_merges = FAMILIES[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = splits
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|end|>"],
        ),
    )
    tokenizer.add_tokens(["<|tool|>"])
    return tokenizer


def byte_level(pre: str, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """The metadata that llama.cpp's converter writes for a byte-level tokenizer."""
    tokenizer = tokenizer or trained(pre)
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [{"<|end|>": 3, "<|tool|>": 4}.get(t, 1) for t in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def model(path: Path, general: dict[str, Any]) -> Path:
    rows = max(len(general.get("tokenizer.ggml.tokens") or ()), 1)
    embedding = (np.zeros((rows, HIDDEN), "f4"), "F32")
    return tiny_gguf(
        path, "llama", "F16", {"vocab_size": None}, general, token_embd__weight=embedding
    )


def rebuilt(tmp_path: Path, general: dict[str, Any]) -> Tokenizer:
    tokenizer = open_gguf(model(tmp_path / "a.gguf", general)).texts.tokenizer
    assert tokenizer is not None
    return Tokenizer.from_str(tokenizer.decode())


@pytest.mark.parametrize("pre", FAMILIES)
def test_byte_level_tokenizers_come_back(tmp_path: Path, pre: str) -> None:
    original = trained(pre)
    ours = rebuilt(tmp_path, byte_level(pre, original))
    for text in TEXTS:
        ids = original.encode(text).ids
        assert ours.encode(text).ids == ids, text
        assert ours.decode(ids) == original.decode(ids)
        pieces = original.pre_tokenizer.pre_tokenize_str(text)
        assert ours.pre_tokenizer.pre_tokenize_str(text) == pieces


def pieces() -> tuple[list[str], list[float], list[int]]:
    """A SentencePiece vocabulary: special, user-defined, bytes, pieces by falling score."""
    letters = sorted(set("▁" + "".join(CORPUS).replace(" ", "▁")) - set("\n日"))
    words = ["▁t", "he", "▁the", "qu", "ick", "▁qu", "▁quick", "ow", "ro", "row", "brow", "▁brown"]
    words += ["in", "an", "ic", "ck", "▁f", "ox", "▁fox", "em", "re", "ret", "er"]
    words = [*dict.fromkeys(words)]
    tokens = ["<pad>", "</s>", "<s>", "<unk>", "\n", "\n\n", "  x"]
    kinds = [3, 3, 3, 2, 4, 4, 4]
    scores = [-1000.0] * len(tokens)
    tokens += [f"<0x{i:02X}>" for i in range(256)]
    kinds += [6] * 256
    scores += [0.0] * 256
    for index, piece in enumerate([*words, *(x for x in letters if x not in words)]):
        tokens.append(piece)
        kinds.append(1)
        scores.append(-float(index))
    for count in range(2, 17):  # as in Llama 2: the leftmost run grows
        if "▁" * count not in tokens:
            tokens.append("▁" * count)
            kinds.append(1)
            scores.append(-1e9)
    return tokens, scores, kinds


def sentence_piece_ids(text: str, prefix: bool) -> list[int]:
    """The SentencePiece BPE algorithm itself: join the best scored pair until none is left."""
    tokens, scores, kinds = pieces()
    ids = {token: index for index, token in enumerate(tokens)}
    own = [t for t, k in zip(tokens, kinds, strict=True) if k in (3, 4)]
    mergeable = {t for t, k in zip(tokens, kinds, strict=True) if k == 1}
    out: list[int] = []
    rest = text
    while rest:
        starts = [rest.find(t) for t in own]
        first = min((at for at in starts if at >= 0), default=len(rest))
        plain, rest = rest[:first], rest[first:]
        symbols = list((("▁" if prefix else "") + plain.replace(" ", "▁")) if plain else "")
        while True:
            pairs = [
                (-scores[ids[a + b]], at)
                for at, (a, b) in enumerate(pairwise(symbols))
                if a + b in mergeable
            ]
            if not pairs:
                break
            _, at = min(pairs)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        for symbol in symbols:
            byte_ids = [ids[f"<0x{b:02X}>"] for b in symbol.encode()]
            out += [ids[symbol]] if symbol in mergeable else byte_ids
        if rest:
            best = max((t for t in own if rest.startswith(t)), key=len)
            out.append(ids[best])
            rest = rest[len(best) :]
    return out


def sentence_piece(**extra: Any) -> dict[str, Any]:
    tokens, scores, kinds = pieces()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        **{f"tokenizer.ggml.{name}": value for name, value in extra.items()},
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_tokenizers_come_back(tmp_path: Path, prefix: bool) -> None:
    ours = rebuilt(tmp_path, sentence_piece(add_space_prefix=prefix, add_bos_token=False))
    for text in [
        *TEXTS,
        "   x\n\n\ny</s>z",
        "日本\n本",
        "the     brown fox",
        "  xx",
        "a" + " " * 19 + "b",
    ]:
        ids = ours.encode(text).ids
        assert ids == sentence_piece_ids(text, prefix), text
        if not prefix and "<" not in text:
            assert ours.decode(ids) == text


@pytest.mark.parametrize(
    ("general", "single", "pair"),
    [
        (byte_level("gpt-2"), [], []),
        (byte_level("gpt-2") | {"tokenizer.ggml.add_bos_token": True}, [0], [0, 0]),
        (byte_level("llama-bpe") | {"tokenizer.ggml.add_bos_token": None}, [0], [0, 0]),
        (byte_level("tekken") | {"tokenizer.ggml.add_bos_token": None}, [0], [0, 0]),
        (byte_level("gpt-4o") | {"tokenizer.ggml.add_bos_token": None}, [], []),
        (sentence_piece(), [2], [2, 2]),
        (sentence_piece(add_eos_token=True), [2, 1], [2, 1, 2, 1]),
        (sentence_piece(add_bos_token=False), [], []),
    ],
)
def test_bos_and_eos_are_added(
    tmp_path: Path, general: dict[str, Any], single: list[int], pair: list[int]
) -> None:
    ours = rebuilt(tmp_path, general)
    assert ours.encode("").ids == single
    assert ours.encode("", "").ids == pair


def test_template_and_special_tokens(tmp_path: Path) -> None:
    general = sentence_piece(padding_token_id=0, eot_token_id=4, eom_token_id=1)
    general["tokenizer.chat_template"] = "{{ bos_token }}{{ messages }}"
    general["tokenizer.chat_template.tool_use"] = "{{ tools }}"
    general["tokenizer.chat_templates"] = ["tool_use"]
    checkpoint = open_gguf(model(tmp_path / "a.gguf", general))
    texts = checkpoint.texts
    assert texts.chat_templates == {
        "default": "{{ bos_token }}{{ messages }}",
        "tool_use": "{{ tools }}",
    }
    assert texts.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    ids = {"bos_token_id": 2, "eos_token_id": [1, 4], "pad_token_id": 0}
    assert texts.generation == ids
    assert {key: checkpoint.config[key] for key in ids} == ids


@pytest.mark.parametrize("general", [{}, {"tokenizer.ggml.model": "none"}])
def test_a_file_may_have_no_tokenizer(tmp_path: Path, general: dict[str, Any]) -> None:
    texts = open_gguf(model(tmp_path / "a.gguf", general)).texts
    assert (texts.tokenizer, texts.chat_templates, texts.generation) == (None, {}, {})


GGML = "tokenizer.ggml."
REFUSED = [
    ({f"{GGML}model": "bert"}, "tokenizer.ggml.model is 'bert'"),
    ({f"{GGML}model": 7}, "accepted: a string"),
    ({f"{GGML}pre": "pixtral"}, "tokenizer.ggml.pre is 'pixtral'"),
    ({f"{GGML}pre": None}, "tokenizer.ggml.pre is missing"),
    ({f"{GGML}tokens": None}, "tokenizer.ggml.tokens is missing"),
    ({f"{GGML}tokens": [1, 2]}, "holds other things than str"),
    ({f"{GGML}token_type": [1, 1]}, "token_type has 2 items"),
    ({f"{GGML}token_type": [1] * 449 + [7]}, "token_type has 7; accepted: 1 to 6"),
    ({f"{GGML}merges": None}, "tokenizer.ggml.merges is missing"),
    ({f"{GGML}merges": ["a bcdefg"]}, "has 'a bcdefg'"),
    ({f"{GGML}merges": ["ab"]}, "not of two tokens"),
    ({f"{GGML}bos_token_id": None, f"{GGML}add_bos_token": True}, "bos_token_id is missing"),
    ({f"{GGML}add_bos_token": 1}, "true or false"),
    ({f"{GGML}remove_extra_whitespaces": True}, "which nothing reads"),
    ({f"{GGML}precompiled_charsmap": [1, 2, 3]}, "which nothing reads"),
    ({f"{GGML}model": "llama"}, "tokenizer.ggml.scores is missing"),
    ({f"{GGML}model": "llama", f"{GGML}scores": [0.5]}, "scores has 1 items"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_tokenizers_that_cannot_be_rebuilt(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    checkpoint = open_gguf(model(tmp_path / "a.gguf", byte_level("gpt-2") | changed))
    assert checkpoint.texts.tokenizer is None
    assert re.search(message, checkpoint.texts.problem)
    with pytest.raises(CheckpointError, match=f"{message}.*or pass --no-tokenizer"):
        understand(checkpoint, (), tokenizer=True)
    assert understand(checkpoint, (), tokenizer=False).parameters > 0


def test_what_is_read_without_a_tokenizer_is_refused_at_once(tmp_path: Path) -> None:
    for changed, message in (
        ({f"{GGML}eos_token_id": 1 << 20}, "eos_token_id is 1048576"),
        ({"tokenizer.chat_template": 3}, "accepted: a string"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_gguf(model(tmp_path / "a.gguf", byte_level("gpt-2") | changed))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["a", "b", "a"], "'a' twice"),
        (["a", ""], "empty token"),
        (["x" * 2000], "1024 characters"),
        (["a"] * 0, "tokenizer.ggml.tokens"),
    ],
)
def test_vocabularies_that_are_refused(tmp_path: Path, tokens: list[str], message: str) -> None:
    general = byte_level("gpt-2") | {f"{GGML}tokens": tokens, f"{GGML}token_type": None}
    problem = open_gguf(model(tmp_path / "a.gguf", general)).texts.problem
    assert re.search(message, problem)


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", general=byte_level("gpt-2"))
    assert "the model has 40 embeddings" in open_gguf(path).texts.problem
