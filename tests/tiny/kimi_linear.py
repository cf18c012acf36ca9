"""The variants of Kimi Linear."""

import re
from typing import Any

FAMILIES = {"kimi_linear": ("KimiLinearConfig", "KimiLinearForCausalLM")}

LINEAR, FULL = "linear_attention", "full_attention"
SIZES: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "kv_lora_rank": 16,
    "moe_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
SMALL = {
    **SIZES,
    "linear_head_dim": 12,
    "linear_num_heads": 3,
    "num_hidden_layers": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def on_the_hub(name: str) -> str:
    """Return the name of a tensor on the hub, of that which save_pretrained writes."""
    return re.sub(r"\.block_sparse_moe\.((gate|up|down)_proj\.)", r".mlp.\1", name)


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "kimi_linear": {
        "plain": {**SMALL, "layer_types": [LINEAR, LINEAR, LINEAR, FULL]},
        "by default, groups, two taps": {
            **SMALL,
            "linear_conv_kernel_dim": 2,
            "n_group": 4,
            "norm_topk_prob": False,
            "num_experts_per_tok": 3,
            "num_hidden_layers": 6,
            "topk_group": 2,
        },
        "queries of latents, bias, gelu": {
            **SMALL,
            "attention_bias": True,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_types": [FULL, LINEAR, FULL],
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "n_shared_experts": 2,
            "num_hidden_layers": 3,
            "q_lora_rank": 20,
            "rms_norm_eps": 0.05,
        },
        "linear alone, one tap": {
            **SMALL,
            "layer_types": [LINEAR] * 3,
            "linear_conv_kernel_dim": 1,
            "linear_head_dim": 20,
            "num_hidden_layers": 3,
            "routed_scaling_factor": 1.0,
        },
    }
}

# As the files of the hub have them, but for sizes.
RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "kimi_linear": {
        "Kimi-Linear-48B-A3B": {
            **SIZES,
            "first_k_dense_replace": 1,
            "head_dim": 72,
            "hidden_act": "silu",
            "linear_attn_config": {
                "full_attn_layers": [4, 5],
                "head_dim": 12,
                "kda_layers": [1, 2, 3],
                "num_heads": 3,
                "short_conv_kernel_size": 4,
            },
            "max_position_embeddings": 1048576,
            "mla_use_nope": True,
            "model_max_length": 1048576,
            "moe_layer_freq": 1,
            "moe_renormalize": True,
            "moe_router_activation_func": "sigmoid",
            "num_expert_group": 1,
            "num_experts": 8,
            "num_experts_per_token": 2,
            "num_hidden_layers": 5,
            "num_nextn_predict_layers": 0,
            "num_shared_experts": 1,
            "q_lora_rank": None,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "routed_scaling_factor": 2.446,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "use_grouped_topk": True,
        }
    }
}
