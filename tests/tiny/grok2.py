"""The variants of Grok 2.5, which Hugging Face does not define: grok2_oracle.py does."""

from typing import Any

from tiny import grok2_oracle
from tiny.family import Change, Family

SIZES: dict[str, Any] = {
    "architectures": ["Grok1ForCausalLM"],
    "model_type": "git",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "head_dim": 16,
    "rms_norm_eps": 1e-05,
    "embedding_multiplier_scale": 5.65685424949238,
    "output_multiplier_scale": 0.5,
    "rope_theta": 100.5,
}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "grok2": {
        "temperature, caps": {
            **SIZES,
            "attn_logit_softcapping": 2.0,
            "attn_temperature_len": 8,
            "final_logit_softcapping": 5,
            "residual_moe": True,
            "router_logit_softcapping": 7.0,
        },
        "experts alone, no temperature": {**SIZES, "num_experts_per_tok": 3},
        "temperature, no caps": {
            **SIZES,
            "attn_logit_softcapping": 0,
            "attn_temperature_len": 2,
            "num_key_value_heads": 4,
            "residual_moe": True,
        },
    },
}

RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "grok2": {
        "grok-2": {
            **SIZES,
            "attn_factor": 1.0,
            "attn_logit_softcapping": 30.0,
            "attn_temperature_len": 16,
            "beta_fast": 8,
            "beta_slow": 1,
            "extrapolation_factor": 1.0,
            "final_logit_softcapping": 50,
            "global_attn_every_n": 1,
            "num_local_experts": 8,
            "original_max_position_embeddings": 4,
            "residual_moe": True,
            "rope_theta": 2085,
            "rope_type": "original",
            "router_logit_softcapping": 30.0,
            "scaling_factor": 16.0,
            "sliding_window_size": -1,
            "torch_dtype": "bfloat16",
        },
    },
}

# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    ("grok2/temperature, caps", {"attn_logit_softcapping": 30.0}),
    ("grok2/temperature, caps", {"attn_temperature_len": -1}),
    ("grok2/temperature, caps", {"final_logit_softcapping": None}),
    ("grok2/temperature, caps", {"router_logit_softcapping": 30.0}),
    ("grok2/temperature, caps", {"embedding_multiplier_scale": 1.0}),
    ("grok2/temperature, caps", {"output_multiplier_scale": 1.0}),
    ("grok2/grok-2", {"attn_logit_softcapping": 0}),
    ("grok2/grok-2", {"rope_theta": 10000}),
]

REFUSED: list[tuple[str, Change, str]] = [
    ("grok2/grok-2", {"rope_type": "yarn_log"}, "rope_type is 'yarn_log'"),
    ("grok2/grok-2", {"sliding_window_size": 128}, "sliding_window_size is 128"),
    ("grok2/grok-2", {"attn_output_multiplier": 0.08}, "attn_output_multiplier"),  # Grok 1
    ("grok2/grok-2", {"attn_temperature_len": 1}, "temperature is 1"),
    ("grok2/grok-2", {"rope_theta": 0.5}, "rope_theta is 0.5"),
    ("grok2/grok-2", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
    ("grok2/grok-2", {"num_key_value_heads": 3}, "not a multiple of 3"),
    ("grok2/grok-2", {"embedding_multiplier_scale": 0.0}, "embedding_multiplier_scale is 0"),
]

FAMILY = Family(
    classes={"grok2": ("", "")},
    variants=VARIANTS,
    released=RELEASED,
    oracles={"grok2": grok2_oracle},
    shown=SHOWN,
    refused=REFUSED,
)
