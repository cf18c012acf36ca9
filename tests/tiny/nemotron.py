"""The variants of Nemotron-H, Nano 2 and 3: one branch a layer, with Mamba-2 in most."""

import math
from typing import Any

FAMILIES = {"nemotron_h": ("NemotronHConfig", "NemotronHForCausalLM")}

MAMBA, ATTENTION, MLP, MOE = "linear_attention", "full_attention", "mlp", "moe"
# Where training begins, but for the first: Hugging Face also floors the steps of a prompt there,
# and of a prompt alone (test_nemotron.py). Steps from 0.3 on show in the state.
STEPS = {"time_step_min": 1e-7, "time_step_max": 1.0, "time_step_floor": 0.3}
SIZES: dict[str, Any] = {
    **STEPS,
    "head_dim": 16,
    "mamba_num_heads": 6,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 12,
    "chunk_size": 16,
}
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "nemotron_h": {
        "plain": {**SIZES, "layer_types": [MAMBA, MLP, MAMBA, ATTENTION, MLP]},
        "experts": {
            **SIZES,
            **EXPERTS,
            "layer_types": [MAMBA, MOE, ATTENTION, MOE],
            "routed_scaling_factor": 2.5,
        },
        "latents, groups, biases": {
            **SIZES,
            **EXPERTS,
            "layer_types": [MAMBA, MOE, ATTENTION, MLP],
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": False,
            "moe_latent_size": 20,
            "mlp_bias": True,
            "use_bias": True,
        },
        "no bias of the convolution, MHA, gelu": {
            **SIZES,
            "layer_types": [ATTENTION, MLP, MAMBA],
            "num_key_value_heads": 4,
            "use_conv_bias": False,
            "mamba_num_heads": 4,
            "mamba_head_dim": 20,
            "n_groups": 1,
            "conv_kernel": 2,
            "mlp_hidden_act": "gelu_pytorch_tanh",
            "layer_norm_epsilon": 0.05,
        },
    },
}

# As the files of the hub have them, but for sizes and what STEPS is for.
COMMON: dict[str, Any] = {
    **SIZES,
    "attention_bias": False,
    "conv_kernel": 4,
    "expand": 2,
    "hidden_dropout": 0.0,
    "layer_norm_epsilon": 1e-05,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "num_logits_to_keep": 1,
    "rescale_prenorm_residual": True,
    "residual_in_fp32": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_bias": False,
    "use_conv_bias": True,
    "use_mamba_kernels": True,
}
NANO3: dict[str, Any] = {
    **COMMON,
    **EXPERTS,
    "hybrid_override_pattern": "MEM*E",
    "mamba_ssm_cache_dtype": "float32",
    "n_group": 1,
    "n_shared_experts": 1,
    "norm_eps": 1e-05,
    "norm_topk_prob": True,
    "num_hidden_layers": 5,
    "partial_rotary_factor": 1.0,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "topk_group": 1,
}

RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "nemotron_h": {
        "Nemotron-Nano-9B-v2": {
            **COMMON,
            "hybrid_override_pattern": "M-M*-",
            "num_hidden_layers": 5,
            "num_query_groups": 2,
            "rms_norm_eps": 1e-05,
            "time_step_limit": [0.0, math.inf],
            "time_step_rank": 256,
        },
        "Nemotron-3-Nano": NANO3,
        "Nemotron-3-Super": {
            **NANO3,
            "moe_latent_size": 20,
            "moe_shared_expert_overlap": False,
            "mtp_hybrid_override_pattern": "*E",
            "num_experts_per_tok": 3,
            "num_nextn_predict_layers": 1,
            "routed_scaling_factor": 5.0,
        },
        "Nemotron-3-Ultra": {
            **{key: value for key, value in NANO3.items() if key != "hybrid_override_pattern"},
            "layers_block_type": ["mamba", "moe", "mamba", "attention", "moe"],
            "moe_latent_size": 20,
            "mtp_layers_block_type": ["attention", "moe"],
            "num_nextn_predict_layers": 1,
        },
    },
}
