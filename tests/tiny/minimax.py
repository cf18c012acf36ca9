"""The variants of MiniMax-Text-01 and M1, in Hugging Face's spelling and in their own."""

from typing import Any

from tiny import minimax_files
from tiny.configs import FULL, YARN
from tiny.family import Change, Family
from tiny.llama import DROP

CLASSES = ("MiniMaxConfig", "MiniMaxForCausalLM")
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
            "rope_theta": 1000,
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

HF, M1_80K, TEXT_01_HUB = (
    "minimax/MiniMax-M1-40k-hf",
    "minimax_m1/MiniMax-M1-80k",
    "minimax_text_01/MiniMax-Text-01",
)

GAINED, ALONE = "minimax/gains, wide heads, blocks", "minimax/all linear, six heads, tied"

WINDOW = "minimax/window, yarn, gelu, all experts"

LAYERS = [LINEAR, LINEAR, FULL, LINEAR]

# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    *((HF, {f"{branch}_alpha_factor": 2.5}) for branch in ("full_attn", "linear_attn", "mlp")),
    *((HF, {f"{branch}_beta_factor": 0.5}) for branch in ("full_attn", "linear_attn", "mlp")),
    *((M1_80K, {f"layernorm_{branch}_alpha": 2.5}) for branch in ("full_attention", "mlp")),
    *((M1_80K, {f"layernorm_{branch}_beta": 0.5}) for branch in ("linear_attention", "mlp")),
    (HF, {"rotary_dim": 4}),
    (HF, {"rotary_dim": None}),
    (M1_80K, {"rotary_dim": 16}),
    (M1_80K, {"rope_theta": 50}),
    (M1_80K, {"num_experts_per_tok": 3}),
    (M1_80K, {"rms_norm_eps": 0.05}),
    (TEXT_01_HUB, {"hidden_act": "gelu"}),
    (TEXT_01_HUB, {"sliding_window": 5}),
    (WINDOW, {"sliding_window": None}),
]

# Settings that say what holds anyway: by default, or because of another.
PARTS = {"rope_theta": 1000, "partial_rotary_factor": 0.5}

SILENT: list[tuple[str, Change] | tuple[str, Change, Change]] = [
    (HF, {"block_size": 16}),
    (HF, {"postnorm": DROP, "shared_intermediate_size": DROP, "shared_moe_mode": DROP}),
    (HF, {"num_local_experts": DROP, "num_experts": 8}),
    (HF, {"rope_theta": DROP, "rope_parameters": PARTS}),
    (HF, {"full_attn_beta_factor": DROP, "mlp_beta_factor": 1}),
    ("minimax/plain", {"layer_types": None}),
    ("minimax/plain", {"head_dim": 8, "rotary_dim": 8}),
    ("minimax/plain", {"rotary_dim": DROP, "partial_rotary_factor": 1.0}),
    (ALONE, {"rope_theta": 7.0, "rope_parameters": None, "sliding_window": 3, "rotary_dim": 2}),
    (ALONE, {"full_attn_alpha_factor": 2.0}),
    (M1_80K, {"attn_type_list": DROP, "layer_types": [LINEAR, LINEAR, LINEAR, FULL]}),
    (M1_80K, {"layernorm_mlp_beta": DROP, "mlp_beta_factor": 1.0}),
    (M1_80K, {"shared_intermediate_size": [0], "shared_moe_mode": "softmax"}),
    (M1_80K, {"model_type": "minimax_text_01"}),
]

REFUSED: list[tuple[str, Change, str]] = [
    (HF, {"postnorm": False}, "postnorm is False; implemented: True"),
    (HF, {"shared_intermediate_size": 64}, "shared_intermediate_size is 64"),
    (HF, {"shared_intermediate_size": [0, 64]}, "shared_intermediate_size is .0, 64"),
    (HF, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
    (HF, {"rotary_dim": DROP, "partial_rotary_factor": 0.5}, "no code .* reads; give rotary_dim"),
    (HF, {"rotary_dim": 32}, "rotary_dim is 32.* makes it 16 of head_dim 16"),
    (HF, {"rotary_dim": 8.0}, "rotary_dim is 8.0; accepted: an integer"),
    (HF, {"rotary_dim": 0}, "rotary_dim is 0; accepted: 1"),
    (HF, {"rotary_dim": 5}, "rotary width is 5"),
    (HF, {"partial_rotary_factor": 0.25}, "rotary_dim is 8, but partial_rotary_factor.* 4 of"),
    (HF, {"layer_types": LAYERS[:3]}, "layer_types has 3 entries; num_hidden_layers is 4"),
    (HF, {"layer_types": []}, "layer_types has 0 entries; num_hidden_layers is 4"),
    (HF, {"layer_types": [*LAYERS[:3], "ssm"]}, r"layer_types\[3\] is 'ssm'"),
    (HF, {"attn_type_list": [0, 0, 0, 1]}, "attn_type_list = .*, which nothing reads"),
    (HF, {"layernorm_mlp_alpha": 3.5}, "layernorm_mlp_alpha = 3.5, which nothing reads"),
    (HF, {"num_experts": 4}, "num_local_experts is 8, but num_experts"),
    (HF, {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
    (HF, {"mlp_beta_factor": "1"}, "mlp_beta_factor is '1'; accepted: a finite number"),
    (HF, {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple"),
    (
        M1_80K,
        {"attn_type_list": [0, 0, 2, 1]},
        r"attn_type_list is .*0 \(linear_attention\), 1 \(full",
    ),
    (M1_80K, {"attn_type_list": [0, 1]}, "layer_types has 2 entries; num_hidden_layers is 4"),
    (M1_80K, {"attn_type_list": DROP}, "layer_types is missing"),
    (M1_80K, {"postnorm": DROP}, "postnorm is missing"),
    (
        M1_80K,
        {"layernorm_mlp_beta": 2.0, "mlp_beta_factor": 1.0},
        "mlp_beta_factor is 1.0, but layern",
    ),
    (M1_80K, {"num_attention_heads": 6}, "num_attention_heads is 6; accepted: a power of two"),
    (TEXT_01_HUB, {"postnorm": False}, "postnorm is False"),
]

FAMILY = Family(
    classes=dict.fromkeys(("minimax", "minimax_m1", "minimax_text_01"), CLASSES),
    variants=VARIANTS,
    released=RELEASED,
    oracles=dict.fromkeys(("minimax", "minimax_m1", "minimax_text_01"), minimax_files),
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
    parameters=dict.fromkeys((GAINED, M1_80K), ()),
)
