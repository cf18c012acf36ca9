"""The metadata of a GGUF file -> a config.json with today's Hugging Face keys."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcast.exporter.checkpoint.files import open_regular, read_into
from lmcast.exporter.checkpoint.gguf.header import Entry, Header
from lmcast.exporter.checkpoint.gguf.metadata import Metadata
from lmcast.exporter.dtypes import COMPUTED

FREQUENCIES = "rope_freqs.weight"  # what each rotary frequency is divided by
GEMMA3_PERIOD = 6  # every sixth layer attends to everything, unless the file says otherwise
GEMMA3_27B_LAYERS = 62  # the one size whose softmax scale is not that of its head (llama.cpp too)


@dataclass(frozen=True)
class Family:
    """How one architecture of GGUF differs from its Hugging Face form."""

    model_type: str
    model_class: str
    activation: dict[str, str]
    permuted: bool = False  # rows of q and k: interleaved pairs instead of halves
    norm_offset: float = 0.0  # added to every norm weight in the file


FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", {"hidden_act": "silu"}, permuted=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", {"hidden_act": "silu"}),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", {"hidden_act": "silu"}),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {"hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
    ),
}


def family(metadata: Metadata) -> Family:
    """Return the file's family, or raise CheckpointError."""
    name = metadata.architecture
    if name not in FAMILIES:
        raise metadata.error(
            f"general.architecture is {name!r}; accepted: {', '.join(FAMILIES)}. Use the original"
            " Hugging Face checkpoint instead"
        )
    return FAMILIES[name]


def hugging_face_config(header: Header, metadata: Metadata) -> dict[str, Any]:
    """Return the config; every key that the file's family needs is there or it is refused."""
    kind, own = family(metadata), metadata.own
    hidden = metadata.integer(own("embedding_length"))
    heads = metadata.integer(own("attention.head_count"))
    config: dict[str, Any] = {
        "architectures": [kind.model_class],
        "model_type": kind.model_type,
        "dtype": _dtype(header),
        "vocab_size": _vocabulary(header, metadata),
        "hidden_size": hidden,
        "intermediate_size": metadata.integer(own("feed_forward_length")),
        "num_hidden_layers": metadata.integer(own("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer(own("attention.head_count_kv"), heads),
        "head_dim": _head_dim(metadata, hidden, heads),
        "rms_norm_eps": metadata.number(own("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": metadata.integer(own("context_length")),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": _any_ends(header, ("_q.bias", "_k.bias", "_v.bias", "_output.bias")),
        **kind.activation,
    }
    if kind.model_type == "llama":
        config["mlp_bias"] = _any_ends(header, ("_gate.bias", "_up.bias", "_down.bias"))
    if config["num_hidden_layers"] > len(header.tensors):
        raise metadata.error(
            f"{own('block_count')} is {config['num_hidden_layers']}, but the file has"
            f" {len(header.tensors)} tensors; it is damaged"
        )
    rope = _rope(header, metadata, config["head_dim"])
    if kind.model_type == "gemma3_text":
        config |= _gemma3(metadata, config, rope)
    else:
        config["rope_parameters"] = rope
    return config


def _dtype(header: Header) -> str:
    """The precision of the matrices; norms are stored in F32 whatever the rest is."""
    kinds = {entry.kind.name for entry in header.tensors.values() if len(entry.shape) > 1}
    names = {dtype.safetensors: name for name, dtype in COMPUTED.items()}  # ggml's, too
    return names.get("".join(kinds), "float32")


def _vocabulary(header: Header, metadata: Metadata) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise metadata.error("tensor 'token_embd.weight' is missing or has not two axes")
    rows = embedding.shape[0]
    if metadata.integer(metadata.own("vocab_size"), rows) != rows:
        raise metadata.error(
            f"{metadata.own('vocab_size')} disagrees with the {rows} rows of 'token_embd.weight'"
        )
    return rows


def _head_dim(metadata: Metadata, hidden: int, heads: int) -> int:
    key = metadata.own("attention.key_length")
    if not metadata.has(key) and hidden % heads:
        raise metadata.error(f"{key} is missing and {hidden} is not a multiple of {heads} heads")
    width = metadata.integer(key, hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        other = metadata.integer(metadata.own(name), width)
        if other != width:
            raise metadata.error(
                f"{metadata.own(name)} is {other}; only the head's {width} is accepted"
            )
    if width % 2:
        raise metadata.error(f"heads are {width} wide; only an even width can be rotated")
    return width


def _any_ends(header: Header, ends: tuple[str, ...]) -> bool:
    return any(name.endswith(ends) for name in header.tensors)


def _rope(header: Header, metadata: Metadata, head_dim: int) -> dict[str, Any]:
    own = metadata.own
    theta = metadata.number(own("rope.freq_base"), 10000.0)
    kind = metadata.text(own("rope.scaling.type"), "none")
    rope = {"rope_type": "default", "rope_theta": theta}
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": metadata.number(own("rope.scaling.factor"))}
        original = own("rope.scaling.original_context_length")
        if kind == "yarn":
            rope["original_max_position_embeddings"] = metadata.integer(original)
    elif kind != "none":
        raise metadata.error(
            f"{own('rope.scaling.type')} is {kind!r}; accepted: none, linear, yarn"
        )
    factors = header.tensors.get(FREQUENCIES)
    if factors is None:
        return rope
    if kind != "none" or metadata.architecture != "llama":
        raise metadata.error(
            f"tensor {FREQUENCIES!r} is only accepted in llama without rope.scaling"
        )
    return rope | _llama3(_factors(factors, metadata, head_dim), metadata, theta)


def _factors(entry: Entry, metadata: Metadata, head_dim: int) -> np.ndarray:
    """Return the values of rope_freqs.weight, float32 [head_dim / 2]."""
    if entry.kind.name != "F32" or entry.shape != (head_dim // 2,):
        raise metadata.error(
            f"tensor {FREQUENCIES!r} is {entry.kind.name} {list(entry.shape)}; accepted: F32"
            f" [{head_dim // 2}]"
        )
    raw = bytearray(entry.nbytes)
    with open_regular(entry.path) as descriptor:
        read_into(descriptor, memoryview(raw), entry.offset, entry.path)
    return np.frombuffer(raw, "<f4")


def _llama3(factors: np.ndarray, metadata: Metadata, theta: float) -> dict[str, Any]:
    """The llama3 rope whose formula gives these factors; its inputs are not in the file.

    All of Llama 3.1 to 3.3 share low 1, high 4 and 8192 original positions; the factor itself is
    what the longest wavelength is divided by.
    """
    low, high, original, factor = 1.0, 4.0, 8192, float(factors[-1])
    if (factors == 1).all():
        return {}
    index = np.arange(len(factors))
    turns = original * theta ** (-index / len(factors)) / (2 * np.pi)  # per original context
    smooth = (np.clip(turns, low, high) - low) / (high - low)
    with np.errstate(all="ignore"):
        expected = 1 / ((1 - smooth) / factor + smooth)
        # 1e-4: the converter evaluates it in float32 and the blend magnifies that by the factor.
        if not np.allclose(factors, expected, rtol=1e-4, atol=0):
            raise metadata.error(
                f"tensor {FREQUENCIES!r} holds factors other than Llama 3.1's formula gives; use"
                " the original Hugging Face checkpoint instead"
            )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _gemma3(metadata: Metadata, config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    own, layers = metadata.own, config["num_hidden_layers"]
    period = metadata.integer(own("attention.sliding_window_pattern"), GEMMA3_PERIOD)
    local = metadata.number(own("rope.freq_base_swa"), 10000.0)
    scale = config["head_dim"]
    if layers == GEMMA3_27B_LAYERS:
        scale = config["hidden_size"] // config["num_attention_heads"]
    out = {
        "sliding_window": metadata.integer(own("attention.sliding_window")),
        "layer_types": [
            "sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)
        ],
        "query_pre_attn_scalar": scale,
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }
    if metadata.has(own("final_logit_softcapping")):
        out["final_logit_softcapping"] = metadata.number(own("final_logit_softcapping"))
    return out
