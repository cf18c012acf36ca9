"""GGUF files: headers as the gguf package reads them, numbers as it dequantizes them, texts as
SentencePiece and the tokenizers library have them, and no key that nothing reads."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from files.gguf import stored, tiny_gguf, values, write_gguf
from files.gguf_twin_rows import TWINS
from files.gguf_twins import Twin
from files.makers import KIMI, kimi, trained
from files.odd_texts import CODE, SCRIPTS
from gguf import GGUFReader, quants
from sentencepiece import sentencepiece_model_pb2
from tiny import case, changed, make, read
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from fuzz.files import Files, Kinds
from fuzz.gguf_edits import MORE_EDITS
from fuzz.parts.tokenizer import of_maker
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.checkpoint.gguf.header import read_header
from lmcast.exporter.checkpoint.gguf.parts import read_whole
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.texts import check_vocabulary
from lmcast.graphs import defined

PLAIN = ("Hello, world! 3.14159 == x[0];", "  two   spaces \n\n\tand", SCRIPTS["Mixed"], CODE[0])
# What order and kinds leave open: scores of the same order, what only byte-level BPE is divided by.
OPEN = ("tokenizer.ggml.scores", "tokenizer.ggml.pre")
NEUTRAL = (0, 1, 1.0, "", [], "none", True)  # what a key may say that a good file does not have
GOOD: dict[str, Path] = {}  # what trials begin with


# What is right.


def use(kind: str, folder: Path, work: Path) -> str | None:
    source = open_checkpoint(folder)
    defined(source.config, source.tensors)
    if source.texts.tokenizer is not None:
        check_vocabulary(source, source.config["vocab_size"])
    files = sorted({stored.file for stored in source.tensors.values()})
    try:
        readers = {file: GGUFReader(file) for file in files}
    except OSError:  # it maps a file whole, and one may have a hole of any size at its end
        return None
    wrong = next((said for file in files if (said := header_differs(file, readers[file]))), None)
    wrong = wrong or numbers_differ(source, readers) or ignored(kind, source, folder)
    return wrong or texts_differ(source, readers[files[0]])


def header_differs(file: Path, theirs: GGUFReader) -> str | None:
    """Compare what a file says of itself with what the package reads."""
    ours = read_header(file)
    known = {name: f for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
    if ours.metadata.keys() != known.keys():
        return f"keys {sorted(ours.metadata.keys() ^ known.keys())}"
    for name, field in known.items():
        if not same(mine := ours.metadata[name], other := field.contents()):
            return f"{name} is {mine!r:.60}, not {other!r:.60}"
    if [t.name for t in theirs.tensors] != list(ours.tensors):
        return "names of tensors"
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        read = entry.kind, list(entry.shape), entry.offset, entry.nbytes
        shape = [int(axis) for axis in tensor.shape[::-1]]
        said = tensor.tensor_type, shape, int(tensor.data_offset), int(tensor.n_bytes)
        if read != said:
            return f"{tensor.name} is {read}, not {said}"
    return None


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same; ours of 32 bits are the decimals that were meant."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        near = math.isclose(one, other, rel_tol=1e-7) or (one != one and other != other)
        return near or bool(np.float32(one) == np.float32(other))
    return type(one) is type(other) and bool(one == other)


def numbers_differ(source: Checkpoint, readers: dict[Path, GGUFReader]) -> str | None:
    """Compare the numbers of each tensor, in any order where it is put in Hugging Face's."""
    for name, given in source.tensors.items():
        steps = getattr(given.decode, "steps", ())
        if given.assembly is not None or any(step.computes for step in steps):
            continue
        tensor = next(
            t for t in readers[given.file].tensors
            if t.data_offset <= given.offset < t.data_offset + t.n_bytes
        )  # fmt: skip
        start = given.offset - tensor.data_offset
        raw = tensor.data.view(np.uint8).reshape(-1)[start : start + given.nbytes]
        with np.errstate(all="ignore"):
            wanted = quants.dequantize(raw.reshape(1, -1), tensor.tensor_type).reshape(-1)
        mine, wanted = source.read(name).float().reshape(-1).numpy(), wanted.astype(np.float32)
        if steps:
            mine, wanted = np.sort(mine), np.sort(wanted)
        if not np.array_equal(mine, wanted, equal_nan=True):
            return f"{name} has other numbers than {tensor.name}"
    return None


def ignored(kind: str, source: Checkpoint, folder: Path) -> str | None:
    """Say which keys have other values than in the good file, where that changes nothing."""
    first = next(GOOD[kind].iterdir())
    now, before = read_whole(source.path).metadata, read_whole(first).metadata
    spaces = [f"{now['general.architecture']}."]
    spaces += ["tokenizer."] * (source.texts.tokenizer is not None)
    told = (*NEUTRAL, head_width(now))  # what is so without a key, too; others are refused there
    other = [
        key for key, value in now.items()
        if key.startswith(tuple(spaces)) and key not in OPEN
        and not same(of_all_layers(value), of_all_layers(before.get(key)))
        and (key in before or value not in told)
    ]  # fmt: skip
    if not other or summary(source) != summary(open_checkpoint(first)):
        return None
    return f"{', '.join(sorted(other))} changed, and nothing else"


def head_width(metadata: dict[str, Any]) -> int | None:
    """Return the numbers of a head, of which a file may say that all are rotated."""
    at = metadata["general.architecture"]
    sizes = (metadata.get(f"{at}.{key}") for key in ("embedding_length", "attention.head_count"))
    width, heads = map(of_all_layers, sizes)
    return int(width // heads) if type(width) is type(heads) is float and heads else None


def of_all_layers(value: Any) -> Any:
    """Return the one number that a list says of every layer; a whole one is the float, too."""
    if type(value) is int and abs(value) < 1 << 53:
        return float(value)
    alike = isinstance(value, list) and value and all(same(each, value[0]) for each in value)
    return float(value[0]) if alike and type(value[0]) is int else value


def summary(source: Checkpoint) -> Any:
    shapes = {name: (t.dtype, t.shape, t.row_multiple) for name, t in source.tensors.items()}
    return dict(source.config), shapes, source.texts


def texts_differ(source: Checkpoint, reader: GGUFReader) -> str | None:
    """Compare tokens of texts with those of a tokenizer made of the same metadata."""
    keys = {name: f.contents() for name, f in reader.fields.items() if "tokenizer.ggml." in name}
    if source.texts.tokenizer is None:
        return None
    ours = Tokenizer.from_buffer(source.texts.tokenizer)
    given = {name.rpartition(".")[2]: value for name, value in keys.items()}
    added = [token.content for token in ours.get_added_tokens_decoder().values()]
    if (encode := {"gpt2": by_merges, "llama": by_scores}[given["model"]](given)) is None:
        return None
    for text in PLAIN:
        if any(token in text for token in added):
            continue
        ids, wanted = ours.encode(text, add_special_tokens=False).ids, encode(text)
        if ids != wanted:
            return f"{text!r} is {ids}, not {wanted}"
    return None


def by_merges(given: dict[str, Any]) -> Callable[[str], list[int]] | None:
    if given["pre"] != "kimi-k2":
        return None
    vocab = {token: id for id, token in enumerate(given["tokens"])}
    pairs = [tuple(merge.split(" ")) for merge in given["merges"]]
    theirs = Tokenizer(models.BPE(vocab, pairs))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = [pre_tokenizers.Split(Regex(KIMI), "isolated"), level]
    theirs.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return lambda text: theirs.encode(text).ids


def by_scores(given: dict[str, Any]) -> Callable[[str], list[int]] | None:
    model = sentencepiece_model_pb2.ModelProto()
    pieces = zip(given["tokens"], given["scores"], given["token_type"], strict=True)
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = 6 in given["token_type"]
    model.normalizer_spec.add_dummy_prefix = given.get("add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.name = "identity"
    theirs = sentencepiece.SentencePieceProcessor()
    with suppress(RuntimeError):  # for what llama.cpp, whose reader is its own, may well take
        theirs.LoadFromSerializedProto(model.SerializeToString())
        return lambda text: theirs.encode(text)
    return None


# What trials begin with.

TWINNED = (
    "deepseek_v3/DeepSeek-V3", "qwen3_next/Qwen3-Next-80B-A3B",
    "granitemoehybrid/granite-4.0-h-tiny", "phi3/longrope in part",
)  # fmt: skip


def plain(arch: str, kind: str, folder: Path) -> None:
    tiny_gguf(folder / "a.gguf", arch, kind)


def twin(name: str, folder: Path) -> None:
    found: Twin = next(t for t in TWINS if t.case == name)
    made = folder.parent / f"{folder.name} of Hugging Face"
    config, tensors = read(make(case(found.case), made))
    found.write(folder / "a.gguf", changed(config, found.changes), tensors)


def parts(folder: Path) -> None:
    """Write a model in three parts."""
    tensors = [(n, stored(v, "Q8_0")) for n, v in values("llama").items()]
    for number in range(3):
        general = {"split.no": number, "split.count": 3, "split.tensors.count": len(tensors)}
        path = folder / f"a-{number + 1:05}-of-00003.gguf"
        own = dict(tensors[number::3])
        write_gguf(path, "llama", own, {} if number == 0 else None, general)


def byte_tokens() -> dict[str, Any]:
    whole = json.loads(of_maker(kimi(shuffled=False).files.copy))
    vocab, added = whole["model"]["vocab"], {t["id"] for t in whole["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": list(vocab),
        "tokenizer.ggml.token_type": [3 if id in added else 1 for id in vocab.values()],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in whole["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": vocab["[EOS]"],
        "tokenizer.ggml.bos_token_id": vocab["[BOS]"],
        "tokenizer.ggml.add_bos_token": True,
    }


def piece_tokens() -> dict[str, Any]:
    model = sentencepiece_model_pb2.ModelProto.FromString(trained("Llama 2"))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.piece for piece in model.pieces],
        "tokenizer.ggml.scores": [float(piece.score) for piece in model.pieces],
        "tokenizer.ggml.token_type": [int(piece.type) for piece in model.pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def vocabulary(tokens: Callable[[], dict[str, Any]], folder: Path) -> None:
    general = tokens() | {"tokenizer.chat_template": "{{ messages[0]['content'] }}</s>"}
    rows = len(general["tokenizer.ggml.tokens"])
    embedding = np.ones((rows, 256), np.float16)
    own = {"vocab_size": None}
    tiny_gguf(
        folder / "a.gguf", "llama", "Q8_0", own, general, token_embd__weight=(embedding, "F16")
    )


def of(name: str, write: Callable[[Path], None]) -> Files:
    def made(folder: Path) -> None:
        GOOD[name] = folder
        write(folder)

    return Files(name, "", made, partial(use, name), MORE_EDITS * 2)


PART = Kinds(
    "gguf",
    "GGUF files, whole and in parts, and their vocabularies",
    [
        of("llama", partial(plain, "llama", "Q8_0")),
        of("qwen2", partial(plain, "qwen2", "F16")),
        of("gemma3", partial(plain, "gemma3", "Q4_1")),
        of("parts", parts),
        of("bytes", partial(vocabulary, byte_tokens)),
        of("pieces", partial(vocabulary, piece_tokens)),
        *(of(name, partial(twin, name)) for name in TWINNED),
    ],
)
