"""The variants of Granite 4.0 and Bamba: Mamba-2 with attention in some layers."""

from typing import Any

FAMILIES = {
    "bamba": ("BambaConfig", "BambaForCausalLM"),
    "granitemoehybrid": ("GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM"),
}

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
