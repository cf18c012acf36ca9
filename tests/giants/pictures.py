"""The giants that read pictures, as they are published in bfloat16; of Kimi K2.5, whose experts are
published in INT4, the shapes."""

from collections.abc import Iterator
from typing import Any

from giants.hybrids import delta_net, gated_attention
from giants.latents import KIMI_K2, Tensor, gated, latents
from giants.towers import llama4_vision, moonvit, pixtral, qwen_vision, siglip

SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA_3_27B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "attention_bias": False,
        "head_dim": 128,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "layer_types": [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(62)],
        "max_position_embeddings": 131072,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000,
        "sliding_window": 1024,
        "vocab_size": 262208,
    },
    "vision_config": {
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "layer_norm_eps": 1e-06,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}

MISTRAL_SMALL_31: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "text_config": {
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "vocab_size": 131072,
    },
    "vision_config": {
        "attention_dropout": 0.0,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "image_size": 1540,
        "intermediate_size": 4096,
        "model_type": "pixtral",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "rope_theta": 10000.0,
    },
    "vision_feature_layer": -1,
}

LLAMA_4_SCOUT: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "boi_token_index": 200080,
    "eoi_token_index": 200081,
    "image_token_index": 200092,
    "model_type": "llama4",
    "text_config": {
        "attention_bias": False,
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 262144,
        "model_type": "llama4_text",
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "use_qk_norm": True,
        "vocab_size": 202048,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 1408,
        "image_size": 336,
        "intermediate_size": 5632,
        "model_type": "llama4_vision_model",
        "multi_modal_projector_bias": False,
        "norm_eps": 1e-05,
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 34,
        "patch_size": 14,
        "pixel_shuffle_ratio": 0.5,
        "projector_dropout": 0.0,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "rope_theta": 10000,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "vision_output_dim": 4096,
    },
}

QWEN35_397B: dict[str, Any] = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "image_token_id": 248056,
    "model_type": "qwen3_5_moe",
    "text_config": {
        "attention_bias": False,
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 64,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 1024,
        "num_attention_heads": 32,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 60,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "shared_expert_intermediate_size": 1024,
        "vocab_size": 248320,
    },
    "tie_word_embeddings": False,
    "video_token_id": 248057,
    "vision_config": {
        "deepstack_visual_indexes": [],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "intermediate_size": 4304,
        "model_type": "qwen3_5_moe",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 248054,
    "vision_start_token_id": 248053,
}

KIMI_K25: dict[str, Any] = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "ignore_index": -100,
    "media_placeholder_token_id": 163605,
    "model_type": "kimi_k25",
    "text_config": {
        **KIMI_K2,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**KIMI_K2["rope_scaling"], "beta_fast": 32.0, "factor": 64.0},
    },
    "tie_word_embeddings": False,
    "use_unified_vision_chunk": True,
    "video_placeholder": "<|kimi_k25_video_placeholder|>",
    "vision_config": {
        "init_pos_emb_height": 64,
        "init_pos_emb_time": 4,
        "init_pos_emb_width": 64,
        "merge_kernel_size": [2, 2],
        "merge_type": "sd2_tpool",
        "mm_hidden_size": 1152,
        "mm_projector_type": "patchmerger",
        "patch_size": 14,
        "pos_emb_type": "divided_fixed",
        "projector_hidden_act": "gelu",
        "projector_ln_eps": 1e-05,
        "text_hidden_size": 7168,
        "video_attn_type": "spatial_temporal",
        "vt_hidden_size": 1152,
        "vt_intermediate_size": 4304,
        "vt_num_attention_heads": 16,
        "vt_num_hidden_layers": 27,
    },
}

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
# Architecture -> preprocessor_config.json: how pictures are made for the tower.
PROCESSORS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 256,
        "resample": 2,
        "size": {"height": 896, "width": 896},
        **HALF,
    },
    "kimi_k25": {
        "media_proc_cfg": {
            "in_patch_limit": 16384,
            "in_patch_limit_each_frame": 4096,
            "merge_kernel_size": 2,
            "patch_limit_on_one_side": 512,
            "patch_size": 14,
            "sample_fps": 2.0,
            "temporal_merge_kernel_size": 4,
            "timestamp_mode": "hh:mm:ss.fff",
            **HALF,
        },
    },
    "llama4": {
        "image_processor_type": "Llama4ImageProcessorFast",
        "max_patches": 16,
        "resample": 2,
        "resize_to_max_canvas": False,
        "size": {"height": 336, "width": 336},
        **HALF,
    },
    "mistral3": {
        "image_processor_type": "PixtralImageProcessor",
        "patch_size": {"height": 14, "width": 14},
        "size": {"longest_edge": 1540},
    },
    "qwen3_5_moe": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "merge_size": 2,
        "patch_size": 16,
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "temporal_patch_size": 2,
        **HALF,
    },
}
# processor_config.json, where it says something.
OWN: dict[str, dict[str, Any]] = {"mistral3": {"patch_size": 14, "spatial_merge_size": 2}}


def gemma3(c: dict[str, Any]) -> Iterator[Tensor]:
    text = c["text_config"]
    dim, head = text["hidden_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    at = "language_model.model"
    yield f"{at}.embed_tokens.weight", "BF16", (text["vocab_size"], dim)
    for i in range(text["num_hidden_layers"]):
        layer = f"{at}.layers.{i}"
        yield from _attention(f"{layer}.self_attn", dim, queries, keys)
        for name in ("q_norm", "k_norm"):
            yield f"{layer}.self_attn.{name}.weight", "BF16", (head,)
        yield from gated(f"{layer}.mlp", dim, text["intermediate_size"])
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{layer}.{name}_layernorm.weight", "BF16", (dim,)
    yield f"{at}.norm.weight", "BF16", (dim,)
    yield from siglip(c)


def mistral3(c: dict[str, Any]) -> Iterator[Tensor]:
    text = c["text_config"]
    dim, head = text["hidden_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    yield from _ends("language_model.model", "language_model.lm_head", text)
    for i in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}"
        yield from _attention(f"{layer}.self_attn", dim, queries, keys)
        yield from gated(f"{layer}.mlp", dim, text["intermediate_size"])
        yield from _two_norms(layer, dim)
    yield from pixtral(c)


def llama4(c: dict[str, Any]) -> Iterator[Tensor]:
    text = c["text_config"]
    dim, inner, head = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    experts = text["num_local_experts"]
    yield from _ends("language_model.model", "language_model.lm_head", text)
    for i in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}"
        yield from _attention(f"{layer}.self_attn", dim, queries, keys)
        ffn = f"{layer}.feed_forward"
        yield f"{ffn}.router.weight", "BF16", (experts, dim)
        yield f"{ffn}.experts.gate_up_proj", "BF16", (experts, dim, 2 * inner)
        yield f"{ffn}.experts.down_proj", "BF16", (experts, inner, dim)
        yield from gated(f"{ffn}.shared_expert", dim, inner)
        yield from _two_norms(layer, dim)
    yield from llama4_vision(c)


def qwen35_moe(c: dict[str, Any]) -> Iterator[Tensor]:
    text = c["text_config"]
    dim, inner, experts = (
        text[key] for key in ("hidden_size", "moe_intermediate_size", "num_experts")
    )
    yield from _ends("model.language_model", "lm_head", text)
    for i in range(text["num_hidden_layers"]):
        layer = f"model.language_model.layers.{i}"
        full = (i + 1) % text["full_attention_interval"] == 0
        at = f"{layer}.{'self_attn' if full else 'linear_attn'}"
        for name, shape in (gated_attention(text) if full else delta_net(text, apart=True)).items():
            yield f"{at}.{name}", "BF16", shape
        yield f"{layer}.mlp.gate.weight", "BF16", (experts, dim)
        yield f"{layer}.mlp.shared_expert_gate.weight", "BF16", (1, dim)
        yield f"{layer}.mlp.experts.gate_up_proj", "BF16", (experts, 2 * inner, dim)
        yield f"{layer}.mlp.experts.down_proj", "BF16", (experts, dim, inner)
        yield from gated(f"{layer}.mlp.shared_expert", dim, text["shared_expert_intermediate_size"])
        yield from _two_norms(layer, dim)
    yield from qwen_vision(c)


def kimi_k25(c: dict[str, Any]) -> Iterator[Tensor]:
    for name, dtype, shape in latents(c["text_config"]):
        yield f"language_model.{name}", dtype, shape
    yield from moonvit(c)


def _attention(at: str, dim: int, queries: int, keys: int) -> Iterator[Tensor]:
    for name, shape in (("q", (queries, dim)), ("k", (keys, dim)), ("v", (keys, dim)),
                        ("o", (dim, queries))):  # fmt: skip
        yield f"{at}.{name}_proj.weight", "BF16", shape


def _ends(at: str, head: str, text: dict[str, Any]) -> Iterator[Tensor]:
    dim, vocabulary = text["hidden_size"], text["vocab_size"]
    yield f"{at}.embed_tokens.weight", "BF16", (vocabulary, dim)
    yield f"{at}.norm.weight", "BF16", (dim,)
    yield f"{head}.weight", "BF16", (vocabulary, dim)


def _two_norms(at: str, dim: int) -> Iterator[Tensor]:
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{at}.{name}.weight", "BF16", (dim,)
