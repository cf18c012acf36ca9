"""A tiny valid Llama checkpoint, and functions that change one thing about a checkpoint."""

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

Build = Callable[[Path], Any]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 97,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
EMBED = "model.embed_tokens.weight"
Q0 = "model.layers.0.self_attn.q_proj.weight"
K1 = "model.layers.1.self_attn.k_proj.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
DROP = object()  # as a value in `config`: remove the key


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the checkpoint that CONFIG describes."""
    result: dict[str, tuple[int, ...]] = {
        EMBED: (97, 32),
        HEAD: (97, 32),
        "model.norm.weight": (32,),
    }
    layer = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
    }
    for i in range(2):
        result |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return result


def tokenizer_json() -> str:
    """97 tokens: two special ones and one for each printable ASCII character."""
    tokens = ["<s>", "</s>", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer.to_str()


def tiny_llama(folder: Path) -> None:
    """Fill an empty or absent directory with a checkpoint that must be accepted."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=random) * 0.1 for name, shape in shapes().items()}
    for name in weights:
        if "norm" in name:
            weights[name] += 1
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors, in memory of their own: the file may be overwritten."""
    return load((folder / WEIGHTS).read_bytes())


def write(name: str, data: bytes | str) -> Build:
    """Replace a file's contents."""
    raw = data.encode() if isinstance(data, str) else data
    return lambda folder: (folder / name).write_bytes(raw)


def edit_json(name: str, **changes: Any) -> Build:
    def build(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        value |= changes
        write_json(folder / name, {k: v for k, v in value.items() if v is not DROP})

    return build


def config(**changes: Any) -> Build:
    """Set or DROP keys of config.json."""
    return edit_json("config.json", **changes)


def remove(*names: str) -> Build:
    def build(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return build


def sparse(name: str, size: int = 4 << 30, start: bytes = b"") -> Build:
    """A file of `size` bytes that takes no space on disk."""

    def build(folder: Path) -> None:
        (folder / name).write_bytes(start)
        os.truncate(folder / name, size)

    return build


def replace_by(name: str, make: Callable[[Path], Any]) -> Build:
    """Put something of another kind where the file was: `replace_by("config.json", os.mkfifo)`."""

    def build(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return build


def bind_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # paths of sockets are at most 107 bytes long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def move_out(name: str) -> Build:
    """Leave a link to the file, which now lies beside the checkpoint directory."""

    def build(folder: Path) -> None:
        target = folder.parent / f"outside-{name}"
        (folder / name).rename(target)
        (folder / name).symlink_to(target)

    return build


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Build:
    """Change the tensors themselves; the file stays well-formed."""

    def build(folder: Path) -> None:
        values = weights(folder)
        change(values)
        save_file({k: v.contiguous() for k, v in values.items()}, folder / WEIGHTS)

    return build


def set_tensor(name: str, make: Callable[[dict[str, Tensor]], Tensor]) -> Build:
    return tensors(lambda values: values.update({name: make(values)}))


def poke(name: str, flat_index: int, value: float) -> Build:
    """Set one element."""
    return tensors(lambda values: values[name].view(-1).__setitem__(flat_index, value))


def raw_header(change: Callable[[bytes], bytes], data: Callable[[bytes], bytes] = bytes) -> Build:
    """Change the bytes of the safetensors header, and of the data behind it."""

    def build(folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack_from("<Q", whole)
        header = change(whole[8 : 8 + length])
        (folder / WEIGHTS).write_bytes(
            struct.pack("<Q", len(header)) + header + data(whole[8 + length :])
        )

    return build


def header(change: Callable[[dict[str, Any]], Any]) -> Build:
    """Change the parsed safetensors header in place."""

    def edit(raw: bytes) -> bytes:
        value = json.loads(raw)
        change(value)
        return json.dumps(value).encode()

    return raw_header(edit)


def entry(**changes: Any) -> Build:
    """Change fields of the header's entry for Q0."""
    return header(lambda value: value[Q0].update(changes))


def shards(names: tuple[str, str] = ("model-1.safetensors", "model-2.safetensors")) -> Build:
    """Split the weights into two shards with an index."""

    def build(folder: Path) -> None:
        values = weights(folder)
        (folder / WEIGHTS).unlink()
        mapping = {name: names[i % 2] for i, name in enumerate(sorted(values))}
        for shard in names:
            (folder / shard).parent.mkdir(exist_ok=True)
            part = {n: values[n] for n, place in mapping.items() if place == shard}
            save_file(part, folder / shard)
        write_json(folder / INDEX, {"metadata": {"total_size": 1}, "weight_map": mapping})

    return build


def index(change: Callable[[dict[str, Any]], Any]) -> Build:
    """Split into shards, then change the index's weight_map in place."""

    def build(folder: Path) -> None:
        shards()(folder)
        value = json.loads((folder / INDEX).read_text())
        change(value["weight_map"])
        write_json(folder / INDEX, value)

    return build


def keep_single(then: Build) -> Build:
    """Split into shards, put the single file back beside them, then change something."""

    def build(folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        shards()(folder)
        (folder / WEIGHTS).write_bytes(whole)
        then(folder)

    return build


def steps(*builds: Build) -> Build:
    def build(folder: Path) -> None:
        for one in builds:
            one(folder)

    return build
