"""The variants of Nemotron-H, Nano 2 and 3: one branch a layer, with Mamba-2 in most."""

import math
from typing import Any

from tiny.family import Change, Family
from tiny.llama import DROP

MAMBA, ATTENTION, MLP, MOE = "linear_attention", "full_attention", "mlp", "moe"
# Where training begins, but for the first: Hugging Face also floors the steps of a prompt there,
# and of a prompt alone (test_nemotron.py). Steps from 0.3 on show in the state.
STEPS = {"time_step_min": 1e-7, "time_step_max": 1.0, "time_step_floor": 0.3}
SIZES: dict[str, Any] = {
    **STEPS,
    "head_dim": 16,
    "mamba_num_heads": 8,
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

NANO2, NANO_3, SUPER, ULTRA = (
    f"nemotron_h/Nemotron-{name}" for name in ("Nano-9B-v2", "3-Nano", "3-Super", "3-Ultra")
)

LATENTS = "nemotron_h/latents, groups, biases"

GELU = "nemotron_h/no bias of the convolution, MHA, gelu"

PATTERN, INFINITY = "hybrid_override_pattern", {"__float__": "Infinity"}

OLD = ["mamba", "mlp", "mamba", "attention", "mlp"]

NEW = ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp"]

# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    (NANO2, {"time_step_limit": [0.5, math.inf]}),
    (NANO2, {"time_step_limit": [0.0, 0.2]}),
    (NANO2, {"layer_norm_epsilon": 0.05, "rms_norm_eps": 0.05}),
    (NANO2, {"mamba_hidden_act": "gelu"}),
    (GELU, {"mlp_hidden_act": "relu2"}),
    (NANO_3, {"norm_topk_prob": False}),
    (NANO_3, {"routed_scaling_factor": 1.0}),
    (NANO_3, {"num_experts_per_tok": 3}),
    (NANO_3, {"n_group": 4}),
    (LATENTS, {"n_group": 2}),
    (LATENTS, {"topk_group": 3}),
]

# Settings that say what holds anyway, in other words or by default, or that say nothing.
SILENT: list[tuple[str, Change] | tuple[str, Change, Change]] = [
    (NANO2, {"time_step_limit": DROP}),
    (NANO2, {"time_step_limit": [0.0, INFINITY]}),
    (NANO2, {"time_step_limit": [0.0, 1e308]}),
    (NANO2, {"time_step_limit": [-1e308, 10**400]}),
    (NANO2, {"time_step_limit": DROP, "mamba_dt_limit": [0.0, math.inf]}),
    (NANO2, {"time_step_min": 0.5, "time_step_max": 9.0, "time_step_floor": 0.5}),
    (NANO2, {"rope_theta": 7.0, "partial_rotary_factor": 0.5, "rope_scaling": {"factor": 2.0}}),
    (NANO2, {"chunk_size": 64, "expand": 7, "use_mamba_kernels": False, "num_query_groups": 7}),
    (NANO2, {"residual_in_fp32": True, "rescale_prenorm_residual": False}),
    (NANO2, {PATTERN: "M-M*-", "layers_block_type": OLD, "layer_types": NEW}),
    (NANO2, {PATTERN: DROP, "layers_block_type": OLD}),
    (NANO2, {PATTERN: DROP, "layer_types": NEW, "num_hidden_layers": DROP}),
    (NANO2, {"n_groups": DROP, "mamba_num_groups": 2, "head_dim": DROP, "attention_head_dim": 16}),
    (NANO2, {"ssm_state_size": DROP, "mamba_state_dim": 12, "conv_kernel": DROP}),
    (NANO2, {"layer_norm_epsilon": DROP, "use_conv_bias": DROP, "mamba_conv_bias": True}),
    (NANO_3, {"n_routed_experts": DROP, "num_local_experts": 8, "n_shared_experts": 2}),
    (SUPER, {"num_nextn_predict_layers": 0, "mtp_hybrid_override_pattern": DROP}),
]

# What define refuses.
REFUSED: list[tuple[str, Change, str]] = [
    (NANO2, {"time_step_limit": None}, "time_step_limit is None; leave it out"),
    (NANO_3, {"num_experts_per_tok": DROP}, "num_experts_per_tok is missing; layers with experts"),
    (NANO2, {PATTERN: "M-MX-"}, rf"{PATTERN} is 'M-MX-'; .* E \(moe"),
    (NANO2, {PATTERN: 5}, f"{PATTERN} is 5; accepted: a string of M"),
    (NANO2, {PATTERN: DROP}, "layer_types is missing"),
    (NANO2, {PATTERN: DROP, "layer_types": ["mamba2"]}, r"layer_types\[0\] is 'mamba2'"),
    (NANO2, {PATTERN: DROP, "layers_block_type": [["mamba"]]}, r"layer_types\[0\] is \['mamba"),
    (NANO2, {"layers_block_type": OLD[::-1]}, "layer_types is .* but hybrid_override_pattern"),
    (NANO2, {"num_hidden_layers": 4}, "layer_types has 5 entries; num_hidden_layers is 4"),
    (NANO2, {"mamba_dt_limit": [0.1, None], "time_step_limit": DROP}, r"limit\[1\] is None"),
    (NANO2, {"time_step_limit": [0.1]}, r"time_step_limit is \[0.1\]; accepted: the least"),
    (NANO2, {"time_step_limit": [1e308, 1e309]}, r"time_step_limit is \[1e\+308, .*accepted"),
    (NANO2, {"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06, but layer_norm_epsilon"),
    (NANO2, {"mamba_num_groups": 3}, "n_groups is 2, but mamba_num_groups, which means the same"),
    (NANO2, {"n_groups": 3}, "8 heads of Mamba are not a multiple of its 3 groups"),
    (NANO2, {"attention_bias": True}, "attention_bias is True"),
    (NANO2, {"sliding_window": 8}, "sliding_window = 8, which nothing reads"),
    (NANO_3, {"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'; of experts: 'relu2'"),
    (NANO_3, {"n_group": 3}, "n_group is 3; accepted: a divisor of the 8 experts"),
]  # fmt: skip

FAMILY = Family(
    classes={"nemotron_h": ("NemotronHConfig", "NemotronHForCausalLM")},
    variants=VARIANTS,
    released=RELEASED,
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
    parameters=dict.fromkeys((NANO2, SUPER, LATENTS, GELU), ()),
)
