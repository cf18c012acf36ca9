"""Engines of full size without their weights, which are drawn where the engine runs."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEADERS = "headers"  # of the weight files: of linked ones by their numbers in engine.json
CHUNK = 8 << 20
EXPONENTS = (120, 123)  # of the numbers: 2**-7 to 2**-3, with any sign and mantissa
# A file of the engine's own that is larger is made on the machine: a manifest has no hash of it
# that is checked when an engine is loaded.
CARRIED = 16 << 20
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


def shapes() -> dict[str, tuple[dict[str, Any], Iterator[Tensor]]]:
    """Return the config and the tensors of each model. Layers of the last are those of
    Qwen3-Next-80B-A3B, eight, with a quarter of its experts, of which a step reads no more."""
    from giants import GPT_OSS_120B, cut, gpt_oss
    from giants.hybrids import QWEN3_NEXT_80B, qwen3_next

    oss = cut({**GPT_OSS_120B, "num_local_experts": 32}, 24)
    next_like = cut({**QWEN3_NEXT_80B, "num_experts": 128}, 8)
    return {name: (config, qwen3(config)) for name, config in CONFIGS.items()} | {
        "gpt-oss-20b": (oss, gpt_oss(oss)),
        "Qwen3-Next-like": (next_like, qwen3_next(next_like)),
    }


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
    """Write an engine for a checkpoint of holes, without its large files but with their headers."""
    from lmcast.exporter import export

    engine = export(
        checkpoint, place / "engine", "cuda", "bfloat16",
        parity=False, tokenizer=False, full_check=False, sms=(sm,),
    )  # fmt: skip
    (place / HEADERS).mkdir()
    for number, linked in enumerate(engine.manifest.about.linked):
        (place / HEADERS / str(number)).write_bytes(header_of(Path(linked.path)))
    for file in sorted((place / "engine/weights").glob("*")):
        if file.stat().st_size > CARRIED:
            (place / HEADERS / file.name).write_bytes(header_of(file))
            file.unlink()


def header_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        size = opened.read(8)
        return size + opened.read(int.from_bytes(size, "little"))


def linked(place: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((place / "engine/engine.json").read_text())["linked"]
    return found


def fill(place: Path) -> None:
    """Write the files that an engine is without, where it has them, with numbers from a seed."""
    random = np.random.default_rng(0)
    pool = memoryview(drawn(random, 2 * CHUNK))  # drawing them all would take most of the step
    for number, file in enumerate(linked(place)):
        path, header = Path(file["path"]), (place / HEADERS / str(number)).read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, header, pool, random)
        os.utime(path, ns=(file["mtime_ns"], file["mtime_ns"]))
    for at in (place / HEADERS).iterdir():
        if not at.name.isdigit():
            _write(place / "engine/weights" / at.name, at.read_bytes(), pool, random)


def _write(path: Path, header: bytes, pool: memoryview, random: np.random.Generator) -> None:
    tensors = json.loads(header[8:])
    tensors.pop("__metadata__", None)
    with path.open("wb") as out:
        out.write(header)
        for name, tensor in sorted(tensors.items(), key=lambda t: t[1]["data_offsets"]):
            begin, end = tensor["data_offsets"]
            out.seek(len(header) + begin)  # between tensors there may be room
            if "E8M0" in tensor["dtype"] or (tensor["dtype"] == "U8" and "scale" in name):
                out.write(random.integers(*EXPONENTS, end - begin, np.uint8).tobytes())
                continue
            for start in range(begin, end, CHUNK):
                first = 2 * int(random.integers(CHUNK // 2))
                out.write(pool[first : first + min(CHUNK, end - start)])


def drawn(random: np.random.Generator, size: int) -> bytes:
    """Return the bytes of numbers in bf16 that no layer makes NaN or infinite."""
    bits = random.integers(0, 1 << 16, size // 2, np.uint16)
    exponents = random.integers(*EXPONENTS, size // 2, np.uint16, endpoint=True)
    return (bits & 0x807F | exponents << 7).tobytes()


def remove(place: Path) -> None:
    """Remove those files again: the next model needs the room."""
    for folder in {Path(file["path"]).parent for file in linked(place)}:
        shutil.rmtree(folder, ignore_errors=True)
    for at in (place / HEADERS).iterdir():
        (place / "engine/weights" / at.name).unlink(missing_ok=True)
