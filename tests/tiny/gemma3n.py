"""The variants of Gemma 3n that tests run: what config.json says of each."""

from typing import Any

from tiny.family import Change, Family

FULL, SLIDING = "full_attention", "sliding_attention"
PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 50.0}
FAR: dict[str, Any] = {"rope_type": "default", "rope_theta": 5000.0}

SMALL: dict[str, Any] = {
    "head_dim": 8,
    "sliding_window": 8,
    "laurel_rank": 5,
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": 97,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "gemma3n_text": {
        "nothing shared": {**SMALL, "num_hidden_layers": 5, "num_kv_shared_layers": 0},
        "one of each shared": {
            **SMALL,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "rope_parameters": {FULL: FAR, SLIDING: PLAIN},
        },
        # The lenders are not the last layers of their kind, nor is every layer before one.
        "several shared, sparse": {
            **SMALL,
            "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.25, 0.95, 0.0, 0.5, 0.0],
            "altup_active_idx": 2,
            "altup_num_inputs": 3,
            "intermediate_size": [48, 40, 48, 24, 48, 40, 48, 56],
            "layer_types": [SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL, SLIDING, FULL],
            "num_hidden_layers": 8,
            "num_kv_shared_layers": 4,
            "rope_parameters": {FULL: FAR, SLIDING: PLAIN},
            "vocab_size_per_layer_input": 60,
        },
        "windowed only, biases, untied": {
            **SMALL,
            "altup_correct_scale": False,
            "altup_num_inputs": 2,
            "attention_bias": True,
            "final_logit_softcapping": 2.0,
            "hidden_activation": "gelu",
            "layer_types": [SLIDING] * 3,
            "num_kv_shared_layers": 1,
            "rms_norm_eps": 0.05,
            "tie_word_embeddings": False,
        },
        "full only, one stream, linear": {
            **SMALL,
            "altup_num_inputs": 1,
            "layer_types": [FULL] * 3,
            "num_key_value_heads": 4,
            "num_kv_shared_layers": 2,
            "rope_parameters": {FULL: {**FAR, "rope_type": "linear", "factor": 8.0}},
        },
        "window of one": {
            **SMALL,
            "layer_types": [SLIDING, FULL, SLIDING],
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "num_kv_shared_layers": 1,
            "sliding_window": 1,
        },
        "derived sparsity": {
            **SMALL,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 11,
            "num_kv_shared_layers": 5,
            "rms_norm_eps": 0.5,  # with less, so many random layers make much of every rounding
        },
    },
}
RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "gemma3n_text": {
        "gemma-3n-E2B (text)": {
            **SMALL,
            "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
            "altup_active_idx": 0,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_lr_multiplier": 1.0,
            "altup_num_inputs": 4,
            "attention_bias": False,
            "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "intermediate_size": [48] * 6,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 3,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 100.0,
            "rope_scaling": None,
            "rope_theta": 5000.0,
            "vocab_size_per_layer_input": 90,
        }
    },
}

SHARED = "gemma3n_text/several shared, sparse"  # 4 of 8 layers; those before end in F S S
E2B = "gemma3n_text/gemma-3n-E2B (text)"
# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    (SHARED, {"activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]}),
    (SHARED, {"activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.25, 0.95, 0.0, 0.5, 0.1]}),
    (SHARED, {"altup_active_idx": 0}),
    (SHARED, {"altup_correct_scale": False}),
    (SHARED, {"final_logit_softcapping": 1.0}),
    (SHARED, {"hidden_activation": "relu"}),
    (
        SHARED,
        {
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ]
        },
    ),
    (SHARED, {"num_kv_shared_layers": 5}),
    (SHARED, {"rms_norm_eps": 0.1}),
    (SHARED, {"rope_parameters": None}),
    (SHARED, {"sliding_window": 7}),
    (E2B, {"rope_theta": 50.0}),
    (E2B, {"rope_local_base_freq": 50.0}),
    (
        "gemma3n_text/derived sparsity",
        {"activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]},
    ),
]

REFUSED: list[tuple[str, Change, str]] = [
    (SHARED, {"rope_parameters": {}}, "rope_parameters is {}; leave it out"),
    (SHARED, {"rope_scaling": {}}, "rope_scaling is {}; leave it out"),
    (SHARED, {"num_kv_shared_layers": 8}, "num_kv_shared_layers is 8 of 8 layers"),
    (SHARED, {"num_kv_shared_layers": 9}, "num_kv_shared_layers is 9 of 8 layers"),
    (SHARED, {"num_kv_shared_layers": 7}, "num_kv_shared_layers is 7 of 8 layers"),
    (SHARED, {"num_kv_shared_layers": -1}, "num_kv_shared_layers is -1"),
    (
        SHARED,
        {"activation_sparsity_pattern": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]},
        "activation_sparsity_pattern has 7 entries",
    ),
    (
        SHARED,
        {"activation_sparsity_pattern": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]},
        "activation_sparsity_pattern.* is 1.0",
    ),
    (SHARED, {"activation_sparsity_pattern": 0.5}, "activation_sparsity_pattern is 0.5"),
    (
        SHARED,
        {"intermediate_size": [48, 48, 48, 48, 48, 48, 48, 48, 48]},
        "intermediate_size has 9 entries",
    ),
    (SHARED, {"layer_types": []}, "layer_types has 0 entries"),
    (
        SHARED,
        {
            "layer_types": [
                "full_attention",
                "full_attention",
                "full_attention",
                "full_attention",
                "full_attention",
                "full_attention",
                "full_attention",
            ]
        },
        "layer_types has 7 entries",
    ),
    (SHARED, {"altup_active_idx": 3}, "the active stream is 3; there are 3"),
    (SHARED, {"altup_num_inputs": 0}, "altup_num_inputs is 0"),
    (SHARED, {"hidden_size_per_layer_input": 0}, "hidden_size_per_layer_input is 0"),
    (SHARED, {"rope_theta": 7.0}, "rope_theta"),
    (SHARED, {"query_pre_attn_scalar": "256"}, "query_pre_attn_scalar"),
    (SHARED, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
]

FAMILY = Family(
    classes={"gemma3n_text": ("Gemma3nTextConfig", "Gemma3nForCausalLM")},
    variants=VARIANTS,
    released=RELEASED,
    shown=SHOWN,
    refused=REFUSED,
    parameters=dict.fromkeys((SHARED, "gemma3n_text/windowed only, biases, untied"), ()),
)
