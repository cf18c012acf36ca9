"""The variants of the families with experts in every kind of layer but no other peculiarity."""

from typing import Any

from tiny.configs import FULL, SLIDING, YARN
from tiny.family import Change, Family
from tiny.llama import DROP

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GLM = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MINIMAX = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 24}
TRINITY = {**EXPERTS, "num_hidden_layers": 4, "sliding_window": 8, "head_dim": 8}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "afmoe": {
        "plain": {**TRINITY, "num_shared_experts": 1},
        "mup, scale, bias, two dense": {
            **TRINITY,
            "head_dim": 16,
            "num_experts_per_tok": 3,
            "num_shared_experts": 2,
            "num_dense_layers": 2,
            "route_scale": 2.826,
            "mup_enabled": True,
            "attention_bias": True,
        },
        "layer types, MHA, no dense, tied": {
            **TRINITY,
            "num_hidden_layers": 3,
            "layer_types": [FULL, SLIDING, FULL],
            "num_key_value_heads": None,
            "num_dense_layers": 0,
            "num_shared_experts": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
        "every second full, yarn, all dense": {
            **TRINITY,
            "global_attn_every_n_layers": 2,
            "num_dense_layers": 4,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, **YARN},
        },
    },
    "glm4_moe": {
        "plain": {**GLM, "first_k_dense_replace": 1},
        "groups, scale, bias, norms": {
            **GLM,
            "head_dim": 16,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 0,
            "use_qk_norm": True,
            "attention_bias": True,
        },
        "as they are, a quarter, two dense, tied": {
            **GLM,
            "head_dim": 16,
            "norm_topk_prob": False,
            "first_k_dense_replace": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.25},
            "tie_word_embeddings": True,
        },
        "all experts, whole heads, yarn": {
            **GLM,
            "n_routed_experts": 4,
            "num_experts_per_tok": 4,
            "partial_rotary_factor": 1.0,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, **YARN},
        },
        "all dense": {**GLM, "first_k_dense_replace": 3},
    },
    "minimax_m2": {
        "plain": {**MINIMAX, "head_dim": 8},
        "a quarter, tied": {
            **MINIMAX,
            "head_dim": 16,
            "rotary_dim": 4,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": True,
        },
        "MQA, yarn on half, gelu": {
            **MINIMAX,
            "head_dim": 16,
            "num_key_value_heads": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.5,
                **YARN,
            },
        },
        "all experts": {**MINIMAX, "head_dim": 8, "num_local_experts": 5, "num_experts_per_tok": 5},
    },
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
    "afmoe": {
        "Trinity-Mini": {
            **TRINITY,
            "global_attn_every_n_layers": 4,
            "hidden_act": "silu",
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
            "load_balance_coeff": 0.001,
            "mup_enabled": True,
            "n_group": 1,
            "num_dense_layers": 2,
            "num_expert_groups": 1,
            "num_limited_groups": 1,
            "num_shared_experts": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 1000,
            "route_norm": True,
            "route_scale": 2.826,
            "score_func": "sigmoid",
            "tie_word_embeddings": False,
            "topk_group": 1,
            "use_grouped_mm": True,
        }
    },
    "glm4_moe": {
        "GLM-4.5-Air": {
            **GLM,
            "attention_bias": True,
            "first_k_dense_replace": 1,
            "head_dim": 16,
            "hidden_act": "silu",
            "n_group": 1,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_nextn_predict_layers": 1,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 1000,
            "routed_scaling_factor": 1.0,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "use_qk_norm": False,
        }
    },
    "minimax_m2": {
        "MiniMax-M2": {
            **MINIMAX,
            "attn_type_list": [1, 1, 1],
            "head_dim": 16,
            "hidden_act": "silu",
            "layernorm_full_attention_beta": 1.0,
            "layernorm_linear_attention_beta": 1.0,
            "layernorm_mlp_beta": 1.0,
            "mlp_intermediate_size": 64,
            "mtp_transformer_layers": 1,
            "num_mtp_modules": 3,
            "output_router_logits": False,
            "qk_norm_type": "per_layer",
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000,
            "rotary_dim": 8,
            "router_aux_loss_coef": 0.001,
            "router_jitter_noise": 0.0,
            "scoring_func": "sigmoid",
            "shared_intermediate_size": 0,
            "shared_moe_mode": "sigmoid",
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_mtp": True,
            "use_qk_norm": True,
            "use_routing_bias": True,
        }
    },
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

AIR, M2, MINI = "glm4_moe/GLM-4.5-Air", "minimax_m2/MiniMax-M2", "afmoe/Trinity-Mini"

QWEN3 = "qwen3_moe/Qwen3-30B-A3B"

GROUPED = "glm4_moe/groups, scale, bias, norms"

# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    (AIR, {"norm_topk_prob": False}),
    (AIR, {"routed_scaling_factor": 2.5}),
    (AIR, {"partial_rotary_factor": 0.25}),
    (AIR, {"num_experts_per_tok": 3}),
    (AIR, {"n_group": 2}),
    (GROUPED, {"topk_group": 3}),
    (GROUPED, {"n_group": 2}),
    (M2, {"rotary_dim": 4}),
    (M2, {"rotary_dim": None}),
    (M2, {"num_experts_per_tok": 3}),
    (MINI, {"route_scale": 1.0}),
    (MINI, {"mup_enabled": False}),
    (MINI, {"sliding_window": 7}),
    (MINI, {"layer_types": [SLIDING] * 4}),
    (MINI, {"rope_theta": 900}),
    (QWEN3, {"norm_topk_prob": False}),
    ("qwen3_moe/dense layers, window, gelu", {"sliding_window": 7}),
]

# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, Change] | tuple[str, Change, Change]] = [
    (AIR, {"partial_rotary_factor": DROP}, {}),
    (AIR, {"partial_rotary_factor": None}, {"partial_rotary_factor": 1.0}),
    (AIR, {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1000}}, {}),
    (AIR, {"num_nextn_predict_layers": DROP, "num_mtp_layers": 0}, {}),
    (AIR, {"num_nextn_predict_layers": 0}, {}),
    (AIR, {"moe_router_dtype": "float32"}, {}),
    (QWEN3, {"shared_expert_intermediate_size": 0, "use_qk_norm": True}, {}),
    (QWEN3, {"shared_expert_intermediate_size": None, "use_qk_norm": None}, {}),
    (M2, {"rotary_dim": None, "partial_rotary_factor": 0.5}, {}),
    (M2, {"num_local_experts": DROP, "num_experts": 8}, {}),
    (MINI, {"layer_types": None}, {}),
    (MINI, {"layer_types": [FULL] * 4}, {"layer_types": [FULL] * 4, "rope_theta": 7.0}),
    (MINI, {"num_dense_layers": 2, "global_attn_every_n_layers": 2}, {}),
]

# What define refuses, beside what the command does (malformed_moe).
REFUSED: list[tuple[str, Change, str]] = [
    (QWEN3, {"shared_expert_intermediate_size": 24}, "shared_expert_intermediate_size is 24"),
    (QWEN3, {"use_qk_norm": False}, "use_qk_norm is False"),
    (AIR, {"moe_router_dtype": "float16"}, "moe_router_dtype is 'float16'"),
    (M2, {"attn_type_list": [1, 1]}, "attn_type_list has 2 entries; num_hidden_layers is 3"),
    (M2, {"attn_type_list": [1, 0, 1]}, r"attn_type_list\[1\] is 0"),
    (M2, {"rotary_dim": 32}, "rotary_dim is 32.*head_dim 16"),
    (M2, {"rotary_dim": 8.0}, "rotary_dim is 8.0; accepted: an integer"),
    (M2, {"rotary_dim": 0}, "rotary_dim is 0; accepted: 1"),
    (M2, {"rotary_dim": 5}, "rotary width is 5"),
    (M2, {"partial_rotary_factor": 0.25}, "rotary_dim is 8, but partial_rotary_factor.* 4 of"),
    (M2, {"qk_norm_type": "per_head"}, "qk_norm_type is 'per_head'"),
    (M2, {"use_qk_norm": False}, "use_qk_norm is False"),
    (M2, {"use_routing_bias": False}, "use_routing_bias is False"),
    (M2, {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    (M2, {"shared_intermediate_size": 64}, "shared_intermediate_size is 64"),
    (M2, {"layernorm_mlp_beta": 2.0}, "layernorm_mlp_beta is 2.0"),
    (M2, {"sliding_window": 8}, "sliding_window"),
    (M2, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    (AIR, {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers is -1"),
    (AIR, {"num_local_experts": 4}, "n_routed_experts is 8, but num_local_experts"),
    (AIR, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    (AIR, {"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
    (MINI, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (MINI, {"score_func": "softmax"}, "score_func is 'softmax'"),
]

FAMILY = Family(
    classes={
        "afmoe": ("AfmoeConfig", "AfmoeForCausalLM"),
        "glm4_moe": ("Glm4MoeConfig", "Glm4MoeForCausalLM"),
        "minimax_m2": ("MiniMaxM2Config", "MiniMaxM2ForCausalLM"),
        "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    },
    variants=VARIANTS,
    released=RELEASED,
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
    parameters=dict.fromkeys((GROUPED, M2, "afmoe/mup, scale, bias, two dense"), ()),
)
