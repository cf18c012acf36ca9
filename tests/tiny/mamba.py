"""The variants of Granite 4.0 and Bamba: Mamba-2 with attention in some layers."""

import math
from typing import Any

from tiny.family import Change, Family
from tiny.llama import DROP

MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_chunk_size": 16,
}
ROPE = {"rope_type": "default", "rope_theta": 100.0}
# Steps of 0.9 to 1.4: softplus of dt + dt_bias is often above and below.
LIMITED = {"time_step_limit": [0.9, 1.4]}
BAMBA: dict[str, Any] = {**MAMBA, "attn_layer_indices": [1], "rope_parameters": ROPE}
GRANITE: dict[str, Any] = {
    **MAMBA,
    "intermediate_size": 24,
    "shared_intermediate_size": 40,
    "layer_types": ["mamba", "attention", "mamba"],
    "embedding_multiplier": 3,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.22,
    "logits_scaling": 0.5,
}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bamba": {
        "plain": BAMBA,
        "biases, limits, MHA, tied": {
            **BAMBA,
            **LIMITED,
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "mamba_n_groups": 4,
            "num_key_value_heads": None,
            "tie_word_embeddings": True,
        },
        "wide, two taps, gelu": {
            **BAMBA,
            "mamba_expand": 3,
            "mamba_n_heads": 6,
            "mamba_d_head": "auto",
            "mamba_n_groups": 1,
            "mamba_d_conv": 2,
            "hidden_act": "gelu",
            "head_dim": 16,
            "rms_norm_eps": 0.05,
        },
        "no attention": {**MAMBA, "num_hidden_layers": 2},
    },
    "granitemoehybrid": {
        "plain": GRANITE,
        "positions, limits, biases": {
            **GRANITE,
            **LIMITED,
            "position_embedding_type": "rope",
            "rope_parameters": ROPE,
            "attention_bias": True,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "num_experts_per_tok": 3,
            "hidden_act": "gelu",
        },
        "dense, MHA, gelu, tied": {
            **GRANITE,
            "num_local_experts": 0,
            "num_key_value_heads": None,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
        "no attention": {**GRANITE, "layer_types": None, "num_hidden_layers": 2},
    },
}

_GRANITE4: dict[str, Any] = {
    **MAMBA,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.1,
    "embedding_multiplier": 12,
    "hidden_act": "silu",
    "init_method": "mup",
    "initializer_range": 0.1,
    "intermediate_size": 24,
    "layer_types": ["mamba", "mamba", "attention", "mamba"],
    "logits_scaling": 2,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_proj_bias": False,
    "normalization_function": "rmsnorm",
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "num_local_experts": 8,
    "output_router_logits": False,
    "position_embedding_type": "nope",
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000,
    "router_aux_loss_coef": 0.0001,
    "shared_intermediate_size": 40,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "bamba": {
        "Bamba-9B": {
            **MAMBA,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_layer_indices": [1, 3],
            "attn_rotary_emb": 4,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "mamba_conv_bias": True,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
            "mamba_proj_bias": False,
            "mlp_bias": False,
            "num_hidden_layers": 4,
            "num_logits_to_keep": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        },
    },
    "granitemoehybrid": {
        "granite-4.0-h-tiny": _GRANITE4,
        "granite-4.0-h-1b": {
            **_GRANITE4,
            "num_experts_per_tok": 0,
            "num_local_experts": 0,
        },
        "granite-4.0-micro": {
            **_GRANITE4,
            "layer_types": ["attention"] * 4,
            "num_experts_per_tok": 0,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
        },
    },
}

BAMBA_9B, TINY = "bamba/Bamba-9B", "granitemoehybrid/granite-4.0-h-tiny"

MICRO, BIASES = "granitemoehybrid/granite-4.0-micro", "bamba/biases, limits, MHA, tied"

INFINITY = {"__float__": "Infinity"}

TURNED = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]

# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    (TINY, {"embedding_multiplier": 1}),
    (TINY, {"attention_multiplier": 0.2}),
    (TINY, {"residual_multiplier": 0.5}),
    (TINY, {"logits_scaling": 4}),
    (TINY, {"num_experts_per_tok": 2}),
    (TINY, {"position_embedding_type": "rope"}),
    (TINY, {"rms_norm_eps": 0.05}),
    (TINY, {"hidden_act": "gelu"}),
    (MICRO, {"rope_theta": 10}),
    (MICRO, {"position_embedding_type": None}),
    (BAMBA_9B, {"time_step_limit": [1.2, math.inf]}),
    (BAMBA_9B, {"time_step_limit": [0.0, 1.2]}),
    (BAMBA_9B, {"rope_theta": 100.0}),
    (BIASES, {"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}),
    (BIASES, {"time_step_limit": [0.9, 1.3]}),
]

# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, Change] | tuple[str, Change, Change]] = [
    (TINY, {"time_step_limit": [0.0, math.inf]}, {"time_step_limit": DROP}),
    (TINY, {"time_step_limit": [0.0, INFINITY]}, {"time_step_limit": DROP}),
    (TINY, {"time_step_limit": [0.0, 3.4028234663852886e38]}, {"time_step_limit": DROP}),
    (BAMBA_9B, {"time_step_limit": [0.0, 1e308]}),
    (TINY, {"mamba_d_head": "auto", "mamba_chunk_size": 256}, {}),
    (TINY, {"layer_types": TURNED}, {}),
    (TINY, {"layer_types": DROP, "layers_block_type": TURNED}, {}),
    (TINY, {"position_embedding_type": None, "rope_theta": 7}, {}),
    (MICRO, {"intermediate_size": 7}, {}),
    (BAMBA_9B, {"attn_rotary_emb": None, "partial_rotary_factor": 0.5}, {}),
    (BAMBA_9B, {"rope_theta": DROP, "rope_parameters": {**ROPE, "rope_theta": 10000}}, {}),
    (BAMBA_9B, {"partial_rotary_factor": None, "attn_layer_indices": [3, 1]}, {}),
]

# What define refuses.
REFUSED: list[tuple[str, Change, str]] = [
    (TINY, {"mamba_n_heads": 6}, "mamba_n_heads is 6 and mamba_d_head 8; .* hidden_size, 64"),
    (TINY, {"mamba_n_heads": 6, "mamba_d_head": "auto"}, "mamba_d_head 'auto'; .* fill"),
    (TINY, {"mamba_d_head": 0}, "mamba_d_head is 0; accepted: 1"),
    (TINY, {"mamba_n_groups": 3}, "mamba_n_groups is 3; accepted: a divisor of mamba_n_heads, 8"),
    (TINY, {"time_step_limit": [0.1]}, r"time_step_limit is \[0.1\]; accepted: the least"),
    (TINY, {"time_step_limit": [0.2, 0.1]}, r"time_step_limit is \[0.2, 0.1\]; accepted"),
    (TINY, {"time_step_limit": [1e39, math.inf]}, r"time_step_limit is \[1e\+39, .*; accepted"),
    (MICRO, {"time_step_limit": []}, r"time_step_limit is \[\]; accepted: the least"),
    (TINY, {"time_step_limit": [0.1, None]}, r"time_step_limit\[1\] is None"),
    (BAMBA_9B, {"time_step_limit": [None, 1.4]}, r"time_step_limit\[0\] is None"),
    (TINY, {"time_step_limit": [math.inf, math.inf]}, r"time_step_limit\[0\] is inf"),
    (TINY, {"layer_types": ["mamba"]}, "layer_types has 1 entries; num_hidden_layers is 4"),
    (TINY, {"layer_types": []}, "layer_types has 0 entries; num_hidden_layers is 4"),
    (TINY, {"layer_types": ["mamba", "moe"]}, r"layer_types\[1\] is 'moe'"),
    (TINY, {"layers_block_type": ["mamba"]}, "layer_types is .* but layers_block_type"),
    (TINY, {"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
    (TINY, {"normalization_function": "layernorm"}, "normalization_function is 'layernorm'"),
    (TINY, {"num_experts_per_tok": 0}, "num_experts_per_tok is 0; accepted: 0 only without"),
    (TINY, {"num_experts_per_tok": 9}, "num_experts_per_tok is 9; accepted: at most the 8"),
    (TINY, {"logits_scaling": 0}, "logits_scaling is 0"),
    (TINY, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (BAMBA_9B, {"partial_rotary_factor": 0.25}, "partial_rotary_factor is 0.25; accepted: 0.5"),
    (BAMBA_9B, {"attn_rotary_emb": 8}, "attn_rotary_emb is 8, but rope_parameters make it 4"),
    (
        BAMBA_9B,
        {"attn_layer_indices": [1, 4]},
        "attn_layer_indices lists 4; num_hidden_layers is 4",
    ),
    (BAMBA_9B, {"layer_types": []}, r"layer_types is \[\]; leave it out"),
    (BAMBA_9B, {"layers_block_type": None}, "layers_block_type is None; leave it out"),
    (BAMBA_9B, {"layer_types": None}, "layer_types is None; leave it out"),
    (BAMBA_9B, {"sliding_window": 8}, "sliding_window = 8, which nothing reads"),
]

FAMILY = Family(
    classes={
        "bamba": ("BambaConfig", "BambaForCausalLM"),
        "granitemoehybrid": ("GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM"),
    },
    variants=VARIANTS,
    released=RELEASED,
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
    parameters=dict.fromkeys(
        (BIASES, BAMBA_9B, TINY, "granitemoehybrid/positions, limits, biases", MICRO), ()
    ),
)
