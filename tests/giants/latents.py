"""The giants with latent attention, as they are published in bfloat16.

The layers that predict further tokens are not in these files, nor in what their makers count.
"""

from collections.abc import Iterator
from typing import Any

Tensor = tuple[str, str, tuple[int, ...]]  # name, dtype as safetensors has it, shape

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}

KIMI_K2: dict[str, Any] = {
    **DEEPSEEK_V3,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "rope_scaling": {
        **DEEPSEEK_V3["rope_scaling"],
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "factor": 32.0,
    },
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "seq_aux": True,
    "topk_group": 1,
    "vocab_size": 163840,
}

GLM_5: dict[str, Any] = {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "eos_token_id": [154820, 154827, 154829],
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_topk": 2048,
    "indexer_rope_interleave": True,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202752,
    "model_type": "glm_moe_dsa",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 78,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 154820,
    "pretraining_tp": 1,
    "q_lora_rank": 2048,
    "qk_head_dim": 256,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_interleave": True,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "use_cache": True,
    "v_head_dim": 256,
    "vocab_size": 154880,
}


def latents(c: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors of a config."""
    dim, vocabulary = c["hidden_size"], c["vocab_size"]
    yield "model.embed_tokens.weight", "BF16", (vocabulary, dim)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        yield from _attention(f"{at}.self_attn", c)
        if i < c["first_k_dense_replace"]:
            yield from gated(f"{at}.mlp", dim, c["intermediate_size"])
        else:
            yield from _experts(f"{at}.mlp", c)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{name}.weight", "BF16", (dim,)
    yield "model.norm.weight", "BF16", (dim,)
    yield "lm_head.weight", "BF16", (vocabulary, dim)


def _attention(at: str, c: dict[str, Any]) -> Iterator[Tensor]:
    dim, heads = c["hidden_size"], c["num_attention_heads"]
    query_rank, rank, rotated = c["q_lora_rank"], c["kv_lora_rank"], c["qk_rope_head_dim"]
    plain, values = c["qk_nope_head_dim"], c["v_head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "q_a_proj.weight": (query_rank, dim),
        "q_a_layernorm.weight": (query_rank,),
        "q_b_proj.weight": (heads * (plain + rotated), query_rank),
        "kv_a_proj_with_mqa.weight": (rank + rotated, dim),
        "kv_a_layernorm.weight": (rank,),
        "kv_b_proj.weight": (heads * (plain + values), rank),
        "o_proj.weight": (dim, heads * values),
    }
    if "index_topk" in c:
        index_heads, width = c["index_n_heads"], c["index_head_dim"]
        shapes |= {
            "indexer.wq_b.weight": (index_heads * width, query_rank),
            "indexer.wk.weight": (width, dim),
            "indexer.k_norm.weight": (width,),
            "indexer.k_norm.bias": (width,),
            "indexer.weights_proj.weight": (index_heads, dim),
        }
    for name, shape in shapes.items():
        yield f"{at}.{name}", "BF16", shape


def _experts(at: str, c: dict[str, Any]) -> Iterator[Tensor]:
    dim, inner, experts = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
    yield f"{at}.gate.weight", "BF16", (experts, dim)
    yield f"{at}.gate.e_score_correction_bias", "F32", (experts,)
    for e in range(experts):
        yield from gated(f"{at}.experts.{e}", dim, inner)
    yield from gated(f"{at}.shared_experts", dim, inner * c["n_shared_experts"])


def gated(at: str, dim: int, inner: int) -> Iterator[Tensor]:
    for name, shape in (("gate", (inner, dim)), ("up", (inner, dim)), ("down", (dim, inner))):
        yield f"{at}.{name}_proj.weight", "BF16", shape
