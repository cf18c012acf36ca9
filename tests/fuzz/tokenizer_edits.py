"""Edits of tokenizers that leave their files whole, in the formats of all makers."""

import base64
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from fuzz.edits import ODD, Edit, json_of, put_json

ROWS = 1500  # of the model: a few hundred more than any of the tokenizers has ids
Change = Callable[[Any, random.Random], None]


def of_value(name: str, about: str, change: Change) -> Callable[[Path, random.Random], Edit]:
    """Return what draws an edit of a JSON file that stays whole."""

    def drawn(folder: Path, chance: random.Random) -> Edit:
        seed = chance.random()

        def changed(path: Path) -> None:
            value = json_of(path)
            change(value, random.Random(seed))
            put_json(path, value)

        return Edit(name, f"{about} {seed}", changed)

    return drawn


def swapped(of: Callable[[Any], Any]) -> Change:
    """Exchange two values of a list or of an object."""

    def change(value: Any, chance: random.Random) -> None:
        holder = of(value)
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        one, other = chance.sample(list(keys), 2)
        holder[one], holder[other] = holder[other], holder[one]

    return change


def moved(of: Callable[[Any], Any], key: str) -> Change:
    """Exchange one field of two objects of a list."""

    def change(value: Any, chance: random.Random) -> None:
        one, other = chance.sample(of(value), 2)
        one[key], other[key] = other[key], one[key]

    return change


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
STEPS: dict[str, tuple[Any, ...]] = {
    "normalizer": (
        {"type": "NFC"}, {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "StripAccents"},
        {"type": "Strip", "strip_left": True, "strip_right": False},
        {"type": "Replace", "pattern": {"Regex": "(a"}, "content": "b"},
        {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "b"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "b"},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Prepend", "prepend": ""},
    ),
    "pre_tokenizer": (
        METASPACE, LEVEL, {"type": "Whitespace"}, {"type": "UnicodeScripts"},
        {"type": "Digits", "individual_digits": True},
        {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True},
        {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated",
         "invert": False},
        {"type": "FixedLength", "length": 0}, {"type": "FixedLength", "length": 5},
        {"type": "Punctuation", "behavior": "Contiguous"},
    ),
    "decoder": (
        METASPACE, LEVEL, {"type": "Fuse"}, {"type": "ByteFallback"},
        {"type": "CTC", "pad_token": "<s>", "word_delimiter_token": "|", "cleanup": True},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 1},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Fuse"}]},
    ),
    "post_processor": (
        LEVEL, {"type": "BertProcessing", "sep": ["x", 3], "cls": ["y", 1 << 31]},
        {"type": "RobertaProcessing", "sep": ["x", 3], "cls": ["y", 9], "trim_offsets": True,
         "add_prefix_space": False},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
         "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1, 5000], "tokens": ["a"]}}},
    ),
    "truncation": (
        {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 2},
    ),
    "padding": (
        {"strategy": {"Fixed": 1 << 40}, "direction": "Left", "pad_to_multiple_of": None,
         "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
        {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": 0,
         "pad_id": 5000, "pad_type_id": 0, "pad_token": "<s>"},
    ),
}  # fmt: skip
MODEL = {
    "unk_token": ("<s>", "nowhere", None), "fuse_unk": (True, False), "dropout": (0.5, 0.0, 1.0),
    "byte_fallback": (True, False), "ignore_merges": (True, False), "unk_id": (0, 5000, None),
    "continuing_subword_prefix": ("##", "", "é"), "end_of_word_suffix": ("</w>", ""),
    "type": ("BPE", "Unigram", "WordPiece", "WordLevel", None),
}  # fmt: skip
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def other_step(value: Any, chance: random.Random) -> None:
    name = chance.choice(list(STEPS))
    step, former = chance.choice(STEPS[name]), value.get(name)
    kind = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    if name in kind and former and chance.random() < 0.5:
        step = {"type": "Sequence", kind[name]: chance.sample([step, former], 2)}
    value[name] = step


def other_model(value: Any, chance: random.Random) -> None:
    key = chance.choice(list(MODEL))
    value["model"][key] = chance.choice(MODEL[key])


def other_added(value: Any, chance: random.Random) -> None:
    added = value["added_tokens"]
    token = chance.choice(added)
    vocab = value["model"]["vocab"]
    tokens = list(vocab) if isinstance(vocab, dict) else [piece for piece, _ in vocab]
    how = chance.randrange(5)
    if how < 2:
        flag = chance.choice(FLAGS)
        token[flag] = not token[flag]
    elif how == 2:
        token["content"] = chance.choice([*tokens, "", " ", "a", "\n", "é" * 300, "▁"])
    elif how == 3:
        token["id"] = chance.choice([0, 1, len(tokens), len(tokens) + 5, ROWS, 1 << 31, -1])
    else:
        id = max(len(tokens), *(t["id"] + 1 for t in added))
        added.append({**token, "id": id, "content": chance.choice(["<new>", "Hello", "two", " "])})


def other_token(value: Any, chance: random.Random) -> None:
    """Change what tokenizer_config.json or the map says of tokens."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "image_token")
    token = chance.choice(["<s>", "</s>", "<new>", "Hello", "a", "", " ", "[INST]", "nowhere"])
    flags = {flag: chance.random() < 0.5 for flag in FLAGS}
    whole = {**flags, "content": token}
    how = chance.randrange(5)
    if how == 0:
        value[chance.choice(names)] = chance.choice([token, whole, None])
    elif how == 1:
        listed = value.setdefault("added_tokens_decoder", {})
        listed[str(chance.choice([0, 1, 2, 97, 300, 600, 900, ROWS, 1 << 31]))] = whole
    elif how == 2:
        value[chance.choice(["add_bos_token", "add_eos_token", "legacy"])] = chance.random() < 0.5
    elif how == 3:
        key = chance.choice(["extra_special_tokens", "additional_special_tokens"])
        value[key] = chance.choice([[token], [whole, token], {"x_token": token}, token])
    else:
        value["tokenizer_class"] = chance.choice(
            ["LlamaTokenizer", "T5Tokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast", None]
        )


def other_end(value: Any, chance: random.Random) -> None:
    value["eos_token_id"] = chance.choice([*ODD, 1, 2, [1, 2], [], ROWS - 1, ROWS, [1, ROWS]])


def of_bytes(name: str, about: str, change: Callable[[bytes, random.Random], bytes]) -> Any:
    """Return what draws an edit of a file of another format that stays whole."""

    def drawn(folder: Path, chance: random.Random) -> Edit:
        seed = chance.random()

        def changed(path: Path) -> None:
            path.write_bytes(change(path.read_bytes(), random.Random(seed)))

        return Edit(name, f"{about} {seed}", changed)

    return drawn


def other_ranks(data: bytes, chance: random.Random) -> bytes:
    """Exchange, drop or add tokens of a tiktoken.model, and number the lines anew."""
    tokens = [line.split()[0] for line in data.splitlines() if line]
    one, other = chance.randrange(len(tokens)), chance.randrange(len(tokens))
    how = chance.randrange(4)
    if how == 0:
        tokens[one], tokens[other] = tokens[other], tokens[one]
    elif how == 1:
        del tokens[one]
    else:
        joined = base64.b64decode(tokens[one]) + base64.b64decode(tokens[other])
        tokens.insert(one if how == 2 else len(tokens), base64.b64encode(joined))
    ends = chance.choice([b"\n", b"\n", b"\r\n", b"\n\n"])
    return ends.join(b"%s %d" % (token, rank) for rank, token in enumerate(tokens))


def other_pieces(data: bytes, chance: random.Random) -> bytes:
    """Change a piece or a setting of a SentencePiece model."""
    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(data)
    except DecodeError as error:
        raise ValueError from error
    one, other = chance.sample(list(model.pieces), 2)
    how = chance.randrange(6)
    if how == 0:
        one.score, other.score = other.score, one.score
    elif how == 1:
        one.score = chance.choice([0.0, -1.0, 1.0, -1e30, 1e30, float("inf"), float("nan")])
    elif how == 2:
        one.type = chance.choice([1, 2, 3, 4, 5, 6])
    elif how == 3:
        one.piece = chance.choice([one.piece + other.piece, other.piece[:1], "▁", " ", "<0x41>"])
    elif how == 4:
        model.pieces.add(piece=one.piece + other.piece, score=chance.choice([-5.5, -1e6, 0.0]))
    else:
        spec = chance.choice([model.trainer_spec, model.normalizer_spec])
        fields = [field for field in spec.DESCRIPTOR.fields if field.type in (5, 8)]
        field = chance.choice(fields)
        value = chance.random() < 0.5 if field.type == 8 else chance.choice([-1, 0, 1, 2, 3, 1000])
        setattr(spec, field.name, value)
    return bytes(model.SerializeToString())


def renumbered(key: str, rank: str, listed: str) -> Change:
    """Exchange, drop or double a token of a list, and number its tokens anew."""

    def change(value: Any, chance: random.Random) -> None:
        tokens = value[key]
        first, at = tokens[0][rank], chance.randrange(len(tokens))
        how = chance.randrange(3)
        if how == 0:
            del tokens[at]
        elif how == 1:
            tokens.insert(at, dict(chance.choice(tokens)))
        else:
            one, other = tokens[at], chance.choice(tokens)
            one[listed], other[listed] = other[listed], one[listed]
        for number, token in enumerate(tokens):
            token[rank] = first + number

    return change


def vocab(value: Any) -> Any:
    return value["model"]["vocab"]


def merges(value: Any) -> Any:
    return value["model"]["merges"]


def shorter(value: Any, chance: random.Random) -> None:
    del merges(value)[chance.randrange(len(merges(value)))]


BESIDES = (
    of_value("tokenizer_config.json", "another token", other_token),
    of_value("generation_config.json", "another end", other_end),
)
OF_JSON = (
    *(2 * [of_value("tokenizer.json", "another step", other_step)]),
    of_value("tokenizer.json", "another model", other_model),
    of_value("tokenizer.json", "another added token", other_added),
    of_value("tokenizer.json", "two tokens exchanged", swapped(vocab)),
    *BESIDES,
)
OF_MERGES = (
    of_value("tokenizer.json", "two merges exchanged", swapped(merges)),
    of_value("tokenizer.json", "a merge less", shorter),
)
TEKKEN = (
    of_value("tekken.json", "other tokens", renumbered("vocab", "rank", "token_bytes")),
    of_value("tekken.json", "special tokens", renumbered("special_tokens", "rank", "token_str")),
)
