"""The variants of the multimodal families, of which only the text is defined and compared."""

from typing import Any

from tiny import gemma3n as tiny_gemma3n
from tiny import gemma3n_files
from tiny.configs import FAR, PLAIN, SIZES, YARN
from tiny.family import Family
from tiny.latents import MLA, TEMPERED

TOWER: dict[str, Any] = {
    "hidden_size": 24,
    "image_size": 56,
    "intermediate_size": 40,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 1,
    "patch_size": 14,
}
SIGLIP: dict[str, Any] = {
    "vision_config": {"model_type": "siglip_vision_model", **TOWER},
    "mm_tokens_per_image": 4,
    "boi_token_index": 90,
    "eoi_token_index": 91,
    "image_token_index": 92,
}
PIXTRAL: dict[str, Any] = {"vision_config": {"model_type": "pixtral", "head_dim": 12, **TOWER}}
LLAMA4_VISION: dict[str, Any] = {
    "vision_config": {
        "model_type": "llama4_vision_model",
        **TOWER,
        "intermediate_size": 96,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 40,
        "projector_output_dim": 40,
        "vision_output_dim": 40,
    },
    "boi_token_index": 90,
    "eoi_token_index": 91,
    "image_token_index": 92,
}


def _text(model_type: str, **settings: Any) -> dict[str, Any]:
    return {"text_config": {"model_type": model_type, **SIZES, "head_dim": 8, **settings}}


GEMMA_3N: dict[str, Any] = {
    "model_type": "gemma3n",
    "architectures": ["Gemma3nForConditionalGeneration"],
    "audio_config": {
        "model_type": "gemma3n_audio",
        "conf_num_hidden_layers": 1,
        "hidden_size": 16,
        "sscp_conv_channel_size": [4, 2],
        "vocab_offset": 91,
        "vocab_size": 6,
    },
    "audio_soft_tokens_per_image": 6,
    "audio_token_id": 92,
    "boa_token_id": 81,
    "boi_token_id": 80,
    "eoa_token_id": 91,
    "eoi_token_id": 86,
    "eos_token_id": [1, 7],
    "image_token_id": 87,
    "vision_config": {
        "model_type": "gemma3n_vision",
        "model_args": {"channel_multiplier": 0.025, "msfa_output_resolution": 2},
        "vocab_offset": 86,
        "vocab_size": 5,
    },
    "vision_soft_tokens_per_image": 4,
}
GEMMA_ROPES = {
    "sliding_attention": PLAIN,
    "full_attention": {**FAR, "rope_type": "linear", "factor": 8.0},
}
LLAMA4: dict[str, Any] = {
    "attention_chunk_size": 8,
    "floor_scale": 8,
    "head_dim": 8,
    "interleave_moe_layer_step": 2,
    "intermediate_size": 24,
    "intermediate_size_mlp": 48,
    "num_hidden_layers": 4,
    "num_local_experts": 4,
}
SCALED = {"rope_type": "yarn", "rope_theta": 100.0, **YARN, "llama_4_scaling_beta": 0.5}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "gemma3": {
        "linear on full": {
            **SIGLIP,
            **_text(
                "gemma3_text",
                num_hidden_layers=7,
                query_pre_attn_scalar=24,
                rope_parameters=GEMMA_ROPES,
                sliding_window=8,
            ),
        },
        "untied": {
            **SIGLIP,
            **_text(
                "gemma3_text",
                attention_bias=True,
                sliding_window=8,
                tie_word_embeddings=False,
            ),
            "tie_word_embeddings": False,
        },
    },
    "gemma3n": {
        "untied": {
            **GEMMA_3N,
            **_text(
                "gemma3n_text",
                **{k: v for k, v in tiny_gemma3n.SMALL.items() if k != "head_dim"},
                num_hidden_layers=5,
                num_kv_shared_layers=2,
                layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
            ),
            "tie_word_embeddings": False,
        },
    },
    "llama4": {
        "dense layers": {**LLAMA4_VISION, **_text("llama4_text", rope_parameters=FAR, **LLAMA4)},
        "tied in the text": {
            **LLAMA4_VISION,
            **_text("llama4_text", **LLAMA4, tie_word_embeddings=True),
            "tie_word_embeddings": True,
        },
    },
    "mistral3": {
        "mistral, untied": {
            **PIXTRAL,
            **_text("mistral", sliding_window=8),
            "tie_word_embeddings": False,
        },
        "ministral3, tied": {
            **PIXTRAL,
            **_text("ministral3", rope_parameters=SCALED, tie_word_embeddings=True),
            "multimodal_projector_bias": True,
        },
        "mistral4, untied": {
            **PIXTRAL,
            "text_config": {
                **SIZES, **MLA, "model_type": "mistral4", "rope_parameters": TEMPERED,
                "tie_word_embeddings": False,
            },
            "tie_word_embeddings": False,
        },
    },
}  # fmt: skip

RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "gemma3": {
        # text_config names only what differs from Hugging Face's defaults.
        "gemma-3-4b-it": {
            **SIGLIP,
            "eos_token_id": [1, 96],
            "text_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "model_type": "gemma3_text",
                "num_hidden_layers": 6,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 8,
                "vocab_size": 97,
            },
        }
    },
    "gemma3n": {
        "gemma-3n-E2B-it": {
            **GEMMA_3N,
            "text_config": {
                **SIZES,
                **tiny_gemma3n.RELEASED["gemma3n_text"]["gemma-3n-E2B (text)"],
                "model_type": "gemma3n_text",
            },
        },
    },
    "llama4": {
        "Llama-4-Scout": {
            **LLAMA4_VISION,
            "text_config": {
                **LLAMA4,
                "attn_scale": 0.1,
                "attn_temperature_tuning": True,
                "bos_token_id": 1,
                "eos_token_id": [1, 7, 8],
                "for_llm_compressor": False,
                "hidden_act": "silu",
                "hidden_size": 32,
                "interleave_moe_layer_step": 1,
                "max_position_embeddings": 64,
                "model_type": "llama4_text",
                "no_rope_layers": [],
                "num_attention_heads": 4,
                "num_experts_per_tok": 1,
                "num_key_value_heads": 2,
                "output_router_logits": False,
                "rms_norm_eps": 1e-05,
                "rope_scaling": {
                    "factor": 8.0,
                    "high_freq_factor": 4.0,
                    "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 32,
                    "rope_type": "llama3",
                },
                "rope_theta": 500.0,
                "router_aux_loss_coef": 0.001,
                "router_jitter_noise": 0.0,
                "use_cache": True,
                "use_qk_norm": True,
                "vocab_size": 97,
            },
        }
    },
    "mistral3": {
        "Mistral-Small-3.1-24B": {
            **PIXTRAL,
            "image_token_index": 10,
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu",
            "spatial_merge_size": 2,
            "text_config": {
                "attention_dropout": 0.0,
                "head_dim": 16,
                "hidden_act": "silu",
                "hidden_size": 32,
                "initializer_range": 0.02,
                "intermediate_size": 48,
                "max_position_embeddings": 64,
                "model_type": "mistral",
                "num_attention_heads": 4,
                "num_hidden_layers": 3,
                "num_key_value_heads": 2,
                "rms_norm_eps": 1e-05,
                "rope_theta": 1000.0,
                "sliding_window": None,
                "use_cache": True,
                "vocab_size": 97,
            },
            "tie_word_embeddings": False,
            "vision_feature_layer": -1,
        }
    },
}

# What is changed in the text, or around it, is tested in test_multimodal.py.
FAMILY = Family(
    classes={
        "gemma3": ("Gemma3Config", "Gemma3ForConditionalGeneration"),
        "gemma3n": ("", ""),  # of gemma3n_files.py
        "llama4": ("Llama4Config", "Llama4ForConditionalGeneration"),
        "mistral3": ("Mistral3Config", "Mistral3ForConditionalGeneration"),
    },
    variants=VARIANTS,
    released=RELEASED,
    oracles={"gemma3n": gemma3n_files},
)
