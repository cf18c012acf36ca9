"""The variants of every architecture that tests run: what config.json says of each."""

from typing import Any

from tiny.family import Change, Family
from tiny.llama import DROP

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def _rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 100.0, **parameters}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 0.5}
FULL, SLIDING = "full_attention", "sliding_attention"
PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 50.0}
FAR: dict[str, Any] = {"rope_type": "default", "rope_theta": 5000.0}
# Far from 1 and from each other, so that one in another's place shows.
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 5,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.22,
    "logits_scaling": 3,
}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "plain": {},
        "biases, tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        "head_dim, MHA, gelu": {"head_dim": 16, "num_key_value_heads": None, "hidden_act": "gelu"},
        "MQA, eps": {"num_key_value_heads": 1, "rms_norm_eps": 0.05},
        "heads of 12": {"head_dim": 12},  # which ONNX Runtime's own attention does not take
        "linear": _rope("linear", factor=3.0),
        "llama3": _rope("llama3", original_max_position_embeddings=32, **LLAMA3),
        "dynamic": {"max_position_embeddings": 16, **_rope("dynamic", factor=2.0)},
        "yarn": _rope("yarn", **YARN),
        "yarn mscale": _rope("yarn", **YARN, mscale=0.7, mscale_all_dim=1.3, truncate=False),
        "yarn attention_factor": _rope("yarn", **YARN, attention_factor=1.5),
        "longrope, long": _rope(
            "longrope",
            short_factor=[1.0, 1.1, 1.2, 1.3],
            long_factor=[1.0, 2.0, 3.0, 4.0],
            original_max_position_embeddings=16,
        ),
        "longrope, short": _rope(
            "longrope",
            short_factor=[1.0, 1.1, 1.2, 1.3],
            long_factor=[1.0, 2.0, 3.0, 4.0],
            original_max_position_embeddings=48,
            factor=2.0,
        ),
        "proportional": _rope("proportional", partial_rotary_factor=0.5, factor=2.0),
    },
    "mistral": {
        "window": {"sliding_window": 8},
        "no window, tied": {"sliding_window": None, "tie_word_embeddings": True},
        "head_dim, yarn": {"head_dim": 16, "sliding_window": 8, **_rope("yarn", **YARN)},
        "window of one, relu2": {
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "hidden_act": "relu2",
            "sliding_window": 1,
        },
    },
    "ministral3": {
        "yarn": {"head_dim": 16, **_rope("yarn", **YARN, llama_4_scaling_beta=0.5)},
        "window, tied": {
            "head_dim": 8,
            "sliding_window": 8,
            "tie_word_embeddings": True,
            **_rope("yarn", **YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1),
        },
        "default rope": {
            "head_dim": 8,
            "hidden_act": "gelu_new",
            **_rope("default", original_max_position_embeddings=8, llama_4_scaling_beta=0.3),
        },
        "no rope settings": {"head_dim": 8},
    },
    "granite": {
        "plain": GRANITE,
        "biases, tied": {
            **GRANITE,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        "head_dim, MHA, gelu, eps": {
            **GRANITE,
            "head_dim": 16,
            "num_key_value_heads": None,
            "hidden_act": "gelu",
            "rms_norm_eps": 0.05,
        },
        "linear": {**GRANITE, **_rope("linear", factor=3.0)},
    },
    "qwen2": {
        "plain": {},
        "tied, MHA, gelu": {
            "tie_word_embeddings": True,
            "num_key_value_heads": None,
            "hidden_act": "gelu",
        },
        "head_dim, eps": {"head_dim": 16, "rms_norm_eps": 0.05},
        "window from layer 1": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
        "all windows": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        "layer types": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": [SLIDING, FULL, SLIDING],
        },
        "no window": {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 1},
        "yarn": _rope("yarn", **YARN),
    },
    "qwen3": {
        "plain": {"head_dim": 16},
        "bias, tied": {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
        "window from layer 1": {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
        "layer types": {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": [SLIDING, FULL, SLIDING],
        },
        "unused window": {"head_dim": 8, "use_sliding_window": False, "sliding_window": 8},
        "yarn": {"head_dim": 16, "hidden_act": "quick_gelu", **_rope("yarn", **YARN)},
    },
    "smollm3": {
        "plain": {"num_hidden_layers": 4},
        "interval 2, untied": {"no_rope_layer_interval": 2, "tie_word_embeddings": False},
        "listed, biases": {
            "no_rope_layers": [0, 1, 0, 1],
            "attention_bias": True,
            "mlp_bias": True,
        },
        "window": {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 8},
        "layer types": {
            "layer_types": [SLIDING, FULL, SLIDING],
            "sliding_window": 8,
            "use_sliding_window": True,
        },
        "llama3": {
            "no_rope_layer_interval": 3,
            **_rope("llama3", original_max_position_embeddings=32, **LLAMA3),
        },
    },
    "olmo2": {
        "plain": {},
        "bias, tied": {"attention_bias": True, "tie_word_embeddings": True},
        "MHA, eps, tanh": {"num_key_value_heads": None, "rms_norm_eps": 0.05, "hidden_act": "tanh"},
        "head_dim, linear": {"head_dim": 16, **_rope("linear", factor=3.0)},
    },
    "olmo3": {
        "derived types": {"num_hidden_layers": 4, "sliding_window": 8},
        "yarn on full": {
            "sliding_window": 8,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {FULL: {**PLAIN, "rope_type": "yarn", **YARN}, SLIDING: PLAIN},
        },
        "two thetas, bias, tied": {
            "sliding_window": 8,
            "layer_types": [FULL, SLIDING, FULL],
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {FULL: FAR, SLIDING: PLAIN},
        },
        "all full": {
            "layer_types": [FULL] * 3,
            "sliding_window": 8,
            "hidden_act": "mish",
        },
    },
    "gemma2": {
        "plain": {"head_dim": 16, "sliding_window": 8},
        "other caps, bias": {
            "head_dim": 8,
            "sliding_window": 8,
            "attention_bias": True,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 2.0,
        },
        "no caps, untied": {
            "head_dim": 8,
            "sliding_window": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
        "scalar, layer types, gelu": {
            "head_dim": 8,
            "query_pre_attn_scalar": 3,
            "sliding_window": 8,
            "layer_types": [FULL, FULL, SLIDING],
            "hidden_activation": "gelu",
        },
        "linear": {"head_dim": 8, "sliding_window": 8, **_rope("linear", factor=3.0)},
    },
    "gemma3_text": {
        "derived types": {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 7},
        "layer types, linear": {
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {
                FULL: {**FAR, "rope_type": "linear", "factor": 8.0},
                SLIDING: PLAIN,
            },
        },
        "final cap, bias, scalar": {
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": [FULL, SLIDING, FULL],
            "attention_bias": True,
            "final_logit_softcapping": 2.0,
            "attn_logit_softcapping": 0.5,
            "query_pre_attn_scalar": 3,
        },
        "untied, dynamic": {
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": [FULL, SLIDING, FULL],
            "tie_word_embeddings": False,
            "max_position_embeddings": 16,
            "rope_parameters": {
                FULL: {**FAR, "rope_type": "dynamic", "factor": 4.0},
                SLIDING: PLAIN,
            },
        },
    },
}

# The keys of released checkpoints, with small sizes and thetas: else no pair would turn here.
COMMON_KEYS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
}
LLAMA3_KEYS = {**LLAMA3, "original_max_position_embeddings": 32, "rope_type": "llama3"}
LLAMA_KEYS = {
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500.0,
}
GRANITE3 = {
    **GRANITE,
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}
QWEN2 = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000.0,
    "sliding_window": 8,  # unread
    "use_sliding_window": False,
}
RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "Llama-3.1-8B": {
            **LLAMA_KEYS,
            "eos_token_id": [1, 2],
            "rope_scaling": LLAMA3_KEYS,
            "tie_word_embeddings": False,
        },
        "Llama-3.2-1B": {
            **LLAMA_KEYS,
            "head_dim": 8,
            "rope_scaling": {**LLAMA3_KEYS, "factor": 32.0},
            "tie_word_embeddings": True,
        },
        "vicuna-16k": {"hidden_act": "silu", "rope_scaling": {"factor": 4.0, "type": "linear"}},
    },
    "mistral": {
        "Mistral-7B-v0.1": {
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_theta": 100.0,
            "sliding_window": 8,
            "tie_word_embeddings": False,
        },
        "Mistral-7B-v0.3": {
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        "Mistral-Nemo-2407": {
            "head_dim": 16,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    },
    "ministral3": {
        "Ministral-3-8B (text)": {
            "head_dim": 16,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_parameters": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 16.0,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 100.0,
                "rope_type": "yarn",
                "type": "yarn",
            },
            "sliding_window": None,
        }
    },
    "granite": {
        "granite-3.0-2b-base": {**GRANITE3, "attention_dropout": 0.1, "rope_theta": 100},
        "granite-3.3-8b-instruct": {**GRANITE3, "rope_theta": 10000.0},
    },
    "qwen2": {
        "Qwen2.5-7B-Instruct": {
            **QWEN2,
            "max_window_layers": 3,
            "tie_word_embeddings": False,
        },
        "Qwen2.5-7B-Instruct, long": {  # as its card says
            **QWEN2,
            "max_window_layers": 3,
            "rope_scaling": {
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "type": "yarn",
            },
            "tie_word_embeddings": False,
        },
        "Qwen2.5-0.5B-Instruct": {**QWEN2, "max_window_layers": 2, "tie_word_embeddings": True},
    },
    "qwen3": {
        "Qwen3-0.6B": {
            "attention_bias": False,
            "head_dim": 16,
            "hidden_act": "silu",
            "max_window_layers": 28,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        }
    },
    "smollm3": {
        "SmolLM3-3B": {
            "attention_bias": False,
            "hidden_act": "silu",
            "layer_types": [FULL] * 4,
            "max_window_layers": 28,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0],
            "num_hidden_layers": 4,
            "pretraining_tp": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 5000.0,
            "sliding_window": None,
            "use_cache": False,
            "use_sliding_window": False,
        }
    },
    "olmo2": {
        "OLMo-2-1124-7B": {
            "attention_bias": False,
            "hidden_act": "silu",
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 500,
            "tie_word_embeddings": False,
        }
    },
    "olmo3": {
        "Olmo-3-7B": {
            "attention_bias": False,
            "hidden_act": "silu",
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "rope_type": "yarn",
            },
            "rope_theta": 500000,
            "sliding_window": 8,
            "tie_word_embeddings": False,
        }
    },
    "gemma2": {
        "gemma-2-2b": {
            "attention_bias": False,
            "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0,
            "head_dim": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_theta": 100.0,
            "sliding_window": 8,
        }
    },
    "gemma3_text": {
        "gemma-3-270m": {
            "_sliding_window_pattern": 6,
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "head_dim": 16,
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": [SLIDING, FULL, SLIDING],
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 16,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 100.0,
            "rope_scaling": None,
            "rope_theta": 5000.0,
            "sliding_window": 8,
            "use_bidirectional_attention": False,
        },
        "gemma-3-1b-it": {
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 2],
            "final_logit_softcapping": None,
            "head_dim": 16,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 100,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},  # as in the 4B
            "rope_theta": 5000,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
        },
    },
}

# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    ("llama/llama3", {"rope_parameters": {"rope_theta": 100.0}}),
    ("llama/linear", {"rope_parameters": {"rope_theta": 100.0}}),
    ("llama/dynamic", {"rope_parameters": {"rope_theta": 100.0}}),
    ("llama/yarn", {"rope_parameters": {"rope_theta": 100.0}}),
    ("llama/longrope, long", {"rope_parameters": {"rope_theta": 100.0}}),
    ("llama/proportional", {"rope_parameters": {"rope_theta": 100.0}}),
    ("llama/MQA, eps", {"rms_norm_eps": 1e-06}),
    ("mistral/window", {"sliding_window": None}),
    (
        "ministral3/yarn",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "llama_4_scaling_beta": 0.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
            }
        },
    ),
    ("granite/plain", {"embedding_multiplier": 1}),
    ("granite/plain", {"attention_multiplier": 8**-0.5}),
    ("granite/plain", {"residual_multiplier": 1}),
    ("granite/plain", {"logits_scaling": 2}),
    ("granite/head_dim, MHA, gelu, eps", {"rms_norm_eps": 1e-06}),
    ("granite/linear", {"rope_parameters": {"rope_theta": 100.0}}),
    ("granite/granite-3.3-8b-instruct", {"rope_theta": 100.0}),
    ("qwen2/window from layer 1", {"layer_types": None, "max_window_layers": 2}),
    ("qwen2/window from layer 1", {"layer_types": [FULL] * 3}),
    ("qwen2/all windows", {"sliding_window": 9}),
    ("qwen2/layer types", {"sliding_window": 9}),
    ("qwen2/Qwen2.5-0.5B-Instruct", {"use_sliding_window": True}),
    ("qwen2/head_dim, eps", {"rms_norm_eps": 1e-06}),
    ("qwen2/yarn", {"rope_parameters": {"rope_theta": 100.0}}),
    ("qwen2/Qwen2.5-7B-Instruct, long", {"rope_scaling": None}),
    (
        "qwen3/window from layer 1",
        {"layer_types": ["full_attention", "full_attention", "full_attention"]},
    ),
    ("qwen3/layer types", {"sliding_window": 9}),
    ("smollm3/plain", {"no_rope_layers": [1, 1, 1, 1]}),
    ("smollm3/window", {"sliding_window": 7}),
    ("olmo3/derived types", {"sliding_window": 7}),
    ("olmo3/yarn on full", {"rope_parameters": None}),
    ("gemma2/other caps, bias", {"attn_logit_softcapping": 50.0}),
    (
        "gemma2/plain",
        {"layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"]},
    ),
    ("gemma2/scalar, layer types, gelu", {"query_pre_attn_scalar": 8}),
    ("gemma3_text/final cap, bias, scalar", {"final_logit_softcapping": None}),
    ("gemma3_text/gemma-3-1b-it", {"rope_local_base_freq": 5000}),
    ("gemma3_text/layer types, linear", {"rope_parameters": None}),
]

# Case, what is changed in config.json, what the message must name.
REFUSED: list[tuple[str, Change, str]] = [
    ("llama/plain", {"clip_qkv": 8.0}, "clip_qkv"),
    ("llama/plain", {"is_causal": False}, "is_causal"),
    ("llama/plain", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("llama/plain", {"sliding_window": 8}, "sliding_window"),
    ("llama/plain", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama/plain", {"hidden_act": "swiglu"}, "hidden_act"),
    ("llama/plain", {"hidden_size": None}, "hidden_size"),
    ("llama/plain", {"hidden_size": "32"}, "hidden_size"),
    ("llama/plain", {"hidden_size": 32.0}, "hidden_size"),
    ("llama/plain", {"hidden_size": True}, "hidden_size"),
    ("llama/plain", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("llama/plain", {"num_hidden_layers": 4000}, "num_hidden_layers"),
    ("llama/plain", {"num_attention_heads": 5, "head_dim": None}, "num_attention_heads"),
    ("llama/plain", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama/plain", {"num_key_value_heads": 0}, "num_key_value_heads"),
    ("llama/plain", {"head_dim": 7}, "head_dim"),
    ("llama/plain", {"rms_norm_eps": -1e-6}, "rms_norm_eps"),
    ("llama/plain", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("llama/plain", {"attention_bias": 1}, "attention_bias"),
    ("llama/plain", {"rope_theta": 7.0}, "rope_theta"),
    ("llama/plain", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("llama/plain", {"rope_scaling": "linear"}, "rope_scaling"),
    ("llama/plain", {"rope_parameters": {"rope_type": "su"}}, "rope_type"),
    ("llama/plain", {"rope_parameters": {"rope_type": "yarn", "type": "linear"}}, "rope_type"),
    ("llama/plain", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
    ("llama/plain", {"rope_parameters": {"factor": 2.0}}, "factor"),
    ("llama/plain", {"rope_parameters": {"rope_theta": 0}}, "rope_theta"),
    (
        "llama/plain",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}},
        "rope_theta",
    ),
    ("llama/plain", {"rope_parameters": {"rope_type": "yarn"}}, "needs factor"),
    ("llama/plain", {"rope_parameters": {"rope_type": "yarn", "factor": None}}, "needs factor"),
    ("llama/plain", {"attention_bias": None}, "attention_bias is None; accepted: true or false"),
    ("llama/plain", {"max_position_embeddings": None}, "max_position_embeddings is None"),
    ("qwen2/plain", {"rope_parameters": DROP}, "rope_theta is missing"),
    ("qwen2/plain", {"rope_parameters": {"rope_theta": None}}, "rope_theta is None; leave it out"),
    ("qwen2/plain", {"head_dim": None}, "head_dim is None; leave it out"),
    ("gemma2/gemma-2-2b", {"sliding_window_size": None}, "sliding_window_size is None; leave it"),
    ("llama/plain", {"rope_parameters": {"mrope_section": [1, 2]}}, "mrope_section"),
    ("llama/plain", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
    ("llama/plain", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    (
        "llama/longrope, long",
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "short_factor",
    ),
    ("gemma2/gemma-2-2b", {"sliding_window_size": 9}, "sliding_window is 8, but sliding_window_s"),
    ("mistral/window", {"sliding_window": 0}, "sliding_window"),
    ("mistral/window", {"sliding_window": -8}, "sliding_window"),
    ("mistral/window", {"attention_bias": True}, "attention_bias"),
    ("mistral/window", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("ministral3/yarn", {"rope_parameters": {"rope_theta": 9.0}}, "llama_4_scaling_beta"),
    (
        "ministral3/yarn",
        {"rope_parameters": {"rope_theta": 9.0, "llama_4_scaling_beta": 0.1}},
        "original_max_position_embeddings",
    ),
    ("granite/plain", {"logits_scaling": 0}, "logits_scaling is 0"),
    ("granite/plain", {"attention_multiplier": -0.1}, "attention_multiplier is -0.1"),
    ("granite/plain", {"residual_multiplier": "0.22"}, "residual_multiplier is '0.22'"),
    ("granite/plain", {"sliding_window": 8}, "sliding_window = 8, which nothing reads"),
    ("ministral3/no rope settings", {"rope_parameters": 0}, "rope_parameters is 0; accepted: an"),
    ("ministral3/no rope settings", {"rope_scaling": []}, r"rope_scaling is \[\]; accepted: an"),
    ("granite/plain", {"num_local_experts": 8}, "num_local_experts = 8, which nothing reads"),
    ("granite/plain", {"position_embedding_type": "nope"}, "position_embedding_type = 'nope'"),
    ("qwen2/plain", {"use_mrope": True}, "use_mrope = True, which nothing reads"),
    ("qwen2/plain", {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention"),
    ("qwen2/plain", {"mlp_bias": True}, "mlp_bias = True, which nothing reads"),
    ("qwen2/plain", {"is_causal": False}, "is_causal"),  # of embedders made of it
    ("qwen2/plain", {"num_key_value_heads": 3}, "num_key_value_heads 3"),
    ("qwen2/plain", {"num_key_value_heads": DROP}, "num_key_value_heads 32"),
    ("qwen2/window from layer 1", {"sliding_window": 0}, "sliding_window is 0"),
    ("qwen2/window from layer 1", {"max_window_layers": -1}, "max_window_layers is -1"),
    ("qwen2/layer types", {"layer_types": [FULL] * 2}, "layer_types has 2 entries"),
    ("qwen2/layer types", {"layer_types": []}, "layer_types has 0 entries"),
    ("qwen2/layer types", {"use_sliding_window": False}, "there is no sliding_window"),
    ("qwen2/layer types", {"sliding_window": None}, "there is no sliding_window"),
    ("qwen3/layer types", {"layer_types": ["full_attention"] * 2}, "layer_types"),
    ("qwen3/layer types", {"layer_types": []}, "layer_types"),
    ("qwen3/layer types", {"layer_types": ["chunked_attention"] * 3}, "layer_types"),
    ("qwen3/layer types", {"use_sliding_window": False}, "sliding_window"),
    ("smollm3/plain", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("smollm3/plain", {"no_rope_layers": [1, 0, 2, 1]}, "no_rope_layers"),
    ("smollm3/plain", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "interval"),
    ("olmo2/plain", {"clip_qkv": 8.0}, "clip_qkv"),
    ("olmo3/derived types", {"sliding_window": None}, "sliding_window"),
    ("olmo3/derived types", {"rope_parameters": {"rope_type": "default"}}, "rope_type"),
    ("olmo3/Olmo-3-7B", {"rope_theta": 10000}, "rope_theta"),
    (
        "olmo3/derived types",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "truncate": False}}},
        "truncate",
    ),
    ("gemma2/plain", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping"),
    ("gemma2/plain", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2/plain", {"hidden_act": "relu"}, "hidden_act"),
    ("gemma3_text/derived types", {"use_bidirectional_attention": True}, "use_bidirectional"),
    ("gemma3_text/derived types", {"sliding_window_pattern": 2}, "sliding_window_pattern"),
    (
        "gemma3_text/gemma-3-1b-it",
        {"rope_scaling": {"type": "linear", "factor": 8.0}},
        "rope_scaling has type 'linear', which Hugging Face does not read .* call it rope_type",
    ),
    ("olmo3/Olmo-3-7B", {"rope_scaling": {"type": "yarn", "factor": 8.0}}, "call it rope_type"),
    ("gemma3_text/gemma-3-1b-it", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("gemma3_text/derived types", {"rope_local_base_freq": 7.0}, "rope_theta"),
]

# What config classes write of a plain model is what the keys default to.
DEFAULTS: Change = dict.fromkeys(("hidden_act", "rms_norm_eps", "tie_word_embeddings"), DROP)
WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, Change] | tuple[str, Change, Change]] = [
    ("gemma2/gemma-2-2b", {"sliding_window_size": 8}),
    ("gemma2/gemma-2-2b", {"sliding_window": DROP, "sliding_window_size": 8}),
    ("gemma3_text/final cap, bias, scalar", {"attn_logit_softcapping": None}),
    ("qwen3/plain", {"use_qk_norm": True}),
    ("granite/plain", dict.fromkeys(GRANITE, DROP), dict.fromkeys(GRANITE, 1)),
    ("granite/plain", {**DEFAULTS, "attention_bias": DROP, "mlp_bias": DROP, "head_dim": 8}),
    ("granite/head_dim, MHA, gelu, eps", {"num_key_value_heads": DROP}),
    ("qwen2/plain", {**DEFAULTS, **dict.fromkeys(WINDOWS, DROP)}),
    ("qwen2/tied, MHA, gelu", {"num_key_value_heads": None}),
    ("qwen2/Qwen2.5-7B-Instruct", {"sliding_window": 2, "max_window_layers": 0}),
    ("qwen2/Qwen2.5-7B-Instruct", {"use_sliding_window": True}),  # from layer 3 of 3
    ("qwen2/Qwen2.5-7B-Instruct", {"use_sliding_window": DROP, "use_mrope": False}),
    ("qwen2/Qwen2.5-7B-Instruct", {"layer_types": [FULL] * 3, "sliding_window": None}),
    ("qwen2/Qwen2.5-7B-Instruct", {"layer_types": ["attention"] * 3, "head_dim": 8}),
    ("qwen2/Qwen2.5-7B-Instruct", {"attention_bias": True}, {"attention_bias": False}),
    ("qwen2/window from layer 1", {"layer_types": None}),
    (
        "qwen2/window from layer 1",
        {"layer_types": None, "max_window_layers": DROP},
        {"layer_types": [FULL] * 3},
    ),
    ("qwen2/all windows", {"layer_types": None}),
    ("qwen2/all windows", {"sliding_window": DROP}, {"sliding_window": 4096}),
    ("qwen2/layer types", {"max_window_layers": 0}),  # the list decides
    ("qwen2/no window", {"use_sliding_window": False}),
]

FAMILY = Family(
    classes={
        "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
        "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
        "granite": ("GraniteConfig", "GraniteForCausalLM"),
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
        "ministral3": ("Ministral3Config", "Ministral3ForCausalLM"),
        "mistral": ("MistralConfig", "MistralForCausalLM"),
        "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
        "olmo3": ("Olmo3Config", "Olmo3ForCausalLM"),
        "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
        "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"),
    },
    variants=VARIANTS,
    released=RELEASED,
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
    by_length=("llama/dynamic", "llama/longrope, long", "gemma3_text/untied, dynamic"),
    parameters=dict.fromkeys(
        (
            *("llama/biases, tied", "olmo2/bias, tied", "gemma2/other caps, bias"),
            *("granite/biases, tied", "qwen2/plain", "qwen2/all windows"),
        ),
        (),
    ),
)
