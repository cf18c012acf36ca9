"""The giants whose layers are mostly linear attention, as they are published in bfloat16.

The layers that predict further tokens are not in these files, nor in what their makers count.
"""

from collections.abc import Iterator
from typing import Any

from giants.latents import Tensor, gated

QWEN3_NEXT_80B: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}

FULL = [4, 8, 12, 16, 20, 24, 27]  # layers of Kimi Linear, from 1
KIMI_LINEAR_48B: dict[str, Any] = {
    "architectures": ["KimiLinearForCausalLM"],
    "bos_token_id": 163584,
    "eos_token_id": 163586,
    "first_k_dense_replace": 1,
    "head_dim": 72,
    "hidden_act": "silu",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "kv_lora_rank": 512,
    "linear_attn_config": {
        "full_attn_layers": FULL,
        "head_dim": 128,
        "kda_layers": [n for n in range(1, 28) if n not in FULL],
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
    "mla_use_nope": True,
    "model_max_length": 1048576,
    "model_type": "kimi_linear",
    "moe_intermediate_size": 1024,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 32,
    "num_expert_group": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_hidden_layers": 27,
    "num_key_value_heads": 32,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.446,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "use_grouped_topk": True,
    "v_head_dim": 128,
    "vocab_size": 163840,
}

NEMOTRON_3_NANO: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "attention_bias": False,
    "chunk_size": 128,
    "conv_kernel": 4,
    "expand": 2,
    "head_dim": 128,
    "hidden_size": 2688,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "intermediate_size": 1856,
    "layer_norm_epsilon": 1e-05,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "mamba_num_heads": 64,
    "mamba_proj_bias": False,
    "max_position_embeddings": 262144,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "model_type": "nemotron_h",
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_group": 1,
    "n_groups": 8,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 52,
    "num_key_value_heads": 2,
    "residual_in_fp32": False,
    "routed_scaling_factor": 2.5,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_conv_bias": True,
    "vocab_size": 131072,
}

Shapes = dict[str, tuple[int, ...]]


def _of(at: str, shapes: Shapes, dtype: str = "BF16") -> Iterator[Tensor]:
    for name, shape in shapes.items():
        yield f"{at}.{name}", dtype, shape


def _two_norms(at: str, dim: int) -> Iterator[Tensor]:
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{at}.{name}.weight", "BF16", (dim,)


def qwen3_next(c: dict[str, Any]) -> Iterator[Tensor]:
    dim, inner, shared = (
        c[key]
        for key in ("hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size")
    )
    yield "model.embed_tokens.weight", "BF16", (c["vocab_size"], dim)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        if (i + 1) % c["full_attention_interval"]:
            yield from _of(f"{at}.linear_attn", delta_net(c))
        else:
            yield from _of(f"{at}.self_attn", gated_attention(c))
        gates: Shapes = {
            "gate.weight": (c["num_experts"], dim),
            "shared_expert_gate.weight": (1, dim),
        }
        yield from _of(f"{at}.mlp", gates)
        for e in range(c["num_experts"]):
            yield from gated(f"{at}.mlp.experts.{e}", dim, inner)
        yield from gated(f"{at}.mlp.shared_expert", dim, shared)
        yield from _two_norms(at, dim)
    yield "model.norm.weight", "BF16", (dim,)
    yield "lm_head.weight", "BF16", (c["vocab_size"], dim)


def delta_net(c: dict[str, Any], apart: bool = False) -> Shapes:
    """apart: as Qwen3.5 has its inputs, one matrix each."""
    dim, heads, value_width = (
        c[key] for key in ("hidden_size", "linear_num_value_heads", "linear_value_head_dim")
    )
    keys = c["linear_num_key_heads"] * c["linear_key_head_dim"]
    values = heads * value_width
    rows = {"ba": 2 * heads, "qkvz": 2 * keys + 2 * values}
    if apart:
        rows = {"a": heads, "b": heads, "qkv": 2 * keys + values, "z": values}
    return {
        "A_log": (heads,),
        "conv1d.weight": (2 * keys + values, 1, c["linear_conv_kernel_dim"]),
        "dt_bias": (heads,),
        **{f"in_proj_{name}.weight": (count, dim) for name, count in rows.items()},
        "norm.weight": (value_width,),
        "out_proj.weight": (dim, values),
    }


def gated_attention(c: dict[str, Any]) -> Shapes:
    dim, head = c["hidden_size"], c["head_dim"]
    queries, keys = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    return {
        "q_proj.weight": (2 * queries, dim),  # with gates
        "k_proj.weight": (keys, dim),
        "v_proj.weight": (keys, dim),
        "o_proj.weight": (dim, queries),
        "q_norm.weight": (head,),
        "k_norm.weight": (head,),
    }


def kimi_linear(c: dict[str, Any]) -> Iterator[Tensor]:
    dim, inner = c["hidden_size"], c["moe_intermediate_size"]
    yield "model.embed_tokens.weight", "BF16", (c["vocab_size"], dim)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        if i + 1 in c["linear_attn_config"]["full_attn_layers"]:
            yield from _of(f"{at}.self_attn", _latents(c))
        else:
            yield from _kimi_delta(f"{at}.self_attn", c)
        if i < c["first_k_dense_replace"]:
            yield from gated(f"{at}.mlp", dim, c["intermediate_size"])
        else:
            experts = f"{at}.block_sparse_moe"
            yield f"{experts}.gate.weight", "BF16", (c["num_experts"], dim)
            yield f"{experts}.gate.e_score_correction_bias", "F32", (c["num_experts"],)
            for e in range(c["num_experts"]):
                matrices = {"w1.weight": (inner, dim), "w2.weight": (dim, inner)}
                yield from _of(f"{experts}.experts.{e}", {**matrices, "w3.weight": (inner, dim)})
            yield from gated(f"{experts}.shared_experts", dim, inner * c["num_shared_experts"])
        yield from _two_norms(at, dim)
    yield "model.norm.weight", "BF16", (dim,)
    yield "lm_head.weight", "BF16", (c["vocab_size"], dim)


def _latents(c: dict[str, Any]) -> Shapes:
    dim, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    plain, more, values = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    return {
        "q_proj.weight": (heads * (plain + more), dim),
        "kv_a_proj_with_mqa.weight": (rank + more, dim),
        "kv_a_layernorm.weight": (rank,),
        "kv_b_proj.weight": (heads * (plain + values), rank),
        "o_proj.weight": (dim, heads * values),
    }


def _kimi_delta(at: str, c: dict[str, Any]) -> Iterator[Tensor]:
    linear, dim = c["linear_attn_config"], c["hidden_size"]
    heads, width, taps = (linear[k] for k in ("num_heads", "head_dim", "short_conv_kernel_size"))
    inner = heads * width
    yield from _of(at, {"A_log": (1, 1, heads, 1), "dt_bias": (inner,)}, "F32")
    for name in "qkv":
        own = {f"{name}_proj.weight": (inner, dim), f"{name}_conv1d.weight": (inner, 1, taps)}
        yield from _of(at, own)
    for name in "fg":
        own = {f"{name}_a_proj.weight": (width, dim), f"{name}_b_proj.weight": (inner, width)}
        yield from _of(at, own)
    rest = {"b_proj.weight": (heads, dim), "o_norm.weight": (width,), "o_proj.weight": (dim, inner)}
    yield from _of(at, rest)


def nemotron_h(c: dict[str, Any]) -> Iterator[Tensor]:
    dim = c["hidden_size"]
    yield "backbone.embeddings.weight", "BF16", (c["vocab_size"], dim)
    for i, kind in enumerate(c["hybrid_override_pattern"]):
        at = f"backbone.layers.{i}"
        yield f"{at}.norm.weight", "BF16", (dim,)
        if kind == "M":
            yield from _of(f"{at}.mixer", _mamba(c))
        elif kind == "*":
            head = c["head_dim"]
            queries, keys = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
            shapes = {"q": (queries, dim), "k": (keys, dim), "v": (keys, dim), "o": (dim, queries)}
            own: Shapes = {f"{name}_proj.weight": shape for name, shape in shapes.items()}
            yield from _of(f"{at}.mixer", own)
        else:
            yield from _ungated_experts(f"{at}.mixer", c)
    yield "backbone.norm_f.weight", "BF16", (dim,)
    yield "lm_head.weight", "BF16", (c["vocab_size"], dim)


def _mamba(c: dict[str, Any]) -> Shapes:
    dim, heads = c["hidden_size"], c["mamba_num_heads"]
    inner = heads * c["mamba_head_dim"]
    channels = inner + 2 * c["n_groups"] * c["ssm_state_size"]
    return {
        "A_log": (heads,),
        "D": (heads,),
        "conv1d.bias": (channels,),
        "conv1d.weight": (channels, 1, c["conv_kernel"]),
        "dt_bias": (heads,),
        "in_proj.weight": (inner + channels + heads, dim),
        "norm.weight": (inner,),
        "out_proj.weight": (dim, inner),
    }


def _ungated_experts(at: str, c: dict[str, Any]) -> Iterator[Tensor]:
    dim, experts = c["hidden_size"], c["n_routed_experts"]
    yield f"{at}.gate.weight", "BF16", (experts, dim)
    yield f"{at}.gate.e_score_correction_bias", "F32", (experts,)
    widths = {f"experts.{e}": c["moe_intermediate_size"] for e in range(experts)}
    for name, inner in {
        **widths,
        "shared_experts": c["moe_shared_expert_intermediate_size"],
    }.items():
        own = {"up_proj.weight": (inner, dim), "down_proj.weight": (dim, inner)}
        yield from _of(f"{at}.{name}", own)
