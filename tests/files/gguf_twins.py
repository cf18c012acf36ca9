"""Tiny checkpoints as GGUF, by the rules of llama.cpp's converter, written a second time.

Names are those of the gguf package's own table; what happens to values is written here from the
converter, in its direction and in numpy, and shares nothing with the reader under test.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from files.gguf import write_keys

Config = dict[str, Any]
Arrays = dict[str, np.ndarray]
# A pattern of names, and what a tensor of that name becomes, under names made of the match.
Rules = dict[str, Callable[[Config, np.ndarray], Arrays]]
NAMED = {  # GGUF's key: the names in config.json, of which the first that is there counts
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token"),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
}
GATING = ("score_func", "scoring_func", "moe_router_activation_func")


def positions(c: Config) -> Config:
    """rope_parameters of the layers that attend to everything."""
    found = c.get("rope_parameters") or c.get("rope_scaling") or {}
    found = found.get("full_attention", found)
    return {"rope_theta": c.get("rope_theta", 10000.0), **found}


def common(c: Config) -> Config:
    """The keys that the converter writes for all architectures."""
    out: Config = {"block_count": c["num_hidden_layers"]}
    for key, names in NAMED.items():
        given = [c[name] for name in names if c.get(name) is not None]
        out |= {key: given[0]} if given else {}
    rope = positions(c)
    out["rope.freq_base"] = float(rope["rope_theta"])
    if rope.get("rope_type", rope.get("type")) == "yarn":
        out |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        }
        for ours, theirs in (
            ("attention_factor", "attn_factor"),
            ("beta_fast", "beta_fast"),
            ("beta_slow", "beta_slow"),
        ):
            if rope.get(ours) is not None:
                out[f"rope.scaling.yarn_{theirs}"] = float(rope[ours])
    local = (c.get("rope_parameters") or {}).get("sliding_attention", {}).get("rope_theta")
    local = c.get("rope_local_base_freq", local)
    if local:
        out["rope.freq_base_swa"] = float(local)
    scores = [c[name] for name in GATING if name in c]
    return out | ({"expert_gating_func": {"softmax": 1, "sigmoid": 2}[scores[0]]} if scores else {})


def head_dim(c: Config) -> int:
    return int(c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])


def pairs(c: Config, rows: np.ndarray) -> np.ndarray:
    """Rows of heads in halves -> pairs that rotate together, one row after the other."""
    width, out = head_dim(c), np.empty_like(rows)
    for row in range(len(rows)):
        head, within = divmod(row, width)
        turn, half = within % (width // 2), within // (width // 2)
        out[head * width + 2 * turn + half] = rows[row]
    return out


def same(change: Callable[[Config, np.ndarray], np.ndarray]) -> Callable[..., Arrays]:
    """A tensor that keeps its name."""
    return lambda c, values: {r"\g<0>": change(c, values)}


PAIRED: Rules = {r".*\.(q|k)_proj\.(weight|bias)": same(pairs)}
PLUS_ONE: Rules = {r"(?!.*linear_attn\.norm).*norm\.weight": same(lambda _, values: values + 1)}
MEMBER = re.compile(r"(.*(?:experts|altup_\w+))\.(\d+)((?:\.\w+)?\.weight)")


def out_first(_: Config, values: np.ndarray) -> Arrays:
    gate, up = np.split(values, 2, axis=1)
    return {r"\1.gate_proj.weight": gate, r"\1.up_proj.weight": up}


STACKS: Rules = {
    r"(.*experts)\.gate_up_proj": out_first,
    r"(.*experts)\.down_proj": lambda _, values: {r"\1.down_proj.weight": values},
}


def minus_exp(_: Config, values: np.ndarray) -> np.ndarray:
    return -torch.exp(torch.from_numpy(values)).numpy()


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A tiny checkpoint and how it is converted.

    case: its name in tests/tiny. arch: the name of the GGUF architecture; named_as: that of another
    with the same tensors, where the package does not have it. changes: keys set in its
    config.json, where a file of GGUF says nothing and all releases agree. keys: those beside the
    common ones, None where one is not written. extra: tensors that the config becomes. rounded:
    ends of our names of parameters that come back in float32 with the error of one rounding.
    differs: fields of the config that are said in another way.
    """

    case: str
    arch: str
    named_as: str | None = None
    changes: Config = field(default_factory=dict)
    keys: Callable[[Config], Config] = lambda _: {}
    rules: Rules = field(default_factory=dict)
    extra: Callable[[Config], Arrays] = lambda _: {}
    rounded: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()

    def write(
        self,
        path: Path,
        config: Config,
        tensors: dict[str, Tensor],
        packed: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    ) -> Path:
        """Write a GGUF file of a Hugging Face checkpoint, in F32 but for names that end as in
        `packed`."""
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        named = kinds[self.named_as or self.arch]
        table = gguf.get_tensor_name_map(named, config["num_hidden_layers"])
        writer = gguf.GGUFWriter(path, self.arch)
        keys = {k: v for k, v in (common(config) | self.keys(config)).items() if v is not None}
        write_keys(writer, {f"{self.arch}.{key}": value for key, value in keys.items()})
        for name, values in self._converted(config, tensors).items():
            stem, dot, suffix = name.rpartition(".")
            if suffix not in ("weight", "bias"):
                stem, dot, suffix = name, "", ""
            theirs = "token_embd" if stem == "model.embed_tokens" else table.get_name(stem)
            assert theirs is not None, name
            final, stored = f"{theirs}{dot}{suffix}", np.ascontiguousarray(values)
            kind = next((k for end, k in (packed or {}).items() if final.endswith(end)), None)
            if kind is not None:
                stored = gguf.quants.quantize(stored, kind)
            writer.add_tensor(final, stored, raw_dtype=kind)
        for name, values in self.extra(config).items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _converted(self, config: Config, tensors: dict[str, Tensor]) -> Arrays:
        given = _stacked({name: value.float().numpy() for name, value in tensors.items()})
        for pattern, change in self.rules.items():  # one after the other
            out: Arrays = {}
            for name, values in given.items():
                match = re.fullmatch(pattern, name)
                made = {name: values} if match is None else change(config, values)
                out |= {(match.expand(n) if match else n): v for n, v in made.items()}
            given = out
        return given


def _stacked(tensors: Arrays) -> Arrays:
    """Matrices of experts and streams one by one -> one tensor of all."""
    out: Arrays = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, values in tensors.items():
        match = MEMBER.fullmatch(name)
        if match is None:
            out[name] = values
        else:
            stacks.setdefault(f"{match[1]}{match[3]}", {})[int(match[2])] = values
    return out | {n: np.stack([v[e] for e in range(len(v))]) for n, v in stacks.items()}


def windows(c: Config) -> Config:
    kinds = c.get("layer_types")
    pattern = kinds and [kind == "sliding_attention" for kind in kinds]
    return {
        "attention.sliding_window": c["sliding_window"],
        "attention.sliding_window_pattern": pattern,
    }


def olmo3(c: Config) -> Config:
    """Its factor of attention has two names."""
    return {**windows(c), "rope.scaling.attn_factor": positions(c)["attention_factor"]}


def rotated(c: Config) -> Config:
    """rope.dimension_count of Llama and its kin, and the vocabulary."""
    return {"rope.dimension_count": head_dim(c), "vocab_size": c["vocab_size"]}


def partly(default: float) -> Callable[[Config], Config]:
    def keys(c: Config) -> Config:
        share = positions(c).get("partial_rotary_factor", c.get("partial_rotary_factor", default))
        return {"rope.dimension_count": int(head_dim(c) * share)}

    return keys


def ministral(c: Config) -> Config:
    rope = positions(c)
    return {
        **rotated(c),
        "rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"],
        "attention.temperature_scale": rope["llama_4_scaling_beta"],
    }


def granite(c: Config) -> Config:
    return {
        **rotated(c),
        "attention.key_length": None,
        "attention.value_length": None,
        "attention.scale": float(c["attention_multiplier"]),
        "embedding_scale": float(c["embedding_multiplier"]),
        "residual_scale": float(c["residual_multiplier"]),
        "logit_scale": float(c["logits_scaling"]),
    }


def qwen3moe(c: Config) -> Config:
    return {"expert_feed_forward_length": c["moe_intermediate_size"]}


def gemma2(c: Config) -> Config:
    return {
        "rope.freq_base": None,
        "attention.sliding_window": c["sliding_window"],
        "attn_logit_softcapping": c["attn_logit_softcapping"],
        "final_logit_softcapping": c["final_logit_softcapping"],
    }


def gemma3(c: Config) -> Config:
    return {"attention.sliding_window": c["sliding_window"]}


def gemma3n(c: Config) -> Config:
    normal = torch.distributions.Normal(0.0, 1.0)
    share = torch.tensor(c["activation_sparsity_pattern"], dtype=torch.float32)
    return {
        **windows(c),
        "final_logit_softcapping": c["final_logit_softcapping"],
        "altup.active_idx": c["altup_active_idx"],
        "altup.num_inputs": c["altup_num_inputs"],
        "embedding_length_per_layer_input": c["hidden_size_per_layer_input"],
        "attention.shared_kv_layers": c["num_kv_shared_layers"],
        "activation_sparsity_scale": normal.icdf(share).tolist(),
    }


def phi3(c: Config) -> Config:
    rope = positions(c)
    original = rope.get("original_max_position_embeddings") or c.get(
        "original_max_position_embeddings"
    )
    scale = c["max_position_embeddings"] / original
    factor = np.sqrt(1 + np.log(scale) / np.log(original)) if scale > 1 else 1.0
    share = rope.get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0))
    return {
        "attention.key_length": None,
        "attention.value_length": None,
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(factor) if "long_factor" in rope else None,
        "rope.dimension_count": int(share * c["hidden_size"]) // c["num_attention_heads"],
        "attention.sliding_window": c.get("sliding_window") or 0,
    }


GEMMA3N: Rules = {r"(.*_scale)": lambda _, values: {r"\1.weight": values}}


def factors(c: Config) -> Arrays:
    rope = positions(c)
    return {
        f"rope_factors_{name}.weight": np.array(rope[f"{name}_factor"], np.float32)
        for name in ("long", "short")
        if f"{name}_factor" in rope
    }


def gpt_oss(c: Config) -> Config:
    return {
        "attention.sliding_window": c["sliding_window"],
        "expert_feed_forward_length": c["intermediate_size"],
    }


def by_turns(_: Config, values: np.ndarray) -> Arrays:
    rows = np.swapaxes(values, 1, 2)
    return {r"\1.gate_proj.weight": rows[:, ::2], r"\1.up_proj.weight": rows[:, 1::2]}


GPT_OSS: Rules = {
    r"(.*\.sinks)": lambda _, values: {r"\1.weight": values},
    r"(.*experts)\.gate_up_proj": by_turns,
    r"(.*experts)\.gate_up_proj_bias": lambda _, values: {
        r"\1.gate_proj.bias": values[:, ::2],
        r"\1.up_proj.bias": values[:, 1::2],
    },
    r"(.*experts)\.down_proj": lambda _, v: {r"\1.down_proj.weight": np.swapaxes(v, 1, 2)},
    r"(.*experts)\.down_proj_bias": lambda _, values: {r"\1.down_proj.bias": values},
}


def latent(c: Config) -> Config:
    rope, nope = c["qk_rope_head_dim"], c["qk_nope_head_dim"]
    everything = positions(c).get("mscale_all_dim")
    return {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": c["q_lora_rank"],
        "attention.kv_lora_rank": c["kv_lora_rank"],
        "attention.key_length": c["kv_lora_rank"] + rope,
        "attention.value_length": c["kv_lora_rank"],
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": c["v_head_dim"],
        "rope.dimension_count": rope,
        "rope.scaling.yarn_log_multiplier": everything and 0.1 * everything,
    }


def unabsorbed(c: Config) -> Config:
    return {
        "attention.head_count_kv": c["num_attention_heads"],
        "attention.key_length": c["qk_nope_head_dim"] + c["qk_rope_head_dim"],
        "attention.value_length": c["v_head_dim"],
        "attention.key_length_mla": None,
        "attention.value_length_mla": None,
    }


def experts(c: Config) -> Config:
    """Of DeepSeek and GLM."""
    return {
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_shared_count": c["n_shared_experts"],
        "leading_dense_block_count": c["first_k_dense_replace"],
        "expert_weights_scale": float(c["routed_scaling_factor"]),
        "expert_weights_norm": c["norm_topk_prob"],
        "expert_gating_func": 2,
    }


def absorbed(c: Config, values: np.ndarray) -> Arrays:
    """kv_b_proj: the rows of each head are those of its keys, then those of its values."""
    nope, width = c["qk_nope_head_dim"], c["qk_nope_head_dim"] + c["v_head_dim"]
    each = [values[head * width : (head + 1) * width] for head in range(c["num_attention_heads"])]
    return {
        r"\1.k_b_proj.weight": np.stack([rows[:nope].T for rows in each]),
        r"\1.v_b_proj.weight": np.stack([rows[nope:] for rows in each]),
    }


LATENT: Rules = {
    **STACKS,
    r"(.*)\.kv_b_proj\.weight": absorbed,
    r"(.*e_score_correction)_bias": lambda _, values: {r"\1.bias": values},
}


def llama4(c: Config) -> Config:
    return {
        **rotated(c),
        "feed_forward_length": c["intermediate_size_mlp"],
        "expert_feed_forward_length": c["intermediate_size"],
        "interleave_moe_layer_step": c["interleave_moe_layer_step"],
    }


def in_first(_: Config, values: np.ndarray) -> Arrays:
    gate, up = np.split(np.swapaxes(values, 1, 2), 2, axis=1)
    return {r"\1.gate_proj.weight": gate, r"\1.up_proj.weight": up}


LLAMA4: Rules = {
    r"(.*experts)\.gate_up_proj": in_first,
    r"(.*experts)\.down_proj": lambda _, v: {r"\1.down_proj.weight": np.swapaxes(v, 1, 2)},
}


def afmoe(c: Config) -> Config:
    return {
        **rotated(c),
        "expert_shared_count": c["num_shared_experts"],
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "leading_dense_block_count": c["num_dense_layers"],
        "expert_weights_norm": c["route_norm"],
        "expert_weights_scale": c["route_scale"],
        "attention.sliding_window": c["sliding_window"],
    }


def minimax(c: Config) -> Config:
    return {
        "expert_feed_forward_length": c["intermediate_size"],
        "rope.dimension_count": c["rotary_dim"],
    }


def delta(c: Config) -> Config:
    kinds = c.get("layer_types")
    every = c.get("full_attention_interval", 4)
    return {
        **partly(0.25)(c),
        "expert_feed_forward_length": c.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": c.get("shared_expert_intermediate_size"),
        "ssm.conv_kernel": c["linear_conv_kernel_dim"],
        "ssm.state_size": c["linear_key_head_dim"],
        "ssm.group_count": c["linear_num_key_heads"],
        "ssm.time_step_rank": c["linear_num_value_heads"],
        "ssm.inner_size": c["linear_value_head_dim"] * c["linear_num_value_heads"],
        "attention.recurrent_layers": kinds and [kind == "linear_attention" for kind in kinds],
        "full_attention_interval": every,
    }


def qwen35(c: Config) -> Config:
    sections = positions(c).get("mrope_section", [11, 11, 10])
    return {**delta(c), "rope.dimension_sections": [*sections, 0]}


def by_kind(c: Config, values: np.ndarray) -> Arrays:
    """in_proj_qkvz: of each head of keys its query, key, values and gates."""
    keys, ratio = c["linear_num_key_heads"], c["linear_num_value_heads"]
    key, value = c["linear_key_head_dim"], c["linear_value_head_dim"] * ratio // keys
    rows = values.reshape(keys, 2 * (key + value), -1)
    ends = [0, key, 2 * key, 2 * key + value, 2 * (key + value)]
    q, k, v, z = (rows[:, a:b].reshape(-1, values.shape[1]) for a, b in pairwise(ends))
    return {r"\1.in_proj_qkv.weight": np.concatenate([q, k, v]), r"\1.in_proj_z.weight": z}


def tiled(c: Config, rows: np.ndarray, width: int) -> np.ndarray:
    """Heads of values by heads of keys -> the first of each, then the second, row by row."""
    keys = c["linear_num_key_heads"]
    ratio = c["linear_num_value_heads"] // keys
    order = [
        (key * ratio + turn) * width + row
        for turn in range(ratio)
        for key in range(keys)
        for row in range(width)
    ]
    return rows[order]


def tiled_behind(c: Config, rows: np.ndarray) -> np.ndarray:
    start = 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"]
    values = tiled(c, rows[start:], c["linear_value_head_dim"])
    return np.concatenate([rows[:start], values])


def _value(c: Config, rows: np.ndarray) -> np.ndarray:
    return tiled(c, rows, c["linear_value_head_dim"])


DELTA: Rules = {
    **STACKS,
    **PLUS_ONE,
    r".*\.A_log": same(minus_exp),
    r"(.*)\.dt_bias": lambda _, values: {r"\1.dt_proj.bias": values},
    r".*\.conv1d\.weight": same(lambda _, values: values.squeeze()),
}
TILED: Rules = {
    r".*linear_attn\.(in_proj_qkv|conv1d)\.weight": same(tiled_behind),
    r".*linear_attn\.in_proj_z\.weight": same(_value),
    r".*linear_attn\.in_proj_[ab]\.weight": same(lambda c, rows: tiled(c, rows, 1)),
    r".*linear_attn\.(A_log|dt_bias)": same(lambda c, rows: tiled(c, rows, 1)),
    r".*linear_attn\.out_proj\.weight": same(lambda c, values: _value(c, values.T).T),
}


def mamba(c: Config) -> Config:
    return {
        "ssm.conv_kernel": c["mamba_d_conv"],
        "ssm.state_size": c["mamba_d_state"],
        "ssm.group_count": c["mamba_n_groups"],
        "ssm.inner_size": c["mamba_expand"] * c["hidden_size"],
        "ssm.time_step_rank": c["mamba_n_heads"],
    }


def granitehybrid(c: Config) -> Config:
    kinds, kv_heads = c["layer_types"], c["num_key_value_heads"]
    return {
        **granite(c),
        **mamba(c),
        "attention.head_count_kv": [kv_heads if kind == "attention" else 0 for kind in kinds],
        "expert_shared_feed_forward_length": c["shared_intermediate_size"],
        "rope.scaling.finetuned": c["position_embedding_type"] == "rope",
    }


def bamba(c: Config) -> Config:
    full, kv_heads = c["attn_layer_indices"], c["num_key_value_heads"]
    layers = range(c["num_hidden_layers"])
    return {
        **rotated(c),
        **mamba(c),
        "attention.head_count_kv": [kv_heads if i in full else 0 for i in layers],
        "rope.dimension_count": c["attn_rotary_emb"],
        "rope.scaling.finetuned": True,
    }


def fused(c: Config, values: np.ndarray) -> Arrays:
    gate, up = np.split(values, 2)
    stem = r"\1.mlp.shared_expert" if c["num_local_experts"] else r"\1.mlp"
    return {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}


def fused_down(c: Config, values: np.ndarray) -> Arrays:
    stem = r"\1.mlp.shared_expert" if c["num_local_experts"] else r"\1.mlp"
    return {f"{stem}.down_proj.weight": values}


MAMBA: Rules = {
    **PAIRED,
    r".*\.A_log": same(lambda c, values: minus_exp(c, values)[:, None]),
    r".*\.D": same(lambda _, values: values[:, None]),
    r"(.*)\.dt_bias": lambda _, values: {r"\1.dt_proj.bias": values},
    r".*\.conv1d\.weight": same(lambda _, values: values.squeeze()),
}


def grouped(name: str) -> Callable[[Config, np.ndarray], np.ndarray]:
    return lambda c, values: values.reshape(c[name], -1)


def nemotron(c: Config) -> Config:
    kv_heads, pattern = c["num_key_value_heads"], c["hybrid_override_pattern"]
    return {
        "vocab_size": c["vocab_size"],
        "feed_forward_length": [c["intermediate_size"] * (kind == "-") for kind in pattern],
        "attention.head_count_kv": [kv_heads * (kind == "*") for kind in pattern],
        "attention.layer_norm_epsilon": c["layer_norm_epsilon"],
        "attention.layer_norm_rms_epsilon": None,
        "ssm.conv_kernel": c["conv_kernel"],
        "ssm.state_size": c["ssm_state_size"],
        "ssm.group_count": c["n_groups"],
        "ssm.inner_size": c["mamba_num_heads"] * c["mamba_head_dim"],
        "ssm.time_step_rank": c["mamba_num_heads"],
        "rope.scaling.finetuned": False,
    }


def nemotron_moe(c: Config) -> Config:
    inner, pattern = c["moe_intermediate_size"], c["hybrid_override_pattern"]
    return {
        **nemotron(c),
        "feed_forward_length": [inner * (kind == "E") for kind in pattern],
        "expert_feed_forward_length": inner,
        "expert_shared_feed_forward_length": c["moe_shared_expert_intermediate_size"],
        "expert_shared_count": c["n_shared_experts"],
        "expert_weights_norm": c["norm_topk_prob"],
        "expert_weights_scale": float(c["routed_scaling_factor"]),
        "moe_latent_size": c["moe_latent_size"],
    }


NEMOTRON: Rules = {
    **MAMBA,
    r".*\.mixer\.norm\.weight": same(grouped("n_groups")),
    r"(.*)\.dt_proj\.bias": lambda _, values: {r"\1.dt.bias": values},
    r"(.*e_score_correction)_bias": lambda _, values: {r"\1.bias": values},
    r"backbone\.layers\.(\d+)\.mixer\.experts\.(.*)": lambda _, values: {
        r"model.layers.\1.mlp.experts.\2": values
    },
}


def dsa(c: Config) -> Config:
    kinds = c.get("indexer_types")
    return {
        **latent(c),
        **experts(c),
        "attention.indexer.head_count": c["index_n_heads"],
        "attention.indexer.key_length": c["index_head_dim"],
        "attention.indexer.top_k": c["index_topk"],
        "attention.indexer.types": kinds and [kind == "full" for kind in kinds],
    }


def kimi(c: Config) -> Config:
    linear = c["linear_attn_config"]
    full = [i + 1 in linear["full_attn_layers"] for i in range(c["num_hidden_layers"])]
    return {
        **latent(c),
        "vocab_size": c["vocab_size"],
        "attention.value_length": c["head_dim"],
        "attention.head_count_kv": [int(is_full) for is_full in full],
        "ssm.conv_kernel": linear["short_conv_kernel_size"],
        "kda.head_dim": linear["head_dim"],
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_shared_count": c["num_shared_experts"],
        "leading_dense_block_count": c["first_k_dense_replace"],
        "expert_weights_scale": c["routed_scaling_factor"],
    }


KIMI: Rules = {
    **LATENT,
    r".*\.A_log": same(minus_exp),
    r"(.*)\.dt_bias": lambda _, values: {r"\1.dt_proj.bias": values},
    r".*\.[qkv]_conv1d\.weight": same(lambda _, values: values.reshape(1, len(values), 1, -1)),
}
GRANITE: Rules = {
    **MAMBA,
    r".*\.mamba\.norm\.weight": same(grouped("mamba_n_groups")),
    r"(.*)\.shared_mlp\.input_linear\.weight": fused,
    r"(.*)\.shared_mlp\.output_linear\.weight": fused_down,
    r"(.*\.block_sparse_moe)\.input_linear\.weight": lambda _, values: {
        r"\1.experts.w1.weight": np.split(values, 2, axis=1)[0],
        r"\1.experts.w3.weight": np.split(values, 2, axis=1)[1],
    },
}
