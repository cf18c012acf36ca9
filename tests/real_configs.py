"""Prints what lmcast reads in config.json files of released models: parameters, as counted here, by
Hugging Face's classes, and as published.

files/real_configs.json has the files, one a line, without what tells of other models than the text
(vision_config), and what must be found in each: `parameters`, by Hugging Face's class of the same
config, tied ones once; `published`, what its makers say, of which `beside` is not counted here.
`layers` of a model have every kind of layer that it has. `quantized` are sections of releases, of
these layers and 16 experts: that of config.json, in its text_config where `within` says so, or of
hf_quant_config.json. `also` are further files that say the same. A line with `refused` has no
definition.

`python tests/real_configs.py` prints the table.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from decimal import Decimal
from math import floor
from pathlib import Path
from typing import Any

import torch
from tiny import CLASSES
from tiny.minimax_files import as_hugging_face

from lmcast.graphs import archs
from lmcast.graphs.archs.multimodal import Multimodal
from lmcast.graphs.blocks.decoder import Decoder

Config = dict[str, Any]
TIE = "tie_word_embeddings"
REAL: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "files" / "real_configs.json").read_text()
)
UNITS = {"B": 10**9, "T": 10**12}


def named(refused: bool = False) -> Iterator[str]:
    """Yield the names of the files that are read, or of those that are refused."""
    return (name for name, entry in REAL.items() if ("refused" in entry) == refused)


def agrees(count: int, published: str) -> bool:
    """Tell whether a count is one in published digits, as '1.7B' or '550B', rounded or cut off."""
    number = Decimal(published[:-1]).normalize()
    step = Decimal(10) ** int(number.as_tuple().exponent)
    value = Decimal(count) / UNITS[published[-1]] / step
    return number / step in (round(value), floor(value))


def on_meta(config: Config) -> Decoder:
    """Return our model of a config on meta, without any tensors."""
    arch, within, raw = archs.get(archs.name_of(config)), "", config
    if isinstance(arch, Multimodal):
        arch, raw = arch.text(config, {})
        within = "text_config."
    with torch.device("meta"):
        model: Decoder = arch.build(arch.read(raw, (), within))
    return model


def as_text(config: Config) -> Config:
    """Return the config of the text alone, as Hugging Face's class of it takes it."""
    if "text_config" not in config:
        return config
    outer = {TIE: config[TIE]} if TIE in config else {}
    return {**outer, **config["text_config"]}


def hugging_face(config: Config) -> Any:
    """Return Hugging Face's config of the text."""
    import transformers

    text = deepcopy(as_text(config))  # Hugging Face writes into what is nested
    name = text.pop("model_type")
    made = getattr(transformers, CLASSES[name][0])
    return made(**as_hugging_face(text)) if name.startswith("minimax_m1") else made.from_dict(text)


def count_by_hugging_face(config: Config) -> int:
    """Return the number of parameters, and of what is stored like them, that its class has."""
    import transformers

    cls = getattr(transformers, CLASSES[as_text(config)["model_type"]][1])
    with torch.device("meta"):
        stored = cls(hugging_face(config)).state_dict(keep_vars=True)
    kept = {n: t for n, t in stored.items() if not n.endswith(("_decay", "slope_rate"))}
    return sum({id(tensor): tensor.numel() for tensor in kept.values()}.values())


def cut(config: Config, layers: int) -> Config:
    """Return a config of the first layers alone: lists and words with an entry for each are cut."""
    text = dict(config.get("text_config", config))
    pattern = text.get("hybrid_override_pattern") or text.get("layers_block_type") or ""
    whole = text.get("num_hidden_layers", len(pattern))
    for key, value in text.items():
        if isinstance(value, list | str) and len(value) == whole:
            text[key] = value[:layers]
        elif key in ("attn_layer_indices", "moe_layers", "mlp_only_layers") and value:
            text[key] = [i for i in value if i < layers]
    if "num_hidden_layers" in text:
        text["num_hidden_layers"] = layers
    return {**config, "text_config": text} if "text_config" in config else text


# What each key of a size becomes, whatever it was; a head keeps its share that rotates.
SMALL = {
    "attention_chunk_size": 8,
    "attn_rotary_emb": 8,
    "head_dim": 32,
    "hidden_size": 64,
    "index_head_dim": 16,
    "index_topk": 8,
    "intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "kv_lora_rank": 16,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_value_head_dim": 24,
    "mamba_d_head": 16,
    "mamba_d_state": 12,
    "mamba_head_dim": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 16,
    "moe_intermediate_size": 40,
    "moe_latent_size": 24,
    "moe_shared_expert_intermediate_size": 48,
    "n_routed_experts": 16,
    "num_experts": 16,
    "num_local_experts": 16,
    "pad_token_id": 0,
    "q_lora_rank": 24,
    "qk_head_dim": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "query_pre_attn_scalar": 32,
    "rotary_dim": 16,
    "shared_expert_intermediate_size": 48,
    "shared_intermediate_size": 48,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "ssm_state_size": 12,
    "time_step_min": 1e-7,  # see tests/tiny/nemotron.py
    "v_head_dim": 12,
    "vocab_size": 97,
}


ROUTES = ("num_experts_per_tok", "experts_per_token")
EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")


def with_few_experts(config: Config) -> Config:
    """Return a config of full width with 16 experts in a layer."""
    text = config.get("text_config", config)
    few: Config = {key: SMALL[key] for key in EXPERTS if text.get(key)}
    few |= {key: min(text[key], 6) for key in ROUTES if few and text.get(key)}
    small = {**text, **few}
    return {**config, "text_config": small} if "text_config" in config else small


def shrunken(config: Config, layers: int) -> Config:
    """Return a config with every key that it has, but of a small model, with all kinds of layers.

    Numbers of heads keep their ratios up to 2, so grouped ones stay grouped.
    """
    short = cut(config, layers)
    text = short.get("text_config", short)
    small = {key: SMALL[key] for key in text if text[key] and key in SMALL}
    heads, kv_heads = text["num_attention_heads"], text.get("num_key_value_heads")
    small["num_attention_heads"] = 4
    if kv_heads is not None:
        small["num_key_value_heads"] = 4 if kv_heads == heads else 2
    if "linear_num_value_heads" in text:
        ratio = text["linear_num_value_heads"] // text["linear_num_key_heads"]
        small["linear_num_value_heads"] = 2 * ratio
    for key in ROUTES:
        if text.get(key):
            small[key] = min(text[key], 6)
    small = {**text, **small}
    return {**config, "text_config": small} if "text_config" in config else small


def table() -> list[tuple[str, ...]]:
    """Return the rows: name, model_type, our count, Hugging Face's, what is published."""
    rows: list[tuple[str, ...]] = []
    for name, entry in REAL.items():
        kind = str(archs.name_of(entry["config"]))
        if "refused" in entry:
            rows.append((name, kind, "refused", "", entry["refused"]))
            continue
        mine = sum(parameter.numel() for parameter in on_meta(entry["config"]).parameters())
        theirs = count_by_hugging_face(entry["config"])
        said = " with its ".join(entry[key] for key in ("published", "beside") if key in entry)
        rows.append((name, kind, f"{mine:,}", f"{theirs:,}", said))
    return rows


def main() -> None:
    head = ("config.json of", "model_type", "parameters", "by Hugging Face", "published")
    rows = [head, *table()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    main()
