"""Random weights with the layers of Qwen3-30B-A3B, cut to four of 48."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from random_qwen3 import DTYPES, write_tokenizer
from safetensors.torch import save_file

LAYERS, HIDDEN, MLP, EXPERTS, TOP_K, HEADS, KV_HEADS, WIDTH, VOCAB = (
    4, 2048, 768, 128, 8, 32, 4, 128, 151936,
)  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "eos_token_id": 1,
    "head_dim": WIDTH,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": MLP,
    "norm_topk_prob": True,
    "num_attention_heads": HEADS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}


def layer(index: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    at = f"model.layers.{index}"
    queries, keys = HEADS * WIDTH, KV_HEADS * WIDTH
    for name, shape in (
        ("q_proj", (queries, HIDDEN)), ("k_proj", (keys, HIDDEN)), ("v_proj", (keys, HIDDEN)),
        ("o_proj", (HIDDEN, queries)), ("q_norm", (WIDTH,)), ("k_norm", (WIDTH,)),
    ):  # fmt: skip
        yield f"{at}.self_attn.{name}.weight", shape
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{at}.{name}.weight", (HIDDEN,)
    yield f"{at}.mlp.gate.weight", (EXPERTS, HIDDEN)
    for e in range(EXPERTS):
        for name, shape in (
            ("gate", (MLP, HIDDEN)),
            ("up", (MLP, HIDDEN)),
            ("down", (HIDDEN, MLP)),
        ):
            yield f"{at}.mlp.experts.{e}.{name}_proj.weight", shape


def write(directory: str, dtype: str) -> None:
    """Write the checkpoint, a file for each layer: 12.5 GB in float32, half of it in bfloat16."""
    folder = Path(directory)
    folder.mkdir(parents=True)
    outer = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (VOCAB, HIDDEN))
    files = [{**outer, "model.norm.weight": (HIDDEN,)}, *(dict(layer(i)) for i in range(LAYERS))]
    weight_map = {}
    for number, shapes in enumerate(files, 1):
        random = torch.Generator().manual_seed(number)
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = {key: draw(key, shape, random, DTYPES[dtype]) for key, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"dtype": dtype}, indent=1))
    write_tokenizer(folder)


def draw(
    name: str, shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype
) -> torch.Tensor:
    if "norm" in name:
        return torch.ones(shape, dtype=dtype)
    return (torch.randn(shape, generator=random) / math.sqrt(shape[-1])).to(dtype)
