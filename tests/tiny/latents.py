"""The variants of the families with latent attention, with and without an indexer."""

from typing import Any

from tiny.configs import YARN
from tiny.family import Change, Family
from tiny.llama import DROP

PLAIN = {"rope_type": "default", "rope_theta": 100.0}
SCALED = {"rope_type": "yarn", "rope_theta": 100.0, **YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "rope_parameters": PLAIN,
}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
# Many heads: with few, relu leaves scores that are exactly 0, and equal ones are for the order of
# positions to settle, of which Hugging Face's topk promises nothing.
DSA = {**MLA, "index_topk": 8, "index_head_dim": 16, "index_n_heads": 16, **ONE_GROUP}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "pos_emb_time": 2,
}
TEXT = {
    **MLA,
    **ONE_GROUP,
    "model_type": "deepseek_v3",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "routed_scaling_factor": 2.827,
    "rope_parameters": {**SCALED, "beta_fast": 1.0, "beta_slow": 1.0},
    "tie_word_embeddings": False,
}
OUTER = {
    "vision_config": VISION,
    "projection_hidden_size": 16,
    "image_token_id": 190,
    "video_token_id": 191,
    "vision_start_token_id": 192,
    "vision_end_token_id": 193,
}
TEMPERED = {**SCALED, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.3}


def on_the_hub(name: str) -> str:
    """Return the name of a tensor of Kimi K2.5 on the hub, of that which save_pretrained writes."""
    name = name.replace("language_model.model.blocks.", "language_model.model.layers.")
    name = name.replace("vision_tower.encoder.patch_embed.", "vision_tower.patch_embed.")
    return name.removeprefix("model.") if name.startswith("model.mm_projector.") else name


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "deepseek_v3": {
        "plain": {**MLA, "n_group": 4, "topk_group": 2},
        "yarn, scaled, bias": {
            **MLA,
            **ONE_GROUP,
            "attention_bias": True,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 0,
            "rope_parameters": SCALED,
        },
        "queries without latents, halves, tied": {
            **MLA,
            **ONE_GROUP,
            "q_lora_rank": None,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "v_head_dim": 20,
            "rms_norm_eps": 0.05,
            "tie_word_embeddings": True,
        },
        "two scales, all dense, gelu": {
            **MLA,
            **ONE_GROUP,
            "first_k_dense_replace": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": {**SCALED, "mscale": 0.7, "mscale_all_dim": 1.3},
        },
    },
    "deepseek_v32": {
        "plain": {**DSA, "n_group": 4, "topk_group": 2},
        "yarn, listed experts, bias": {
            **DSA,
            "index_topk": 5,
            "index_head_dim": 8,
            "attention_bias": True,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "rope_parameters": SCALED,
        },
        "more than there are, tied": {**DSA, "index_topk": 4096, "tie_word_embeddings": True},
    },
    "glm_moe_dsa": {
        "plain": {**DSA, "first_k_dense_replace": 2},
        "shared, wide values": {
            **DSA,
            "num_hidden_layers": 6,
            "indexer_types": ["full", "shared", "shared", "full", "full", "shared"],
            "v_head_dim": 24,
        },
        "one position": {**DSA, "index_topk": 1, "qk_nope_head_dim": 24},
    },
    "kimi_k2": {
        "plain": {**MLA, **ONE_GROUP, "routed_scaling_factor": 2.827},
    },
    "kimi_k25": {
        "plain": {**OUTER, "text_config": TEXT, "tie_word_embeddings": False},
        "tied": {
            **OUTER,
            "text_config": {**TEXT, "tie_word_embeddings": True, "rope_parameters": PLAIN},
            "tie_word_embeddings": True,
        },
    },
    "mistral4": {
        "plain": {**MLA, "rope_parameters": TEMPERED},
        "groups, as they are, halves": {
            **MLA,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
            "rope_interleave": False,
            "q_lora_rank": None,
            "rope_parameters": {**TEMPERED, "mscale_all_dim": 0.5},
        },
        "bias, tied, one factor": {
            **MLA,
            "attention_bias": True,
            "first_k_dense_replace": 0,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                **YARN,
                "attention_factor": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    },
}

# As the files of the hub have them, but for sizes and theta.
DEEPSEEK: dict[str, Any] = {
    **{key: value for key, value in MLA.items() if key != "rope_parameters"},
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16,
        "type": "yarn",
    },
    "rope_theta": 100,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
}
KIMI: dict[str, Any] = {
    **DEEPSEEK,
    "n_group": 1,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**DEEPSEEK["rope_scaling"], "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32},
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
}
INDEXER = {"index_head_dim": 16, "index_n_heads": 16, "index_topk": 8}

RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "deepseek_v3": {"DeepSeek-V3": DEEPSEEK},
    "deepseek_v32": {"DeepSeek-V3.2": {**DEEPSEEK, **INDEXER}},
    "glm_moe_dsa": {
        "GLM-5": {
            **{k: v for k, v in DEEPSEEK.items() if k not in ("rope_scaling", "rope_theta")},
            **INDEXER,
            "aux_loss_alpha": None,
            "head_dim": 192,
            "indexer_rope_interleave": True,
            "n_group": 1,
            "qk_head_dim": 20,
            "rms_norm_eps": 1e-05,
            "rope_interleave": True,
            "rope_parameters": {"rope_theta": 100, "rope_type": "default"},
            "topk_group": 1,
        },
        "GLM-5.2": {
            **{k: v for k, v in DEEPSEEK.items() if k not in ("rope_scaling", "rope_theta")},
            **INDEXER,
            "index_skip_topk_offset": 2,
            "index_topk_freq": 4,
            "n_group": 1,
            "num_hidden_layers": 7,
            "rope_parameters": {"rope_theta": 100, "rope_type": "default"},
            "topk_group": 1,
        },
    },
    "kimi_k2": {"Kimi-K2": KIMI},
    "kimi_k25": {
        "Kimi-K2.5": {
            **OUTER,
            "ignore_index": -100,
            "media_placeholder_token_id": 190,
            "text_config": {**TEXT, **KIMI, "model_type": "kimi_k2", "rope_parameters": None},
            "tie_word_embeddings": False,
            "use_unified_vision_chunk": True,
            "video_placeholder": "<|kimi_k25_video_placeholder|>",
        }
    },
    "mistral4": {
        "Mistral-Small-4 (text)": {
            **{key: value for key, value in MLA.items() if key != "rope_parameters"},
            **ONE_GROUP,
            "attention_bias": False,
            "hidden_act": "silu",
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "rms_norm_eps": 1e-06,
            "rope_interleave": True,
            "rope_parameters": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 128.0,
                "llama_4_scaling_beta": 0.1,
                "max_position_embeddings": 1048576,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 16,
                "partial_rotary_factor": 0.4,
                "rope_theta": 100.0,
                "rope_type": "yarn",
                "type": "yarn",
            },
            "routed_scaling_factor": 1.0,
            "tie_word_embeddings": False,
        }
    },
}

V3, V32, K2 = "deepseek_v3/DeepSeek-V3", "deepseek_v32/DeepSeek-V3.2", "kimi_k2/Kimi-K2"

GLM5, GLM52 = "glm_moe_dsa/GLM-5", "glm_moe_dsa/GLM-5.2"

SMALL4, SHARED = "mistral4/Mistral-Small-4 (text)", "glm_moe_dsa/shared, wide values"

DIRECT = "deepseek_v3/queries without latents, halves, tied"


def scaled(name: str, **changes: Any) -> Change:
    """Return the rope_scaling, or rope_parameters, of a released config with changes."""
    family, _, variant = name.partition("/")
    config = RELEASED[family][variant]
    key = "rope_scaling" if "rope_scaling" in config else "rope_parameters"
    values = {**config[key], **changes}
    return {key: {k: v for k, v in values.items() if v is not DROP}}


# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    (V3, scaled(V3, mscale_all_dim=0.5)),
    (V3, scaled(V3, mscale=0.5)),
    (V3, {"rope_interleave": False}),
    (V3, {"n_group": 2}),
    (V3, {"topk_group": 3}),
    (V3, {"norm_topk_prob": False}),
    (V3, {"routed_scaling_factor": 1.0}),
    (K2, {"rms_norm_eps": 0.05}),
    (V32, {"index_topk": 7}),
    (GLM5, {"index_topk": 9}),
    (GLM52, {"index_topk": 4}),
    (SMALL4, scaled(SMALL4, llama_4_scaling_beta=0.5)),
    (SMALL4, scaled(SMALL4, original_max_position_embeddings=8)),
    (SMALL4, scaled(SMALL4, mscale_all_dim=0.5)),
    (SMALL4, {"n_group": 4, "topk_group": 1}),
]

# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, Change] | tuple[str, Change, Change]] = [
    (V3, {"moe_router_dtype": "float32"}),
    (SHARED, {"index_share_for_mtp_iteration": True, "moe_router_dtype": "float32"}),
    (V3, {"head_dim": 8, "qk_head_dim": 20}, {}),
    (V32, {"head_dim": 7}, {}),
    (GLM52, {"index_topk_pattern": None}, {}),
    (V3, {"num_key_value_heads": None}, {}),
    (V3, {"n_routed_experts": DROP, "num_local_experts": 8}, {}),
    (V3, {"num_nextn_predict_layers": DROP, "num_mtp_layers": 0}, {}),
    (V3, {"rope_scaling": DROP, "rope_theta": DROP, "rope_parameters": {
        **RELEASED["deepseek_v3"]["DeepSeek-V3"]["rope_scaling"], "rope_theta": 100}}, {}),
    (V32, {"mlp_layer_types": ["dense", "sparse", "sparse"]}, {}),
    (V32, {"layer_types": ["indexed_attention"] * 3}, {}),
    (V32, {"layer_types": ["deepseek_sparse_attention"] * 3}, {}),
    (GLM52, {"layer_types": ["deepseek_sparse_attention"] * 7}, {}),
    (V32, {"index_topk": 64}, {"index_topk": 4096}),  # as many as there are, or more
    (GLM52, {"index_topk_freq": DROP, "index_topk_pattern": "FFSSSFS"}, {}),
    (GLM52, {"index_topk_pattern": ["full"] * 2 + ["shared"] * 3 + ["full", "shared"]}, {}),
    (SMALL4, scaled(SMALL4, partial_rotary_factor=DROP), {}),
]  # fmt: skip

# What define refuses, beside what the command does (malformed_latents).
REFUSED: list[tuple[str, Change, str]] = [
    (V3, {"head_dim": 20}, "head_dim is 20, but 8 by qk_rope_head_dim"),
    (V3, {"head_dim": None}, "head_dim is None; leave it out"),
    (V3, {"num_key_value_heads": DROP}, "num_key_value_heads is missing"),
    (V3, {"num_experts_per_tok": DROP}, "num_experts_per_tok is missing"),
    (V3, {"rope_theta": DROP}, "rope_theta is missing, also in rope_parameters"),
    (V3, {"routed_scaling_factor": None}, "routed_scaling_factor is None"),
    (V3, {"num_local_experts": None}, "num_local_experts is None; leave it out"),
    (V3, {"n_group": 8}, "n_group is 8, of as many experts; accepted: groups of two"),
    (SMALL4, {"head_dim": 7}, "head_dim is 7, but "),
    (SMALL4, {"rope_parameters": {}}, "rope_parameters is {}; leave it out"),
    (SHARED, {"moe_router_dtype": "bfloat16"}, "moe_router_dtype is 'bfloat16'"),
    (V3, {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    (V3, {"topk_method": "greedy"}, "topk_method is 'greedy'"),
    (V3, {"index_topk": 8}, "index_topk = 8, which nothing reads"),
    (V32, {"indexer_types": ["full"] * 3}, "indexer_types = .*, which nothing reads"),
    (V32, {"indexer_rope_interleave": True}, "indexer_rope_interleave is True"),
    (V32, {"mlp_layer_types": ["sparse"]}, "mlp_layer_types has 1 entries"),
    (SMALL4, scaled(SMALL4, partial_rotary_factor=0.5), "partial_rotary_factor is 0.5; .* 0.4"),
    (SMALL4, scaled(SMALL4, llama_4_scaling_beta=DROP), "llama_4_scaling_beta is missing"),
    (SMALL4, {"scoring_func": "sigmoid"}, "scoring_func = 'sigmoid', which nothing reads"),
]

FAMILY = Family(
    classes={
        "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
        "deepseek_v32": ("DeepseekV32Config", "DeepseekV32ForCausalLM"),
        "glm_moe_dsa": ("GlmMoeDsaConfig", "GlmMoeDsaForCausalLM"),
        # Hugging Face has no class of this name: the files name DeepSeek's.
        "kimi_k2": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
        "kimi_k25": ("Kimi_K25Config", "Kimi_K25ForConditionalGeneration"),
        "mistral4": ("Mistral4Config", "Mistral4ForCausalLM"),
    },
    variants=VARIANTS,
    released=RELEASED,
    hub_names={"kimi_k25": on_the_hub},
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
    parameters=dict.fromkeys((V3, V32, SHARED, DIRECT, "mistral4/bias, tied, one factor"), ()),
)
