"""The variants of the families with Gated DeltaNets (Qwen3-Next, Qwen3.5)."""

from typing import Any

from tiny.configs import FULL, SIZES, YARN
from tiny.family import Change, Family
from tiny.llama import DROP

LINEAR = "linear_attention"
# What a DeltaNet reads may be near nothing, and the norm behind it then amplifies the noise of fp32
# until epsilon is larger: with the 1e-6 of the files, beyond the bound against Hugging Face.
HEADS: dict[str, Any] = {
    "head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_value_head_dim": 10,
    "num_hidden_layers": 4,
    "rms_norm_eps": 0.05,
}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "shared_expert_intermediate_size": 20,
}
SPARSE = {**HEADS, **EXPERTS, "num_hidden_layers": 3, "full_attention_interval": 3}
NEAR = {"rope_type": "default", "rope_theta": 100.0}
FAR_YARN = {"rope_type": "yarn", "rope_theta": 100.0, **YARN}
SECTIONS = {"mrope_interleaved": True, "mrope_section": [1, 1, 0]}
OUTER: dict[str, Any] = {
    "image_token_id": 90,
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": 32,
        "patch_size": 4,
    },
}
DENSE_TEXT = {**SIZES, **HEADS, "model_type": "qwen3_5_text", "rope_parameters": NEAR}
SPARSE_TEXT = {**DENSE_TEXT, **SPARSE, "model_type": "qwen3_5_moe_text"}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3_5": {
        "plain": {**OUTER, "text_config": DENSE_TEXT},
        "tied": {
            **OUTER,
            "text_config": {**DENSE_TEXT, "linear_num_value_heads": 4, "tie_word_embeddings": True},
            "tie_word_embeddings": True,
        },
    },
    "qwen3_5_moe": {"plain": {**OUTER, "text_config": SPARSE_TEXT}},
    "qwen3_5_moe_text": {
        "plain": SPARSE,
        "all experts, halves, tied": {
            **SPARSE,
            "num_experts": 5,
            "num_experts_per_tok": 5,
            "layer_types": [FULL, LINEAR, LINEAR],
            "rope_parameters": {**NEAR, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
        },
    },
    "qwen3_5_text": {
        "plain": {**HEADS, "rope_parameters": NEAR},
        "as many heads, bias, gelu, tied": {
            **HEADS,
            "attention_bias": True,
            "hidden_act": "gelu_pytorch_tanh",
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "num_hidden_layers": 3,
            "layer_types": [LINEAR, FULL, LINEAR],
            "rope_parameters": {**NEAR, **SECTIONS, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
        },
        "two taps, wide keys, yarn": {
            **HEADS,
            "linear_conv_kernel_dim": 2,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 8,
            "rope_parameters": FAR_YARN,
        },
        "all linear, the epsilon of the files": {
            **HEADS,
            "num_hidden_layers": 2,
            "layer_types": [LINEAR] * 2,
            "rms_norm_eps": 1e-6,
        },
    },
    "qwen3_next": {
        "plain": {**SPARSE, "rope_parameters": NEAR},
        "as they are, bias, tied": {
            **SPARSE,
            "attention_bias": True,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 4,
            "norm_topk_prob": False,
            "layer_types": [LINEAR, FULL, LINEAR],
            "rope_parameters": {**NEAR, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
        },
        "dense layers, gelu": {
            **HEADS,
            **EXPERTS,
            "decoder_sparse_step": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "mlp_only_layers": [3],
            "rope_parameters": FAR_YARN,
        },
    },
}

# As the files of the hub have them, but for sizes, theta and epsilon; they are made for 1 << 18.
CONTEXT = {"max_position_embeddings": 1 << 20}
MTP = {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}
QWEN_3_5: dict[str, Any] = {
    **HEADS,
    **CONTEXT,
    **MTP,
    "attention_bias": False,
    "attn_output_gate": True,
    "full_attention_interval": 4,
    "hidden_act": "silu",
    "layer_types": [LINEAR, LINEAR, LINEAR, FULL],
    "mamba_ssm_dtype": "float32",
    "mlp_only_layers": [],
    "rope_parameters": {**NEAR, **SECTIONS, "partial_rotary_factor": 0.25},
}
QWEN_3_5_MOE = {**QWEN_3_5, **SPARSE, "layer_types": [LINEAR, LINEAR, FULL]}
OUTER_3_5 = {**OUTER, "tie_word_embeddings": False}
RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3_5": {
        "Qwen3.5-27B": {
            **OUTER_3_5,
            "text_config": {**SIZES, **QWEN_3_5, "model_type": "qwen3_5_text"},
        }
    },
    "qwen3_5_moe": {
        "Qwen3.5-35B-A3B": {
            **OUTER_3_5,
            "text_config": {
                **{key: value for key, value in SIZES.items() if key != "intermediate_size"},
                **QWEN_3_5_MOE,
                "model_type": "qwen3_5_moe_text",
                "router_aux_loss_coef": 0.001,
            },
        }
    },
    "qwen3_5_moe_text": {"Qwen3.5-35B-A3B (text)": QWEN_3_5_MOE},
    "qwen3_5_text": {"Qwen3.5-27B (text)": QWEN_3_5},
    "qwen3_next": {
        "Qwen3-Next-80B-A3B": {
            **SPARSE,
            **CONTEXT,
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "hidden_act": "silu",
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "output_router_logits": False,
            "partial_rotary_factor": 0.25,
            "rope_scaling": None,
            "rope_theta": 100,
            "router_aux_loss_coef": 0.001,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
        }
    },
}

NEXT, DENSE = "qwen3_next/Qwen3-Next-80B-A3B", "qwen3_5_text/Qwen3.5-27B (text)"

MOE, GELU = "qwen3_5_moe_text/Qwen3.5-35B-A3B (text)", "qwen3_next/dense layers, gelu"

BIAS = "qwen3_next/as they are, bias, tied"

QUARTER = {**NEAR, "partial_rotary_factor": 0.25}

# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    (NEXT, {"norm_topk_prob": False}),
    (NEXT, {"num_experts_per_tok": 2}),
    (NEXT, {"rms_norm_eps": 1e-6}),
    (NEXT, {"rope_theta": 50}),
    (NEXT, {"partial_rotary_factor": 0.5}),
    (NEXT, {"partial_rotary_factor": None}),
    (NEXT, {"linear_num_key_heads": 1, "linear_key_head_dim": 12}),
    (GELU, {"hidden_act": "silu"}),
    (MOE, {"num_experts_per_tok": 2}),
    (DENSE, {"rope_parameters": {**QUARTER, "rope_theta": 50.0}}),
    (DENSE, {"linear_num_key_heads": 1, "linear_key_head_dim": 12}),
]

# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, Change] | tuple[str, Change, Change]] = [
    (NEXT, {"partial_rotary_factor": DROP}),
    (NEXT, {"rope_theta": DROP, "partial_rotary_factor": DROP, "rope_parameters": QUARTER}),
    (NEXT, {"full_attention_interval": 4, "layer_types": [LINEAR, LINEAR, FULL]}),
    (NEXT, {"num_experts": DROP, "num_local_experts": 8}),
    (NEXT, {"mlp_only_layers": None}),
    (DENSE, {"layer_types": DROP}),
    (DENSE, {"full_attention_interval": 7}),
    (DENSE, {"rope_parameters": QUARTER}),
    (DENSE, {"rope_parameters": {**QUARTER, **SECTIONS, "mrope_interleaved": False}}),
    (DENSE, {"rope_parameters": {**QUARTER, "mrope_section": [0, 1, 1]}}),
    (DENSE, {"attn_output_gate": DROP, "output_gate_type": "swish", "mtp_num_hidden_layers": 0}),
    (MOE, {"norm_topk_prob": True, "intermediate_size": DROP}),
]

REFUSED: list[tuple[str, Change, str]] = [
    (NEXT, {"layer_types": [LINEAR, FULL]}, "layer_types has 2 entries; num_hidden_layers is 3"),
    (NEXT, {"layer_types": [LINEAR, FULL, "sliding_attention"]}, r"layer_types\[2\] is 'sliding"),
    (NEXT, {"linear_num_key_heads": 4}, "linear_num_value_heads 6 is not a multiple of .* 4"),
    (NEXT, {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of .* 3"),
    (NEXT, {"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim is 0; accepted: 1"),
    (NEXT, {"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
    (NEXT, {"use_sliding_window": True}, "use_sliding_window = True, which nothing reads"),
    (NEXT, {"attn_output_gate": True}, "attn_output_gate = True, which nothing reads"),
    (NEXT, {"rope_parameters": {"mrope_section": [1, 1, 0]}}, "mrope_section = .*, which nothing"),
    (NEXT, {"partial_rotary_factor": 0.1}, "rotary width is 1"),
    (DENSE, {"attn_output_gate": False}, "attn_output_gate is False; implemented: True"),
    (DENSE, {"output_gate_type": "sigmoid"}, "output_gate_type is 'sigmoid'"),
    (DENSE, {"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype is 'bfloat16'"),
    (DENSE, {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\], which nothing reads"),
    (DENSE, {"rope_parameters": {**NEAR, "mrope_section": [1, 1]}}, "mrope_section has 2 entries"),
    (
        DENSE,
        {"rope_parameters": {**NEAR, "mrope_section": [1, 1, -1]}},
        r"mrope_section\[2\] is -1",
    ),
    (DENSE, {"rope_parameters": {**NEAR, "mrope_interleaved": 1}}, "mrope_interleaved is 1"),
    (MOE, {"norm_topk_prob": False}, "norm_topk_prob is False; implemented: True"),
    (MOE, {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
]

FAMILY = Family(
    classes={
        "qwen3_5": ("Qwen3_5Config", "Qwen3_5ForConditionalGeneration"),
        "qwen3_5_moe": ("Qwen3_5MoeConfig", "Qwen3_5MoeForConditionalGeneration"),
        "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM"),
        "qwen3_5_text": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM"),
        "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM"),
    },
    variants=VARIANTS,
    released=RELEASED,
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
    parameters=dict.fromkeys((NEXT, GELU, BIAS, DENSE, MOE), ()),
)
