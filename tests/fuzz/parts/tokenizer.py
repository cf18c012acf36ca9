"""Tokenizers, the tokens and templates beside them, and where texts end: read as transformers and
the makers' libraries read the same files."""

import base64
import json
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken
from files.makers import GROK, KIMI, as_json, grok, kimi, pieces, tekken_json
from files.makers import Files as Contents
from files.odd_texts import CODE, SCRIPTS
from google.protobuf.message import DecodeError
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import sentencepiece_model_pb2
from tiny.llama import tokenizer_json
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fuzz.edits import ODD, Edit, json_of, put_json
from fuzz.files import Files, Kinds
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensors import Checkpoint, Texts
from lmcast.exporter.checkpoint.texts import read_texts
from lmcast.exporter.progress import silent
from lmcast.exporter.runtime.sampling import SamplingError, of_generation_config
from lmcast.exporter.runtime.text import Text
from lmcast.exporter.texts import check_vocabulary, settle_texts

ROWS = 1500  # of the model: a few hundred more than any of the tokenizers has ids
PLAIN = (
    "Hello, world! 3.14159 == x[0];", "  two   spaces \n\n\tand\r\n lines", SCRIPTS["Mixed"],
    SCRIPTS["Greek"], SCRIPTS["Arabic"], "x y\u00a0 ▁▁x", CODE[0], "",
)  # fmt: skip
SPELLED = "a <s></s>  <new>b <|im_end|>x [INST]y</s> <unk>"
UNKNOWN = "\u2047"  # what SentencePiece decodes an unknown piece as; other decoders leave it out
Ids = list[int]
Encode = Callable[[str], Ids]
Decode = Callable[[Ids], str]
Change = Callable[[Any, random.Random], None]


def of_engine(folder: Path) -> tuple[Texts, Text]:
    """Return what an engine would hold of a folder's texts, as an export settles it."""
    texts = read_texts(Folder.at(folder))
    if texts.problem is not None:
        raise CheckpointError(texts.problem)
    if texts.tokenizer is None:
        raise CheckpointError("tokenizer.json is missing")
    data = Folder.at(folder).read("config.json", 1 << 24)
    config = parse_object(data or b"{}", folder / "config.json")
    source = Checkpoint(folder, config, {}, texts)
    check_vocabulary(source, ROWS)
    assert all(0 <= id < ROWS for id in settle_texts(source, ROWS, silent))
    with suppress(SamplingError):  # an engine is greedy then, and says so
        of_generation_config(texts.generation)
    return texts, Text(texts.tokenizer, texts.chat_templates, texts.special_tokens)


def streamed(text: Text, ids: Ids) -> str:
    stream = text.stream()
    return "".join([*(stream.push(id) for id in ids), stream.finish()])


# As transformers reads it.


def as_transformers(folder: Path, work: Path) -> str | None:
    texts, text = of_engine(folder)
    for given in (*PLAIN, SPELLED):
        ids = text.encode(given)
        if (parts := streamed(text, ids)) != (whole := text.decode(ids)):
            return f"{given!r} streams as {parts!r:.80}, not {whole!r:.80}"
    if texts.notes:  # which say what is read otherwise
        return None
    try:
        theirs = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception:  # noqa: BLE001 (what it refuses, and how, is its own)
        return None
    if json_of(folder / "tokenizer.json").get("padding"):  # whose token theirs adds to the others
        return None
    if texts.special_tokens != theirs.special_tokens_map:
        return f"special tokens {texts.special_tokens}, not {theirs.special_tokens_map}"
    # A token that was added twice is otherwise no special one to theirs until it is saved.
    anew = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    for given in (*PLAIN, SPELLED):
        ids, wanted = text.encode(given), theirs(given)["input_ids"]
        if ids != wanted:
            return f"{given!r} is {ids}, not {wanted}"
        said = text.decode(ids), anew.decode(ids)
        if said[0] != said[1]:
            return f"{ids} is {said[0]!r}, not {said[1]!r}"
    return None


# As the makers' libraries read them.


def as_maker(read: Callable[[Path], tuple[Encode, Decode]], folder: Path, work: Path) -> str | None:
    texts, _ = of_engine(folder)
    if (folder / "tokenizer.json").exists():
        return None
    assert texts.tokenizer is not None
    ours = Tokenizer.from_buffer(texts.tokenizer)
    encode, decode = read(folder)
    added = [token.content for token in ours.get_added_tokens_decoder().values()]
    for given in PLAIN:
        if any(token in given for token in added):  # of the files beside, not of the maker's
            continue
        ids, wanted = ours.encode(given, add_special_tokens=False).ids, encode(given)
        # SentencePiece adds scores in 32 bits, and may take equal pieces in another order.
        reordered = read is by_sentencepiece and sorted(ids) == sorted(wanted)
        if ids != wanted and not reordered:
            return f"{given!r} is {ids}, not {wanted}"
        # Of what is unknown and begins with a space, files.makers says what is decoded otherwise.
        said, meant = ours.decode(ids).lstrip(" "), decode(ids).lstrip(" ")
        if said != meant and UNKNOWN not in meant:
            return f"{ids} is {said!r}, not {meant!r}"
    return None


def by_tiktoken(folder: Path) -> tuple[Encode, Decode]:
    lines = (folder / "tiktoken.model").read_bytes().splitlines()
    pairs = (line.split() for line in lines if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    encoding = tiktoken.Encoding("kimi", pat_str=KIMI, mergeable_ranks=ranks, special_tokens={})
    return partial(encoding.encode, disallowed_special=()), encoding.decode


def by_mistral(folder: Path) -> tuple[Encode, Decode]:
    theirs = Tekkenizer.from_file(folder / "tekken.json")
    return partial(theirs.encode, bos=False, eos=False), partial(
        theirs.decode, special_token_policy=SpecialTokenPolicy.IGNORE
    )


def by_grok(folder: Path) -> tuple[Encode, Decode]:
    raw = json.loads((folder / "tokenizer.tok.json").read_bytes())
    ranks = {bytes(item["bytes"]): item["token"] for item in raw["regular_tokens"]}
    pattern = raw.get("pat_str", GROK)
    encoding = tiktoken.Encoding("grok", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return partial(encoding.encode, disallowed_special=()), encoding.decode


def by_sentencepiece(folder: Path) -> tuple[Encode, Decode]:
    theirs = sentencepiece.SentencePieceProcessor()
    theirs.LoadFromSerializedProto((folder / "tokenizer.model").read_bytes())
    return theirs.encode, theirs.decode


# What is spoiled beside bytes and JSON.


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


def of_bpe(name: str, about: str, change: Callable[[bytes, random.Random], bytes]) -> Any:
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


# What trials begin with.

BESIDE = {
    "config.json": {"eos_token_id": 1, "model_type": "llama"},
    "generation_config.json": {
        "eos_token_id": [1, 2], "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
    },
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
FLAGGED = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def write(folder: Path, files: Contents) -> None:
    for name, value in BESIDE.items():
        (folder / name).write_bytes(as_json(value))
    for name, data in files.items():
        (folder / name).write_bytes(data)


def hugging_face(whole: Callable[[], str], older: bool, template: str, folder: Path) -> None:
    """Write a tokenizer.json and what saves of transformers have beside it."""
    data = json.loads(whole())
    first = max(t["id"] for t in json.loads(Tokenizer.from_str(whole()).to_str())["added_tokens"])
    size = max(first + 1, Tokenizer.from_str(whole()).get_vocab_size())
    files: Contents = {"tokenizer.json": as_json(data)}
    known = {t["content"]: t["id"] for t in data["added_tokens"]}
    bos, eos = ("<s>", "</s>") if "<s>" in known else list(known)[:2]
    named = {"bos_token": bos, "eos_token": eos}
    if older:
        files["added_tokens.json"] = as_json({"<new>": size})
        files["special_tokens_map.json"] = as_json(
            {"bos_token": bos, "eos_token": {**FLAGGED, "content": eos}}
        )
        files["tokenizer_config.json"] = as_json({**named, "chat_template": template})
    else:
        decoder = {
            str(t["id"]): {**FLAGGED, "content": t["content"], "special": t["special"]}
            for t in data["added_tokens"]
        }
        decoder[str(size)] = {**FLAGGED, "content": "<new>", "special": True}
        files["tokenizer_config.json"] = as_json(
            {**named, "added_tokens_decoder": decoder, "extra_special_tokens": ["<new>"]}
        )
        files["chat_template.jinja"] = template.encode()
    write(folder, files)


def of_maker(case: Callable[[], Contents]) -> str:
    """Return the tokenizer.json that a maker's file is converted into."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), case())
        data = read_texts(Folder.at(Path(folder))).tokenizer
    assert data is not None
    return data.decode()


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


def named(name: str, case: Callable[[], Contents], read: Any, *more: Any) -> Files:
    """A tokenizer in its maker's file."""
    make = lambda folder: write(folder, {"tokenizer_config.json": b"{}"} | case())  # noqa: E731
    return Files(name, "", make, partial(as_maker, read), (*more, *more, BESIDES[0]))


def saved(
    name: str, whole: Callable[[], str], older: bool, more: Iterable[Any], template: str = ""
) -> Files:
    """A tokenizer as transformers saves it."""
    make = partial(hugging_face, whole, older, template)
    return Files(name, "", make, as_transformers, (*OF_JSON, *more))


SPM = of_bpe("tokenizer.model", "another piece", other_pieces)
PART = Kinds(
    "tokenizer",
    "tokenizers, added tokens, chat templates, ends of texts",
    [
        saved("characters", tokenizer_json, True, (), TEMPLATE),
        saved("bytes", lambda: of_maker(kimi(shuffled=False).files.copy), False, OF_MERGES,
              TEMPLATE),
        saved("pieces", lambda: of_maker(pieces("Gemma").files.copy), True, OF_MERGES),
        saved("unigram", lambda: of_maker(pieces("Unigram").files.copy), False, ()),
        named("tiktoken", lambda: kimi(shuffled=False).files, by_tiktoken,
              of_bpe("tiktoken.model", "other ranks", other_ranks)),
        named("tekken", lambda: {"tekken.json": as_json(tekken_json())}, by_mistral, *TEKKEN),
        named("grok", lambda: grok().files, by_grok,
              of_value("tokenizer.tok.json", "other tokens",
                       renumbered("regular_tokens", "token", "bytes"))),
        *(named(name, lambda name=name: pieces(name).files, by_sentencepiece, SPM)
          for name in ("Llama 2", "Gemma", "Unigram", "Unigram, no bytes")),
    ],
)  # fmt: skip
