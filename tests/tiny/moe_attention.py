"""The variants of families with experts whose attention is peculiar too: sinks, chunks, widths."""

from typing import Any

from tiny.configs import FULL, LLAMA3, SLIDING, YARN

FAMILIES = {
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
    "llama4_text": ("Llama4TextConfig", "Llama4ForCausalLM"),
    "mimo_v2_flash": ("MiMoV2FlashConfig", "MiMoV2FlashForCausalLM"),
}

CHUNKED = "chunked_attention"
PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 50.0}

OSS: dict[str, Any] = {
    "head_dim": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "intermediate_size": 24,
    "sliding_window": 8,
    "rope_parameters": PLAIN,
}
LLAMA4: dict[str, Any] = {
    "head_dim": 8,
    "num_hidden_layers": 4,
    "num_local_experts": 4,
    "intermediate_size": 24,
    "intermediate_size_mlp": 48,
    "attention_chunk_size": 8,
    "rope_parameters": PLAIN,
    # Else the shift by one position, and the logarithm, would not show in 37 of them.
    "floor_scale": 4,
    "attn_scale": 0.5,
}
MIMO: dict[str, Any] = {
    "head_dim": 24,  # of which 8 rotate
    "v_head_dim": 12,
    "num_key_value_heads": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "sliding_window": 8,
}
QUARTER: dict[str, Any] = {"rope_type": "default", "partial_rotary_factor": 0.25}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "gpt_oss": {
        "plain": OSS,
        "no rope settings, one expert": {
            key: value for key, value in OSS.items() if key != "rope_parameters"
        }
        | {"num_experts_per_tok": 1},
        "layer types, no bias, tied": {
            **OSS,
            "layer_types": [FULL, SLIDING, SLIDING],
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
        "limits, all experts, yarn": {
            **OSS,
            "num_local_experts": 5,
            "num_experts_per_tok": 5,
            "swiglu_limit": 0.5,
            "swiglu_alpha": 3.0,
            "rope_parameters": {**PLAIN, "rope_type": "yarn", **YARN, "truncate": False},
        },
    },
    "llama4_text": {
        "plain": LLAMA4,
        "dense layers, no norm, bias, tied": {
            **LLAMA4,
            "interleave_moe_layer_step": 2,
            "use_qk_norm": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        "listed layers, two experts, gelu": {
            **LLAMA4,
            "num_experts_per_tok": 2,
            "moe_layers": [0, 3],
            "no_rope_layers": [0, 1, 1, 0],
            "hidden_act": "gelu",
        },
        "layer types, no temperature": {
            **LLAMA4,
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 0, 1],
            "layer_types": [FULL, CHUNKED, CHUNKED],
            "attn_temperature_tuning": False,
            "attention_chunk_size": 5,
        },
        "interval 2, llama3": {
            **LLAMA4,
            "no_rope_layer_interval": 2,
            "num_local_experts": 3,
            "num_experts_per_tok": 3,
            "rope_parameters": {
                **PLAIN,
                "rope_type": "llama3",
                "original_max_position_embeddings": 32,
                **LLAMA3,
            },
        },
    },
    "mimo_v2_flash": {
        "derived layers": {**MIMO, "num_hidden_layers": 7},
        "listed layers, bias, tied, gelu": {
            **MIMO,
            "layer_types": [SLIDING, FULL, SLIDING],
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "attention_bias": True,
            "attention_value_scale": None,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
        },
        "groups, scale, no norm": {
            **MIMO,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": False,
            "routed_scaling_factor": 2.5,
            "attention_value_scale": 1.3,
            "rope_parameters": {
                FULL: {**QUARTER, "rope_theta": 5000.0},
                SLIDING: {**QUARTER, "rope_theta": 50.0},
            },
        },
        "wide values, yarn": {
            **MIMO,
            "head_dim": 16,
            "v_head_dim": 20,
            "num_experts_per_tok": 8,
            "rope_parameters": {
                FULL: {**PLAIN, "rope_type": "yarn", **YARN},
                SLIDING: {**PLAIN, "partial_rotary_factor": 0.5},
            },
        },
        "equal widths": {**MIMO, "v_head_dim": 24},
    },
}

RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "gpt_oss": {
        "gpt-oss-20b": {
            "attention_bias": True,
            "experts_per_token": 2,
            "head_dim": 8,
            "hidden_act": "silu",
            "initial_context_length": 16,
            "intermediate_size": 24,
            "layer_types": [SLIDING, FULL] * 2,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 4,
            "num_local_experts": 8,
            "output_router_logits": False,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 16,
                "rope_type": "yarn",
                "truncate": False,
            },
            "rope_theta": 150,
            "router_aux_loss_coef": 0.9,
            "sliding_window": 8,
            "swiglu_limit": 7.0,
            "tie_word_embeddings": False,
        },
    },
    "llama4_text": {
        "Llama-4-Scout (text)": {
            "attention_bias": False,
            "attention_chunk_size": 8,
            "attn_scale": 0.1,
            "attn_temperature_tuning": True,
            "cache_implementation": "hybrid",
            "floor_scale": 8,
            "for_llm_compressor": False,
            "head_dim": 8,
            "hidden_act": "silu",
            "interleave_moe_layer_step": 1,
            "intermediate_size": 24,
            "intermediate_size_mlp": 48,
            "moe_layers": [0, 1, 2, 3],
            "no_rope_layers": [1, 1, 1, 0],
            "num_experts_per_tok": 1,
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "output_router_logits": False,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 16.0,
                "high_freq_factor": 1.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 32,
                "rope_type": "llama3",
            },
            "rope_theta": 500.0,
            "router_aux_loss_coef": 0.001,
            "router_jitter_noise": 0.0,
            "use_qk_norm": True,
        },
        "Llama-4-Maverick (text)": {
            "attention_chunk_size": 8,
            "attn_scale": 0.1,
            "floor_scale": 8,
            "head_dim": 8,
            "hidden_act": "silu",
            "interleave_moe_layer_step": 2,
            "intermediate_size": 24,
            "intermediate_size_mlp": 48,
            "no_rope_layers": [],
            "num_experts_per_tok": 1,
            "num_hidden_layers": 4,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 500.0,
            "use_qk_norm": False,
        },
    },
    "mimo_v2_flash": {
        "MiMo-V2-Flash": {
            "add_full_attention_sink_bias": False,
            "add_swa_attention_sink_bias": True,
            "attention_bias": False,
            "attention_chunk_size": 8,
            "attention_value_scale": 0.707,
            "head_dim": 24,
            "hidden_act": "silu",
            "hybrid_block_size": None,
            "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0, 1],
            "layernorm_epsilon": 1e-05,
            "moe_intermediate_size": 24,
            "moe_layer_freq": [0, 1, 1, 1, 1, 1, 1],
            "n_group": 1,
            "n_routed_experts": 8,
            "n_shared_experts": None,
            "norm_topk_prob": True,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 7,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.334,
            "rope_theta": 5000000,
            "routed_scaling_factor": None,
            "scoring_func": "sigmoid",
            "sliding_window": 8,
            "sliding_window_size": 8,
            "swa_head_dim": 24,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_rope_theta": 10000,
            "swa_v_head_dim": 16,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "v_head_dim": 16,
        },
    },
}
