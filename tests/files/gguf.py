"""Small GGUF files for the tests, written with the gguf package's writer as llama.cpp does."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, LAYERS, VOCAB = 4, 2, 64, 256, 512, 2, 40
BASE: dict[str, Any] = {
    "block_count": LAYERS,
    "context_length": 128,
    "embedding_length": HIDDEN,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {"rope.dimension_count": HEAD_DIM, "vocab_size": VOCAB},
    "qwen2": {},
    "qwen3": {},
    "gemma3": {"attention.sliding_window": 16},
}
NORMS = {
    "llama": ("attn_norm", "ffn_norm"),
    "qwen2": ("attn_norm", "ffn_norm"),
    "qwen3": ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"),
    "gemma3": (
        "attn_norm",
        "ffn_norm",
        "attn_q_norm",
        "attn_k_norm",
        "post_attention_norm",
        "post_ffw_norm",
    ),
}
BIASES = {"qwen2": ("attn_q", "attn_k", "attn_v")}
MATRICES = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def values(arch: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Return float32 tensors of a tiny model, by their names in the file."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for name in NORMS[arch]:
            width = HEAD_DIM if name in ("attn_q_norm", "attn_k_norm") else HIDDEN
            shapes[f"blk.{layer}.{name}.weight"] = (width,)
        for name, shape in MATRICES.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
        for name in BIASES.get(arch, ()):
            shapes[f"blk.{layer}.{name}.bias"] = MATRICES[name][:1]
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def stored(array: np.ndarray, kind: str) -> tuple[np.ndarray, str]:
    """Return one tensor as the file holds it: norms in F32, the rest quantized to `kind`."""
    if array.ndim == 1:
        return array, "F32"
    return quants.quantize(array, GGMLQuantizationType[kind]), kind


# Where a block of each kind has its numbers in fp16.
HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,),
}  # fmt: skip


def random_blocks(kind: str, rows: int, columns: int, size: float = 1.0) -> np.ndarray:
    """Blocks of random bits whose scales are finite, of about this size."""
    width, length = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    random = np.random.default_rng(1)
    blocks = random.integers(0, 256, (rows * columns // width, length), np.uint8)
    for offset in HALVES[kind]:
        scale = (size * random.standard_normal((len(blocks), 1))).astype("<f2")
        blocks[:, offset : offset + 2] = scale.view(np.uint8)
    return blocks.reshape(rows, -1)


def write_keys(writer: GGUFWriter, keys: dict[str, Any]) -> None:
    """Add metadata: a Python int as uint32, a float as float32; None is left out."""
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)


def write_gguf(
    path: Path,
    arch: str,
    tensors: dict[str, tuple[np.ndarray, str]],
    metadata: dict[str, Any] | None = None,
    general: dict[str, Any] | None = None,
    alignment: int = 32,
) -> Path:
    """Write a file; `metadata` overrides the model's own keys, and None removes one, or all.

    `general` holds full keys. Values are written as by `write_keys`.
    """
    writer = GGUFWriter(path, arch)
    writer.add_name("tiny")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    own = {} if metadata is None else BASE | EXTRA.get(arch, {}) | metadata
    write_keys(writer, {f"{arch}.{name}": v for name, v in own.items()} | (general or {}))
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_gguf(
    path: Path,
    arch: str = "llama",
    kind: str = "F16",
    metadata: dict[str, Any] | None = None,
    general: dict[str, Any] | None = None,
    **replaced: tuple[np.ndarray, str],
) -> Path:
    """Write a whole tiny model; `replaced` adds or replaces tensors, '__' standing for '.'."""
    tensors = {name: stored(array, kind) for name, array in values(arch).items()}
    tensors |= {name.replace("__", "."): tensor for name, tensor in replaced.items()}
    return write_gguf(path, arch, tensors, metadata or {}, general)
