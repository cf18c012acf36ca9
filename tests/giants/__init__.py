"""Checkpoints of full size in files that are holes: real names, shapes, dtypes; no data."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from giants import pictures
from giants.hybrids import (
    KIMI_LINEAR_48B,
    NEMOTRON_3_NANO,
    QWEN3_NEXT_80B,
    kimi_linear,
    nemotron_h,
    qwen3_next,
)
from giants.latents import DEEPSEEK_V3, GLM_5, KIMI_K2, Tensor, latents

BYTES = {"BF16": 2, "F32": 4, "U8": 1}
SHARD = 5 * 10**9  # bytes: where a file ends, as save_pretrained does it

QWEN3_235B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 94,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 1536,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 94,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}

GPT_OSS_120B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}  # fmt: skip


def qwen3_moe(c: dict[str, Any]) -> Iterator[Tensor]:
    dim, inner, head = c["hidden_size"], c["moe_intermediate_size"], c["head_dim"]
    queries, keys = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", "BF16", (c["vocab_size"], dim)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for name, shape in (("q_proj", (queries, dim)), ("k_proj", (keys, dim)),
                            ("v_proj", (keys, dim)), ("o_proj", (dim, queries)),
                            ("q_norm", (head,)), ("k_norm", (head,))):  # fmt: skip
            yield f"{at}.self_attn.{name}.weight", "BF16", shape
        yield f"{at}.mlp.gate.weight", "BF16", (c["num_experts"], dim)
        for e in range(c["num_experts"]):
            for name, shape in (
                ("gate", (inner, dim)),
                ("up", (inner, dim)),
                ("down", (dim, inner)),
            ):
                yield f"{at}.mlp.experts.{e}.{name}_proj.weight", "BF16", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{name}.weight", "BF16", (dim,)
    yield "model.norm.weight", "BF16", (dim,)
    yield "lm_head.weight", "BF16", (c["vocab_size"], dim)


def gpt_oss(c: dict[str, Any]) -> Iterator[Tensor]:
    dim, inner, experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    queries, keys = (
        c["num_attention_heads"] * c["head_dim"],
        c["num_key_value_heads"] * c["head_dim"],
    )
    yield "model.embed_tokens.weight", "BF16", (c["vocab_size"], dim)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for name, rows, columns in (("q", queries, dim), ("k", keys, dim), ("v", keys, dim),
                                    ("o", dim, queries)):  # fmt: skip
            yield f"{at}.self_attn.{name}_proj.weight", "BF16", (rows, columns)
            yield f"{at}.self_attn.{name}_proj.bias", "BF16", (rows,)
        yield f"{at}.self_attn.sinks", "BF16", (c["num_attention_heads"],)
        yield f"{at}.mlp.router.weight", "BF16", (experts, dim)
        yield f"{at}.mlp.router.bias", "BF16", (experts,)
        for name, rows, columns in (("gate_up", 2 * inner, dim), ("down", dim, inner)):
            blocks = (experts, rows, columns // 32)
            yield f"{at}.mlp.experts.{name}_proj_blocks", "U8", (*blocks, 16)
            yield f"{at}.mlp.experts.{name}_proj_scales", "U8", blocks
            yield f"{at}.mlp.experts.{name}_proj_bias", "BF16", (experts, rows)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{name}.weight", "BF16", (dim,)
    yield "model.norm.weight", "BF16", (dim,)
    yield "lm_head.weight", "BF16", (c["vocab_size"], dim)


# Name -> config, tensors, and what its makers publish: parameters, and those active for a token.
GIANTS = {
    "Qwen3-235B-A22B": (QWEN3_235B, qwen3_moe, "235B", "22B"),
    "gpt-oss-120b": (GPT_OSS_120B, gpt_oss, "116.8B", "5.1B"),
    "DeepSeek-V3": (DEEPSEEK_V3, latents, "671B", "37B"),
    "GLM-5": (GLM_5, latents, "744B", "40B"),
    "Kimi-K2": (KIMI_K2, latents, "1T", "32B"),
    "Qwen3-Next-80B-A3B": (QWEN3_NEXT_80B, qwen3_next, "80B", "3B"),
    "Kimi-Linear-48B-A3B": (KIMI_LINEAR_48B, kimi_linear, "48B", "3B"),
    "Nemotron-3-Nano-30B-A3B": (NEMOTRON_3_NANO, nemotron_h, "31.6B", "3.2B"),
    "gemma-3-27b": (pictures.GEMMA_3_27B, pictures.gemma3, "27B", "27B"),
    "Mistral-Small-3.1-24B": (pictures.MISTRAL_SMALL_31, pictures.mistral3, "24B", "24B"),
    "Llama-4-Scout-17B-16E": (pictures.LLAMA_4_SCOUT, pictures.llama4, "109B", "17B"),
    "Qwen3.5-397B-A17B": (pictures.QWEN35_397B, pictures.qwen35_moe, "397B", "17B"),
    "Kimi-K2.5": (pictures.KIMI_K25, pictures.kimi_k25, "1T", "32B"),
}

# Embeddings, of which a token reads a row, are among the active parameters that their makers count.
EMBEDDED = ("Mistral-Small-3.1-24B", "Llama-4-Scout-17B-16E", "Qwen3.5-397B-A17B")

# Parameters that are in the files but, by the arithmetic, not in what is published: of the 49.1B of
# Kimi Linear, the embeddings and the head.
UNCOUNTED = {
    "Kimi-Linear-48B-A3B": 2 * KIMI_LINEAR_48B["vocab_size"] * KIMI_LINEAR_48B["hidden_size"]
}


def cut(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return a config of the first layers alone, with the whole of a tower."""
    if "text_config" in config:
        return {**config, "text_config": cut(config["text_config"], layers)}
    shorter: dict[str, Any] = {"num_hidden_layers": layers}
    for key in ("layer_types", "hybrid_override_pattern"):
        if key in config:
            shorter[key] = config[key][:layers]
    if linear := config.get("linear_attn_config"):
        numbers = {
            key: [n for n in linear[key] if n <= layers]
            for key in ("full_attn_layers", "kda_layers")
        }
        shorter["linear_attn_config"] = {**linear, **numbers}
    return {**config, **shorter}


def make(name: str, directory: Path, layers: int | None = None, wide: bool = False) -> None:
    """Write a giant, or its first layers: megabytes of headers, in files that only look large.

    wide: what is bfloat16 becomes float32.
    """
    config, tensors, *_ = GIANTS[name]
    if layers is not None:
        config = cut(config, layers)
    write(config, tensors(config), directory, wide)


def write(
    config: dict[str, Any], tensors: Iterable[Tensor], directory: Path, wide: bool = False
) -> None:
    """Write a checkpoint of these tensors, likewise."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    for file, all_of in (("preprocessor", pictures.PROCESSORS), ("processor", pictures.OWN)):
        if (known := all_of.get(config["model_type"])) is not None:
            (directory / f"{file}_config.json").write_text(json.dumps(known))
    shards: list[list[Tensor]] = [[]]
    room = SHARD
    for tensor_name, dtype, shape in tensors:
        tensor = (tensor_name, "F32" if wide and dtype == "BF16" else dtype, shape)
        if size(tensor) > room and shards[-1]:
            shards.append([])
            room = SHARD
        room -= size(tensor)
        shards[-1].append(tensor)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= {tensor[0]: file for tensor in shard}
        write_shard(directory / file, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def size(tensor: Tensor) -> int:
    _, dtype, shape = tensor
    count = BYTES[dtype]
    for n in shape:
        count *= n
    return count


def write_shard(file: Path, shard: list[Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in sorted(shard, key=lambda t: (t[1], t[0])):  # as the library sorts
        name, dtype, shape = tensor
        end = begin + size(tensor)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + begin)
