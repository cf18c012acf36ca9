"""The variants of MiniMax-Text-01 and M1, in Hugging Face's spelling and in their own."""

from typing import Any

from tiny.configs import FULL, YARN

CLASSES = ("MiniMaxConfig", "MiniMaxForCausalLM")
FAMILIES = dict.fromkeys(("minimax", "minimax_m1", "minimax_text_01"), CLASSES)
LINEAR = "linear_attention"
GAIN = 3.5565588200778455

EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24}
LONG = {**EXPERTS, "max_position_embeddings": 1 << 20}
GAINS = {
    "full_attn_alpha_factor": 2.5,
    "full_attn_beta_factor": 1.3,
    "linear_attn_alpha_factor": 3.5,
    "linear_attn_beta_factor": 0.8,
    "mlp_alpha_factor": 1.5,
    "mlp_beta_factor": 0.7,
}
# What all files of the hub say, but for sizes and theta.
HUB: dict[str, Any] = {
    **LONG,
    "head_dim": 16,
    "hidden_act": "silu",
    "num_hidden_layers": 4,
    "output_router_logits": False,
    "postnorm": True,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000,
    "rotary_dim": 8,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
}
OWN: dict[str, Any] = {
    **HUB,
    "attn_type_list": [0, 0, 0, 1],
    "layernorm_full_attention_alpha": GAIN,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": GAIN,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_alpha": GAIN,
    "layernorm_mlp_beta": 1.0,
}
M1 = {"architectures": ["MiniMaxM1ForCausalLM"], "model_type": "minimax_m1"}
TEXT_01 = {"architectures": ["MiniMaxText01ForCausalLM"], "model_type": "minimax_text_01"}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "minimax": {
        "plain": EXPERTS,
        "gains, wide heads, blocks": {
            **LONG,
            **GAINS,
            "block_size": 16,
            "head_dim": 16,
            "num_hidden_layers": 5,
            "layer_types": [LINEAR, LINEAR, FULL, LINEAR, LINEAR],
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
        "all linear, six heads, tied": {
            **LONG,
            "head_dim": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "layer_types": [LINEAR] * 3,
            "tie_word_embeddings": True,
        },
        "window, yarn, gelu, all experts": {
            **EXPERTS,
            "num_local_experts": 5,
            "num_experts_per_tok": 5,
            "head_dim": 24,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 0.05,
            "sliding_window": 8,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, **YARN},
        },
    },
    "minimax_m1": {
        "whole heads, other gains": {
            **M1,
            **EXPERTS,
            "attn_type_list": [1, 0, 1],
            "layernorm_full_attention_alpha": 2.5,
            "layernorm_full_attention_beta": 1.3,
            "layernorm_mlp_beta": 0.7,
            "postnorm": True,
        },
    },
    "minimax_text_01": {
        "a quarter, all linear but one": {
            **TEXT_01,
            **OWN,
            "attn_type_list": [0, 1, 0, 0],
            "rotary_dim": 4,
            "shared_intermediate_size": [0],
        },
    },
}

RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "minimax": {
        "MiniMax-M1-40k-hf": {
            "architectures": ["MiniMaxForCausalLM"],
            "model_type": "minimax",
            **HUB,
            "layer_types": [LINEAR, LINEAR, LINEAR, FULL],
            **{key: GAIN if "alpha" in key else 1.0 for key in GAINS},
        }
    },
    "minimax_m1": {"MiniMax-M1-80k": {**M1, **OWN}},
    "minimax_text_01": {"MiniMax-Text-01": {**TEXT_01, **OWN}},
}
