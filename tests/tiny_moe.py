"""The variants of the families with experts in every kind of layer but no other peculiarity."""

from typing import Any

from tiny_configs import YARN

FAMILIES = {
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
}

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3_moe": {
        "plain": {**EXPERTS, "head_dim": 16},
        "renormalized, bias, tied": {
            **EXPERTS,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        "dense layers, window, gelu": {
            **EXPERTS,
            "num_experts": 5,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "use_sliding_window": True,
            "sliding_window": 8,
            "hidden_act": "gelu_pytorch_tanh",
        },
        "all experts, yarn": {
            **EXPERTS,
            "num_experts_per_tok": 8,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, **YARN},
        },
    },
}

RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3_moe": {
        "Qwen3-30B-A3B": {
            **EXPERTS,
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "head_dim": 16,
            "hidden_act": "silu",
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "output_router_logits": False,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000.0,
            "router_aux_loss_coef": 0.001,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
        }
    },
}
