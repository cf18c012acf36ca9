"""Tokenizers, the tokens and templates beside them, and where texts end: read as transformers and
the makers' libraries read the same files."""

import base64
import json
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
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tiny.llama import tokenizer_json
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fuzz.edits import json_of
from fuzz.files import Files, Kinds
from fuzz.tokenizer_edits import (
    BESIDES,
    OF_JSON,
    OF_MERGES,
    ROWS,
    TEKKEN,
    of_bytes,
    of_value,
    other_pieces,
    other_ranks,
    renumbered,
)  # fmt: skip
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensors import Checkpoint, Texts
from lmcast.exporter.checkpoint.texts import read_texts
from lmcast.exporter.progress import silent
from lmcast.exporter.runtime.sampling import SamplingError, of_generation_config
from lmcast.exporter.runtime.text import Text
from lmcast.exporter.texts import check_vocabulary, settle_texts

PLAIN = (
    "Hello, world! 3.14159 == x[0];", "  two   spaces \n\n\tand\r\n lines", SCRIPTS["Mixed"],
    SCRIPTS["Greek"], SCRIPTS["Arabic"], "x y\u00a0 ▁▁x", CODE[0], "",
)  # fmt: skip
SPELLED = "a <s></s>  <new>b <|im_end|>x [INST]y</s> <unk>"
UNKNOWN = "\u2047"  # what SentencePiece decodes an unknown piece as; other decoders leave it out
Ids = list[int]
Encode = Callable[[str], Ids]
Decode = Callable[[Ids], str]


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


SPM = of_bytes("tokenizer.model", "another piece", other_pieces)
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
              of_bytes("tiktoken.model", "other ranks", other_ranks)),
        named("tekken", lambda: {"tekken.json": as_json(tekken_json())}, by_mistral, *TEKKEN),
        named("grok", lambda: grok().files, by_grok,
              of_value("tokenizer.tok.json", "other tokens",
                       renumbered("regular_tokens", "token", "bytes"))),
        *(named(name, lambda name=name: pieces(name).files, by_sentencepiece, SPM)
          for name in ("Llama 2", "Gemma", "Unigram", "Unigram, no bytes")),
    ],
)  # fmt: skip
