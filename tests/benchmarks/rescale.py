"""The same function with other weights: what was once rounded to a grid no longer lies on one.

Channels between norms and linear layers, up and down, values and output are multiplied with random
factors on one side and divided by them on the other. Small models that can be had are 4-bit GGUF,
which formats of 4 bits would otherwise store better than any real weight.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmcast.exporter.checkpoint import open_checkpoint

# Of a model_type: which norm is before the feed-forward, and what is added to the weights of norms.
NORMS = {
    "llama": ("post_attention_layernorm", 0.0),
    "gemma3_text": ("pre_feedforward_layernorm", 1.0),
}
SPREAD = 0.25  # standard deviation of the factors' logarithms: two of three within 0.78 to 1.28


def write(checkpoint: Path, directory: Path, seed: int = 0, spread: float = SPREAD) -> None:
    """Write a checkpoint with other weights of the same function; accepted: NORMS."""
    source = open_checkpoint(checkpoint)
    directory.mkdir(parents=True)
    names = list(source.tensors)
    tensors = rescaled(source.config, names, source.read, seed, spread)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    texts, config = source.texts, {**source.config, "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    if texts.tokenizer is not None:
        (directory / "tokenizer.json").write_bytes(texts.tokenizer)
        special = json.dumps(dict(texts.special_tokens))
        (directory / "tokenizer_config.json").write_text(special, encoding="utf-8")
    if "default" in texts.chat_templates:
        file = directory / "chat_template.jinja"
        file.write_text(texts.chat_templates["default"], encoding="utf-8")


def rescaled(
    config: dict[str, Any],
    names: list[str],
    read: Callable[[str], Tensor],
    seed: int = 0,
    spread: float = SPREAD,
) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint in fp32, rescaled in pairs; accepted: NORMS."""
    pre_ffn, offset = NORMS[config["model_type"]]
    random = torch.Generator().manual_seed(seed)
    tensors = {name: read(name).float().clone() for name in names}

    def factors(size: int) -> Tensor:
        return torch.exp(spread * torch.randn(size, generator=random))

    groups = config["num_attention_heads"] // config["num_key_value_heads"]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        parts = {
            f"{layer}.input_layernorm": [f"{attention}.{x}_proj" for x in "qkv"],
            f"{layer}.{pre_ffn}": [f"{mlp}.{x}_proj" for x in ("gate", "up")],
            f"{mlp}.up_proj": [f"{mlp}.down_proj"],
            f"{attention}.v_proj": [f"{attention}.o_proj"],
        }
        for before, after in parts.items():
            weight = tensors[f"{before}.weight"]
            factor = factors(len(weight))
            if weight.dim() == 1:
                scaled = (weight + offset) * factor - offset
            else:
                scaled = weight * factor[:, None]
            tensors[f"{before}.weight"] = scaled
            if before.endswith("v_proj"):  # each of its heads serves a group of query heads
                heads = factor.unflatten(0, (config["num_key_value_heads"], -1))
                factor = heads.repeat_interleave(groups, 0).flatten()
            for name in after:
                tensors[f"{name}.weight"] /= factor
    return tensors
