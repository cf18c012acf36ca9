"""Phi-3, 3.5 and 4: what config.json says of each variant that tests run."""

from typing import Any

from tiny.family import Family
from tiny.llama import DROP

LENGTH = "original_max_position_embeddings"
# One number for each pair of a head of 8, and of the 6 dims that rotate of one.
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
PARTIAL = {"short_factor": [1.0, 1.2, 1.5], "long_factor": [1.0, 2.5, 4.0]}


def _longrope(original: int, **parameters: Any) -> dict[str, Any]:
    given = {"rope_type": "longrope", "rope_theta": 100.0, **parameters}
    return {LENGTH: original, "rope_parameters": given}


VARIANTS: dict[str, dict[str, Any]] = {
    # First, which is what plans are built of.
    "longrope in part": _longrope(16, **PARTIAL, partial_rotary_factor=0.75),
    "longrope, short": _longrope(48, **FACTORS),
    "longrope, window": {"sliding_window": 8, **_longrope(16, **FACTORS, factor=3.0)},
    "longrope, attention_factor": _longrope(48, **FACTORS, attention_factor=1.5),
    "plain": {},
    "MHA, tied, eps, gelu": {
        "num_key_value_heads": None,
        "tie_word_embeddings": True,
        "rms_norm_eps": 0.05,
        "hidden_act": "gelu_new",
    },
    "window, heads of 12": {"head_dim": 12, "num_key_value_heads": 1, "sliding_window": 8},
    "half a head": {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}},
}

KEYS: dict[str, Any] = {
    "attention_bias": False,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "hidden_act": "silu",
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}
# As in files for 131072 tokens with 4096 before: 32 times the length, and a window of 64 times.
FAR = {"max_position_embeddings": 512, LENGTH: 16, "sliding_window": 1024}
RELEASED: dict[str, dict[str, Any]] = {
    "Phi-3-mini-4k": {
        **KEYS,
        "num_key_value_heads": 4,
        LENGTH: 64,
        "rope_scaling": None,
        "rope_theta": 100.0,
        "sliding_window": 31,  # 2047 of 4096
    },
    "Phi-3.5-mini": {
        **KEYS,
        **FAR,
        "num_key_value_heads": 4,
        "rope_scaling": {**FACTORS, "type": "longrope"},
        "rope_theta": 100.0,
    },
    "Phi-4": {
        **KEYS,
        "num_key_value_heads": 1,
        LENGTH: 64,
        "rope_scaling": None,
        "rope_theta": 2500,
        "sliding_window": None,
    },
    "Phi-4-mini": {
        **KEYS,
        **FAR,
        "full_attn_mod": 1,
        "hidden_size": 48,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
        "num_attention_heads": 6,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {**PARTIAL, "type": "longrope"},
        "rope_theta": 100.0,
        "tie_word_embeddings": True,
    },
}


def _scaling(**parameters: Any) -> dict[str, Any]:
    """The rope_scaling of Phi-3.5-mini, changed."""
    return {"rope_scaling": {**FACTORS, "type": "longrope", **parameters}}


FAMILY = Family(
    classes={"phi3": ("Phi3Config", "Phi3ForCausalLM")},
    variants={"phi3": VARIANTS},
    released={"phi3": RELEASED},
    by_length=(
        "phi3/longrope in part",
        "phi3/longrope, window",
        "phi3/Phi-3.5-mini",
        "phi3/Phi-4-mini",
    ),
    shown=[
        ("phi3/MHA, tied, eps, gelu", {"rms_norm_eps": 1e-5}),
        ("phi3/window, heads of 12", {"sliding_window": None}),
        ("phi3/Phi-3-mini-4k", {"sliding_window": 30}),
        ("phi3/half a head", {"rope_parameters": {"rope_theta": 100.0}}),
        ("phi3/longrope, attention_factor", _longrope(48, **FACTORS)),
        ("phi3/longrope, window", _longrope(16, **FACTORS)),
        ("phi3/Phi-3.5-mini", {LENGTH: 37}),
        ("phi3/Phi-3.5-mini", {"max_position_embeddings": 256}),
        ("phi3/Phi-3.5-mini", {"rope_scaling": None}),
        ("phi3/Phi-3.5-mini", _scaling(long_factor=FACTORS["short_factor"])),
        ("phi3/Phi-4-mini", {"sliding_window": 8}),
    ],
    silent=[
        ("phi3/Phi-3-mini-4k", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1}),
        ("phi3/Phi-3-mini-4k", {"num_key_value_heads": None}),
        ("phi3/Phi-3-mini-4k", {LENGTH: DROP}),
        ("phi3/Phi-3-mini-4k", {"sliding_window": 64}, {"sliding_window": None}),
        ("phi3/Phi-3.5-mini", _scaling(type="su")),
        ("phi3/Phi-3.5-mini", _scaling(type="su", rope_type="longrope")),
        ("phi3/Phi-3.5-mini", _scaling(original_max_position_embeddings=16)),
        ("phi3/Phi-3.5-mini", _scaling(short_factor=FACTORS["long_factor"])),
        ("phi3/Phi-3.5-mini", {"sliding_window": None}),
    ],
    refused=[
        ("phi3/plain", {"sliding_window": 0}, "sliding_window"),
        ("phi3/plain", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("phi3/plain", {"attention_bias": True}, "attention_bias"),
        ("phi3/plain", {LENGTH: 0}, LENGTH),
        ("phi3/plain", {LENGTH: None}, f"{LENGTH} is None"),
        ("phi3/Phi-4-mini", {"lm_head_bias": True}, "lm_head_bias"),
        ("phi3/Phi-4-mini", {"interpolate_factor": 2}, "interpolate_factor"),
        ("phi3/Phi-4-mini", {"full_attn_mod": 2}, "full_attn_mod"),
        ("phi3/Phi-4-mini", {"partial_rotary_factor": 1.0}, "short_factor must have 4 numbers"),
        ("phi3/Phi-4", {"partial_rotary_factor": 0.4}, "rotary width is 3"),
        ("phi3/Phi-3.5-mini", _scaling(short_factor=[1.0] * 3), "short_factor must have 4 numbers"),
        ("phi3/Phi-3.5-mini", _scaling(long_factor=[1.0] * 5), "long_factor must have 4 numbers"),
        ("phi3/Phi-3.5-mini", _scaling(long_factor=None), "long_factor"),
        ("phi3/Phi-3.5-mini", _scaling(type="yarn"), "rope_type is 'yarn'; implemented: 'default'"),
        ("phi3/Phi-3.5-mini", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type"),
        ("phi3/Phi-3.5-mini", _scaling(original_max_position_embeddings=32), LENGTH),
        ("phi3/longrope in part", {LENGTH: DROP}, f"{LENGTH} is 16, but {LENGTH} is 4096"),
    ],
    parameters={"phi3/plain": (), "phi3/MHA, tied, eps, gelu": ()},
)  # fmt: skip
