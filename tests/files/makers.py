"""Checkpoints' tokenizers in the files of their makers, and what the makers' libraries make of a
text: tiktoken, mistral-common, SentencePiece. All are small, and made when they are asked for."""

import base64
import json
import random
import re
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import tiktoken
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from files.odd_texts import CODE, SCRIPTS, WORDS
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.tokenizers.parts import byte_alphabet

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


Files = dict[str, bytes]


class Case(NamedTuple):
    """A checkpoint's files, and what the maker's library makes of a text."""

    files: Files
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
    merged.append(b"zqxzqx")  # which no merges make: only a whole word of a text is it
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
    if name == "BPE, prefix and symbols":  # of a text that spells a byte
        for piece, score in (("<0", -1e6), ("x4", -2e6), ("<0x4", -3e6), ("2>", -4e6)):
            model.pieces.add(piece=piece, score=score)
    if name == "Unigram, no bytes":  # ⱥ is no piece alone: what an unknown one costs decides
        for piece, score in (("ⱥⱦ", -9), ("ⱨ", -6), ("ⱦⱨ", -1), ("<0x41>", -1)):
            model.pieces.add(piece=piece, score=score)
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


def written(folder: Path, files: Files) -> Folder:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return Folder.at(folder)


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
