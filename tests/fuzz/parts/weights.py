"""Safetensors files, their index and config: plain numbers read as the safetensors library does,
quantized ones as the descriptions of their formats say."""

import json
import random
import struct
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from files import mistral
from files import quantized as files
from files.malformed import tiny_llama
from files.quantized import CONFIG, E2M1, Leaves, compressed, fp8, nibbles, powers, wide, word
from safetensors import safe_open
from tiny.llama import shards, tensors
from torch import Tensor

from fuzz.edits import ODD, Edit, json_of, put_json
from fuzz.files import Files, Kinds
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.weights.values import values
from lmcast.graphs import defined
from lmcast.graphs.weights.sources import Packed, leaves

Meaning = Callable[[Leaves], Tensor]  # of the tensors of one module
BF16 = torch.bfloat16


def use(meaning: Meaning | None, folder: Path, work: Path) -> str | None:
    """Read every tensor that a model takes, and compare it with what the library reads of it."""
    source = open_checkpoint(folder)
    binding = defined(source.config, source.tensors).binding
    for leaf in (leaf for taken in binding.sources.values() for leaf in leaves(taken)):
        mine = list(values(source, leaf))  # which refuses what is no number
        if isinstance(leaf, Packed) and meaning is not None and leaf.values.whole:
            module = leaf.layout.tensors[0].rpartition(".")[0]
            wanted = meaning(module_of(source, module)).reshape(-1)
            if not torch.equal(torch.cat([block.reshape(-1) for block in mine]), wanted):
                return f"{module} is not what its tensors mean"
    for name in binding.tensors():
        mine = torch.cat([block.reshape(-1) for block in source.blocks(name)])
        theirs = read(source, name).reshape(-1)
        if mine.dtype != theirs.dtype or not same_bits(mine, theirs):
            return f"{name} is not what the safetensors library reads"
    return None


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def read(source: Checkpoint, name: str) -> Tensor:
    """Return what the library reads at a tensor's place: under its name, or a maker's other one."""
    given = source.tensors[name]
    theirs = mistral.mistral_name(name).replace("weight_scale_inv", "qscale_weight")
    with safe_open(given.file, framework="pt") as file:
        return file.get_tensor(name if name in set(file.keys()) else theirs)


def module_of(source: Checkpoint, module: str) -> Leaves:
    found = [n for n in source.tensors if n.startswith(f"{module}.")]
    return {name.removeprefix(f"{module}."): read(source, name) for name in found}


# What formats mean, from their descriptions.


def of_gptq(leaves: Leaves) -> Tensor:
    numbers = word(leaves["qweight"].T, 4).float()
    order = leaves["g_idx"].long()
    zeros = word(leaves["qzeros"], 4).T.float() + 1
    return (numbers - zeros[:, order]) * leaves["scales"].T.float()[:, order]


def of_awq(leaves: Leaves) -> Tensor:
    def columns(words: Tensor) -> Tensor:  # K,N/8 -> N,K
        slots = word(words, 4).unflatten(1, (-1, 8))
        return slots[..., [0, 4, 1, 5, 2, 6, 3, 7]].flatten(1).T.float()

    numbers, scales = columns(leaves["qweight"]), leaves["scales"].T
    zeros = columns(leaves["qzeros"])
    return (numbers - wide(zeros, numbers.shape[1])) * wide(scales, numbers.shape[1])


def of_fbgemm(leaves: Leaves) -> Tensor:
    return fp8(leaves["weight"]) * leaves["weight_scale"].reshape(-1, 1)


def of_mlx(leaves: Leaves) -> Tensor:
    numbers = word(leaves["weight"].view(torch.int32), 4)
    factor, base = (wide(leaves[leaf], numbers.shape[1]) for leaf in ("scales", "biases"))
    return (numbers.double() * factor + base).float()


def of_int8(leaves: Leaves) -> Tensor:
    return leaves["weight"].float() * (leaves["SCB"] / 127)[:, None]


def of_mxfp4(leaves: Leaves) -> Tensor:
    codes = E2M1[nibbles(leaves["weight"])]
    return codes * wide(powers(leaves["weight_scale"]), codes.shape[1])


def of_mistral(leaves: Leaves) -> Tensor:
    return fp8(leaves["weight"]) * leaves["weight_scale_inv"]


# What is spoiled beside bytes, JSON and paths: headers that stay whole, and settings.

SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2,
    "I16": 2, "U16": 2, "U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "F4": 1,
}  # fmt: skip
WORDS = (
    "awq", "gptq", "gptq_v2", "fp8", "compressed-tensors", "group", "channel", "tensor", "block",
    "float", "int", "lm_head", "re:.*", "re:(x+x+)+y", "model.layers.0.mlp.down_proj", "Linear",
    "pack-quantized", "float-quantized", "naive-quantized", "static", "dynamic",
)  # fmt: skip
COUNTS = (0, 1, 2, 3, 4, 8, 16, 32, 64, 128, -1, [128, 128], [32, 64], [1, 32], True, False, None)


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def of_header(folder: Path, chance: random.Random) -> Edit:
    """Return an edit of a header that describes the data behind it as well as before, or nearly."""
    path, seed = chance.choice(weight_files(folder)), chance.random()

    def changed(target: Path) -> None:
        data = target.read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + size])
        body = other_header(header, data[8 + size :], random.Random(seed))
        text = json.dumps(header).encode() + b" " * random.Random(seed).choice([0, 1, 7])
        target.write_bytes(struct.pack("<Q", len(text)) + text + body)

    return Edit(path.name, f"another header {seed}", changed)


def other_header(header: dict[str, Any], body: bytes, chance: random.Random) -> bytes:
    """Change a header; return the data behind it."""
    names = [name for name in header if name != "__metadata__"]
    one, other = chance.choice(names), chance.choice(names)
    tensor, second, how = header[one], header[other], chance.randrange(9)
    if how == 0:  # exchange two names
        header[one], header[other] = second, tensor
    elif how == 1:
        size = SIZES.get(tensor["dtype"], 4)
        tensor["dtype"] = chance.choice([name for name, each in SIZES.items() if each == size])
    elif how == 2:
        shape = tensor["shape"]
        tensor["shape"] = chance.choice([shape[::-1], [*shape, 1], [1, *shape], shape[1:] + shape])
    elif how == 3:  # exchange two runs of data
        (a, b), (c, d) = sorted([tensor["data_offsets"], second["data_offsets"]])
        if one != other and b - a == d - c:
            body = body[:a] + body[c:d] + body[b:c] + body[a:b] + body[d:]
    elif how == 4:
        header[chance.choice(["x", f"{one}x", one.replace("layers.0", "layers.9"), ""])] = {
            "dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2,
        }  # fmt: skip
    elif how == 5:
        header[f"{one}_scale"] = {
            "dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4],
        }  # fmt: skip
        body += struct.pack("<f", 2.0)
    elif how == 6:
        header["__metadata__"] = chance.choice([{"format": "pt"}, {"a": "b" * 5000}, {}, {"a": 1}])
    elif how == 7:
        header[chance.choice([f"{one}x", one.replace("weight", "bias")])] = header.pop(one)
    else:  # numbers that are none, or huge, as elements of any type
        begin, end = tensor["data_offsets"]
        at = chance.randrange(begin, end) // 4 * 4
        bits = chance.choice([b"\xff" * 4, b"\x00\x00\x80\x7f", b"\x7f\x7f\x7f\x7f", bytes(4)])
        body = body[:at] + bits + body[at + 4 :]
    return body


def of_settings(folder: Path, chance: random.Random) -> Edit:
    """Return an edit of what config.json says of quantization."""
    seed = chance.random()

    def changed(target: Path) -> None:
        config = json_of(target)
        drawn = random.Random(seed)
        section: Any = config[CONFIG]
        while True:
            items = list(section) if isinstance(section, dict) else list(range(len(section)))
            key = drawn.choice(items)
            if not isinstance(section[key], dict | list) or not section[key]:
                break
            section = section[key]
        how = drawn.randrange(6)
        if how == 0:
            del section[key]
        else:
            section[key] = drawn.choice([ODD, WORDS, WORDS, COUNTS, COUNTS, COUNTS][how])
        put_json(target, config)

    return Edit("config.json", f"another setting {seed}", changed)


# What trials begin with.


@cache
def plain() -> tuple[dict[str, Any], Leaves]:
    with tempfile.TemporaryDirectory() as folder:
        return files.small("qwen3/plain", Path(folder) / "plain")


def quantized(make: Callable[[], tuple[Any, Any]], folder: Path) -> None:
    config, given = plain()
    settings, pack = make()
    own = {name: t for name, t in given.items() if ".layers.1." not in name}
    folder.rmdir()
    config = {**config, "num_hidden_layers": 1, "layer_types": config["layer_types"][:1]}
    files.write(folder, {**config, CONFIG: settings}, files.quantized(own, pack)[0])


def halves(folder: Path) -> None:
    """Write a checkpoint of one file, in several types of numbers."""
    tiny_llama(folder)
    kinds = (torch.float16, torch.bfloat16, torch.float32)

    def change(found: dict[str, Tensor]) -> None:
        for number, name in enumerate(sorted(found)):
            found[name] = found[name].to(kinds[number % len(kinds)])

    tensors(change)(folder)


def in_shards(folder: Path) -> None:
    tiny_llama(folder)
    shards()(folder)


def of_maker(folder: Path) -> None:
    """Write a checkpoint in Mistral's own format, in FP8."""
    found = mistral.in_fp8(mistral.native(mistral.oracle({})), activations=False)
    packed = {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"}
    mistral.write(folder, {**mistral.PARAMS, "quantization": packed}, found, shards=2)


def of_preset(preset: str, **changes: Any) -> Meaning:
    scheme = files.scheme_of(preset, **changes)
    return lambda leaves: files.meaning(scheme.format, leaves, scheme.weights)


PRESETS: dict[str, dict[str, Any]] = {
    "W4A16_ASYM": {"group_size": 32}, "FP8_BLOCK": {"block_structure": [32, 64]}, "NVFP4": {},
    "W8A8": {},
}  # fmt: skip
OTHERS: dict[str, tuple[dict[str, Any], Any, Meaning]] = {
    "gptq": (files.GPTQ | {"sym": False}, partial(files.gptq, sym=False), of_gptq),
    "awq": (files.AWQ, files.awq, of_awq),
    "fbgemm": (files.FBGEMM, files.fbgemm, of_fbgemm),
    "mlx": (files.MLX, files.mlx, of_mlx),
    "bitsandbytes": (files.INT8, files.int8, of_int8),
    "quark": (files.QUARK, files.mxfp4, of_mxfp4),
}


def of(name: str, make: Callable[[Path], None], meaning: Meaning | None, *more: Any) -> Files:
    return Files(name, "", make, partial(use, meaning), (of_header, *more))


PART = Kinds(
    "weights",
    "safetensors files, their index and config, plain and quantized",
    [
        of("one file", halves, None),
        of("shards", in_shards, None),
        of("mistral", of_maker, of_mistral),
        *(
            of(name, partial(quantized, partial(compressed, name, **changes)),
               of_preset(name, **changes), of_settings)
            for name, changes in PRESETS.items()
        ),
        *(
            of(name, partial(quantized, lambda row=row: row[:2]), row[2], of_settings)
            for name, row in OTHERS.items()
        ),
    ],
)  # fmt: skip
