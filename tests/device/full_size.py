"""Engines of full size without their weights, which are drawn where the engine runs."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEADERS = "headers"  # of the weight files, by their numbers in engine.json
CHUNK = 64 << 20
EXPONENTS = (120, 123)  # of the numbers: 2**-7 to 2**-3, with any sign and mantissa
SHARED: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128,
    "hidden_act": "silu", "max_position_embeddings": 40960, "model_type": "qwen3",
    "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
    "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
CONFIGS = {
    "Qwen3-0.6B": SHARED | {
        "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
        "num_hidden_layers": 28, "tie_word_embeddings": True,
    },
    "Qwen3-8B": SHARED | {
        "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
        "num_hidden_layers": 36, "tie_word_embeddings": False,
    },
}  # fmt: skip
Tensor = tuple[str, str, tuple[int, ...]]


def qwen3(c: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a checkpoint: name, dtype, shape."""
    dim, inner, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    queries, keys = (c[f"num_{n}_heads"] * head for n in ("attention", "key_value"))
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (queries, dim), "self_attn.k_proj": (keys, dim),
        "self_attn.v_proj": (keys, dim), "self_attn.o_proj": (dim, queries),
        "self_attn.q_norm": (head,), "self_attn.k_norm": (head,),
        "mlp.gate_proj": (inner, dim), "mlp.up_proj": (inner, dim), "mlp.down_proj": (dim, inner),
        "input_layernorm": (dim,), "post_attention_layernorm": (dim,),
    }  # fmt: skip
    yield "model.embed_tokens.weight", "BF16", (c["vocab_size"], dim)
    for i in range(c["num_hidden_layers"]):
        yield from ((f"model.layers.{i}.{n}.weight", "BF16", shape) for n, shape in layer.items())
    yield "model.norm.weight", "BF16", (dim,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", "BF16", (c["vocab_size"], dim)


def write(checkpoint: Path, place: Path, sm: int) -> None:
    """Write an engine for a checkpoint of holes, linked, and the headers of its files."""
    from lmcast.exporter import export

    engine = export(
        checkpoint, place / "engine", "cuda", "bfloat16", "link",
        parity=False, tokenizer=False, full_check=False, sms=(sm,),
    )  # fmt: skip
    (place / HEADERS).mkdir()
    for number, linked in enumerate(engine.manifest.about.linked):
        with open(linked.path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            file.seek(0)
            (place / HEADERS / str(number)).write_bytes(file.read(8 + size))


def linked(place: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((place / "engine/engine.json").read_text())["linked"]
    return found


def fill(place: Path) -> None:
    """Write the files that an engine points at, where it does, with numbers from a seed."""
    random = np.random.default_rng(0)
    pool = memoryview(drawn(random, 2 * CHUNK))  # drawing them all would take most of the step
    for number, file in enumerate(linked(place)):
        path, header = Path(file["path"]), (place / HEADERS / str(number)).read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            out.write(header)
            tensors = json.loads(header[8:])
            tensors.pop("__metadata__", None)
            for tensor in sorted(tensors.values(), key=lambda t: t["data_offsets"]):
                for start in range(*tensor["data_offsets"], CHUNK):
                    left = tensor["data_offsets"][1] - start
                    begin = 2 * int(random.integers(CHUNK // 2))
                    out.write(pool[begin : begin + min(CHUNK, left)])
        os.utime(path, ns=(file["mtime_ns"], file["mtime_ns"]))


def drawn(random: np.random.Generator, size: int) -> bytes:
    """Return the bytes of numbers in bf16 that no layer makes NaN or infinite."""
    bits = random.integers(0, 1 << 16, size // 2, np.uint16)
    exponents = random.integers(*EXPONENTS, size // 2, np.uint16, endpoint=True)
    return (bits & 0x807F | exponents << 7).tobytes()


def remove(place: Path) -> None:
    """Remove those files again: the next model needs the room."""
    for folder in {Path(file["path"]).parent for file in linked(place)}:
        shutil.rmtree(folder)
