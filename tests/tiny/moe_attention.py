"""The variants of families with experts whose attention is peculiar too: sinks, chunks, widths."""

from typing import Any

from tiny.configs import FULL, LLAMA3, SLIDING, YARN
from tiny.family import Change, Family
from tiny.llama import DROP

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

OSS_PLAIN, OSS_20B = "gpt_oss/plain", "gpt_oss/gpt-oss-20b"

SCOUT, MAVERICK = "llama4_text/Llama-4-Scout (text)", "llama4_text/Llama-4-Maverick (text)"

LISTED = "llama4_text/listed layers, two experts, gelu"

MIMO_FLASH, GROUPED = "mimo_v2_flash/MiMo-V2-Flash", "mimo_v2_flash/groups, scale, no norm"

PLAIN_QUARTER = {**PLAIN, "partial_rotary_factor": 0.25}

# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    (OSS_PLAIN, {"sliding_window": 7}),
    (OSS_PLAIN, {"layer_types": [FULL, SLIDING, FULL]}),
    (OSS_PLAIN, {"num_experts_per_tok": 3}),
    ("gpt_oss/limits, all experts, yarn", {"swiglu_limit": 0.6}),
    ("gpt_oss/limits, all experts, yarn", {"swiglu_alpha": 1.702}),
    (OSS_20B, {"rope_theta": 15}),
    (SCOUT, {"attention_chunk_size": 7}),
    (SCOUT, {"use_qk_norm": False}),
    (SCOUT, {"floor_scale": 7}),
    (SCOUT, {"attn_scale": 0.2}),
    (SCOUT, {"attn_temperature_tuning": False}),
    (SCOUT, {"no_rope_layers": [0, 1, 1, 0]}),
    (SCOUT, {"num_experts_per_tok": 2}),
    (SCOUT, {"rope_scaling": None}),
    ("llama4_text/layer types, no temperature", {"layer_types": [CHUNKED] * 3}),
    (MIMO_FLASH, {"attention_value_scale": 1.0}),
    (MIMO_FLASH, {"sliding_window_size": 7}),
    (MIMO_FLASH, {"n_group": 2}),
    (MIMO_FLASH, {"routed_scaling_factor": 2.0}),
    (MIMO_FLASH, {"norm_topk_prob": False}),
    (GROUPED, {"topk_group": 3}),
    (GROUPED, {"sliding_window": 7}),
    (GROUPED, {"rope_parameters": {FULL: PLAIN_QUARTER, SLIDING: PLAIN_QUARTER}}),
    (GROUPED, {"rope_parameters": {FULL: {**PLAIN_QUARTER, "rope_theta": 5000.0}, SLIDING: PLAIN}}),
]

# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, Change] | tuple[str, Change, Change]] = [
    (OSS_20B, {"initial_context_length": None}),
    (OSS_20B, {"layer_types": None}),
    (MAVERICK, {"no_rope_layers": [1, 1, 1, 0]}),
    (MAVERICK, {"no_rope_layers": [1, 1, 1, 0, 1, 1]}),
    (MAVERICK, {"moe_layers": [1, 3]}),
    (MAVERICK, {"nope_layer_interval": 4, "for_llm_compressor": True}),
    (MAVERICK, {"layer_types": [CHUNKED, CHUNKED, CHUNKED, FULL]}),
    (MIMO_FLASH, {"hybrid_layer_pattern": None}),
    (
        MIMO_FLASH,
        {"hybrid_layer_pattern": None, "layer_types": [FULL, *[SLIDING] * 4, FULL, SLIDING]},
    ),
    (MIMO_FLASH, {"moe_layer_freq": None}),
    (MIMO_FLASH, {"mlp_layer_types": ["dense", *["sparse"] * 6]}),
    (MIMO_FLASH, {"sliding_window_size": None, "sliding_window": 9}),
    (
        MIMO_FLASH,
        {"swa_num_key_value_heads": None, "swa_head_dim": DROP, "layernorm_epsilon": DROP},
    ),
    (
        MIMO_FLASH,
        dict.fromkeys(("rope_theta", "swa_rope_theta", "partial_rotary_factor"), DROP),
    ),
    (MIMO_FLASH, {"n_routed_experts": DROP, "num_local_experts": 8}),
]

# Base case, what is changed in config.json, what the message must name.
REFUSED: list[tuple[str, Change, str]] = [
    (OSS_20B, {"num_experts": None}, "num_experts is None; leave it out"),
    (MIMO_FLASH, {"rope_parameters": {FULL: {"rope_theta": 9.0}}}, "rope_theta"),
    (MIMO_FLASH, {"rope_scaling": None}, "rope_scaling is None; leave it out"),
    (OSS_20B, {"layer_types": [SLIDING, FULL]}, "layer_types has 2 entries; .* is 4"),
    (OSS_20B, {"layer_types": [CHUNKED] * 4}, r"layer_types\[0\] is 'chunked_attention'"),
    (OSS_20B, {"sliding_window": None}, r"layer_types\[0\].*sliding_window"),
    (OSS_20B, {"num_experts_per_tok": 9, "experts_per_token": 9}, "num_experts_per_tok is 9"),
    (OSS_20B, {"experts_per_token": 3}, "num_experts_per_tok is 2, but experts_per_token"),
    (OSS_20B, {"num_local_experts": 0}, "num_local_experts is 0; accepted: 1"),
    (OSS_20B, {"swiglu_limit": 0.0}, "swiglu_limit is 0.0"),
    (OSS_20B, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; implemented: 'silu'"),
    (OSS_20B, {"quantization_config": {"quant_method": "fp8"}}, "quant_method is 'fp8'"),
    (OSS_20B, {"quantization_config": {}}, "quant_method is missing"),
    (OSS_20B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (SCOUT, {"attention_chunk_size": None}, "no attention_chunk_size"),
    (SCOUT, {"attention_chunk_size": 0}, "attention_chunk_size is 0; accepted: 1"),
    (SCOUT, {"layer_types": [CHUNKED] * 3}, "layer_types has 3 entries"),
    (SCOUT, {"layer_types": [SLIDING] * 4}, r"layer_types\[0\] is 'sliding_attention'"),
    (SCOUT, {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries"),
    (SCOUT, {"no_rope_layers": [1, 2, 0, 1]}, r"no_rope_layers\[1\] is 2"),
    (SCOUT, {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    (SCOUT, {"nope_layer_interval": 2}, "nope_layer_interval is 2; implemented: 4"),
    (SCOUT, {"moe_layers": [-1]}, r"moe_layers\[0\] is -1"),
    (SCOUT, {"moe_layers": None, "interleave_moe_layer_step": 0}, "interleave_moe_layer_step is 0"),
    (SCOUT, {"num_experts_per_tok": 5}, "num_experts_per_tok is 5; accepted: at most the 4"),
    (SCOUT, {"floor_scale": 0}, "floor_scale is 0; accepted: 1"),
    (SCOUT, {"attn_temperature_tuning": 4}, "attn_temperature_tuning is 4"),
    (SCOUT, {"use_qk_norm": 1}, "use_qk_norm is 1"),
    (MIMO_FLASH, {"hybrid_layer_pattern": [0, 1, 1]}, "layer_types has 3 entries; .* is 7"),
    (
        MIMO_FLASH,
        {"hybrid_layer_pattern": [0, 1, 1, 2, 1, 0, 1]},
        "hybrid_layer_pattern .*0 .full_att",
    ),
    (MIMO_FLASH, {"hybrid_layer_pattern": 1}, "hybrid_layer_pattern is 1; accepted: a list"),
    (
        MIMO_FLASH,
        {"layer_types": [SLIDING] * 7},
        "layer_types .* but hybrid_layer_pattern, which means",
    ),
    (MIMO_FLASH, {"moe_layer_freq": [0, 1]}, "mlp_layer_types has 2 entries"),
    (MIMO_FLASH, {"moe_layer_freq": [0, True, 1, 1, 1, 1, 1]}, "moe_layer_freq is"),
    (MIMO_FLASH, {"swa_head_dim": 16}, "head_dim is 24, but swa_head_dim"),
    (MIMO_FLASH, {"swa_num_attention_heads": 8}, "num_attention_heads is 4, but swa_num_attention"),
    (MIMO_FLASH, {"swa_num_key_value_heads": 3}, "4 query heads are not a multiple of 3"),
    (MIMO_FLASH, {"rope_theta": 7.0}, "rope_theta is 5000000.0, but rope_theta is 7.0 beside it"),
    (MIMO_FLASH, {"swa_rope_theta": 7.0}, "rope_theta is 10000.0, but swa_rope_theta is 7.0"),
    (MIMO_FLASH, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.334, but"),
    (MIMO_FLASH, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
    (MIMO_FLASH, {"head_dim": 16, "swa_head_dim": 16}, "rotary width is 5"),
    (MIMO_FLASH, {"add_swa_attention_sink_bias": False}, "add_swa_attention_sink_bias is False"),
    (MIMO_FLASH, {"add_full_attention_sink_bias": True}, "add_full_attention_sink_bias = True"),
    (MIMO_FLASH, {"n_shared_experts": 1}, "n_shared_experts = 1"),
    (MIMO_FLASH, {"n_group": 3}, "n_group is 3; accepted: a divisor"),
    (MIMO_FLASH, {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
]

FAMILY = Family(
    classes={
        "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
        "llama4_text": ("Llama4TextConfig", "Llama4ForCausalLM"),
        "mimo_v2_flash": ("MiMoV2FlashConfig", "MiMoV2FlashForCausalLM"),
    },
    variants=VARIANTS,
    released=RELEASED,
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
    parameters={
        "gpt_oss/limits, all experts, yarn": (),
        "llama4_text/interval 2, llama3": (),
        # A shift of all scores shows in no weight where every expert is chosen.
        "mimo_v2_flash/wide values, yarn": (".correction",),
    },
)
