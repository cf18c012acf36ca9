"""The variants of Kimi Linear."""

import re
from typing import Any

from tiny.family import Change, Family
from tiny.llama import DROP

LINEAR, FULL = "linear_attention", "full_attention"
SIZES: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "kv_lora_rank": 16,
    "moe_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
SMALL = {
    **SIZES,
    "linear_head_dim": 12,
    "linear_num_heads": 3,
    "num_hidden_layers": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def on_the_hub(name: str) -> str:
    """Return the name of a tensor on the hub, of that which save_pretrained writes."""
    return re.sub(r"\.block_sparse_moe\.((gate|up|down)_proj\.)", r".mlp.\1", name)


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "kimi_linear": {
        "plain": {**SMALL, "layer_types": [LINEAR, LINEAR, LINEAR, FULL]},
        "by default, groups, two taps": {
            **SMALL,
            "linear_conv_kernel_dim": 2,
            "n_group": 4,
            "norm_topk_prob": False,
            "num_experts_per_tok": 3,
            "num_hidden_layers": 6,
            "topk_group": 2,
        },
        "queries of latents, bias, gelu": {
            **SMALL,
            "attention_bias": True,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_types": [FULL, LINEAR, FULL],
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "n_shared_experts": 2,
            "num_hidden_layers": 3,
            "q_lora_rank": 20,
            "rms_norm_eps": 0.05,
        },
        "linear alone, one tap": {
            **SMALL,
            "layer_types": [LINEAR] * 3,
            "linear_conv_kernel_dim": 1,
            "linear_head_dim": 20,
            "num_hidden_layers": 3,
            "routed_scaling_factor": 1.0,
        },
    }
}

# As the files of the hub have them, but for sizes.
RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "kimi_linear": {
        "Kimi-Linear-48B-A3B": {
            **SIZES,
            "first_k_dense_replace": 1,
            "head_dim": 72,
            "hidden_act": "silu",
            "linear_attn_config": {
                "full_attn_layers": [4, 5],
                "head_dim": 12,
                "kda_layers": [1, 2, 3],
                "num_heads": 3,
                "short_conv_kernel_size": 4,
            },
            "max_position_embeddings": 1048576,
            "mla_use_nope": True,
            "model_max_length": 1048576,
            "moe_layer_freq": 1,
            "moe_renormalize": True,
            "moe_router_activation_func": "sigmoid",
            "num_expert_group": 1,
            "num_experts": 8,
            "num_experts_per_token": 2,
            "num_hidden_layers": 5,
            "num_nextn_predict_layers": 0,
            "num_shared_experts": 1,
            "q_lora_rank": None,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "routed_scaling_factor": 2.446,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "use_grouped_topk": True,
        }
    }
}

HUB, PLAIN = "kimi_linear/Kimi-Linear-48B-A3B", "kimi_linear/plain"

GROUPS = "kimi_linear/by default, groups, two taps"

LATENT = "kimi_linear/queries of latents, bias, gelu"

NESTED = "linear_attn_config"

LISTS = RELEASED["kimi_linear"]["Kimi-Linear-48B-A3B"][NESTED]


def nested(**changes: Any) -> Change:
    """Return the linear_attn_config of the released config with changes."""
    return {NESTED: {k: v for k, v in (LISTS | changes).items() if v is not DROP}}


# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, Change]] = [
    (HUB, {"moe_renormalize": False}),
    (HUB, {"routed_scaling_factor": 1.0}),
    (HUB, {"num_experts_per_token": 3}),
    (HUB, {"rms_norm_eps": 0.05}),
    (GROUPS, {"num_expert_group": 2}),
    (GROUPS, {"topk_group": 3}),
    (LATENT, {"hidden_act": "silu"}),
    (LATENT, {"rms_norm_eps": 1e-5}),
    (LATENT, {"routed_scaling_factor": 1.0}),
]

# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, Change] | tuple[str, Change, Change]] = [
    (HUB, {"head_dim": 7, "rope_theta": 5.0}),
    (HUB, {"num_key_value_heads": None}),
    (HUB, {"first_k_dense_replace": DROP}),
    (HUB, {"first_k_dense_replace": 3, "mlp_layer_types": ["dense"] + ["sparse"] * 4}),
    (HUB, {"max_position_embeddings": DROP}),
    (HUB, {"moe_router_activation_func": DROP, "scoring_func": "sigmoid"}),
    (HUB, {"mla_use_nope": DROP, "use_grouped_topk": DROP, "rope_parameters": None}),
    (HUB, {"num_experts": DROP, "num_local_experts": 8}),
    (HUB, {"num_experts_per_token": DROP, "num_experts_per_tok": 2}),
    (HUB, {"moe_renormalize": DROP, "norm_topk_prob": True}),
    (HUB, {"layer_types": [LINEAR] * 3 + [FULL] * 2}),
    (HUB, {**nested(full_attn_layers=DROP, kda_layers=DROP),
           "layer_types": [LINEAR] * 3 + [FULL] * 2}),
    (HUB, {**nested(head_dim=DROP), "linear_head_dim": 12}),
    (HUB, nested(short_conv_kernel_size=DROP)),
    (GROUPS, {"layer_types": None}),
    (PLAIN, {NESTED: {"full_attn_layers": [4], "kda_layers": [3, 1, 2], "num_heads": 3}}),
]  # fmt: skip

REFUSED: list[tuple[str, Change, str]] = [
    (HUB, {"mla_use_nope": False}, "mla_use_nope is False"),
    (HUB, {"use_grouped_topk": False}, "use_grouped_topk is False"),
    (HUB, {"moe_router_activation_func": "softmax"}, "scoring_func is 'softmax'"),
    (HUB, {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    (HUB, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = .*nothing reads"),
    (HUB, {"rope_parameters": {"rope_type": "default"}}, "rope_parameters is .*'default'"),
    (HUB, {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
    (HUB, {"model_max_length": 64}, "max_position_embeddings is 1048576, but model_max_length"),
    (HUB, {"linear_head_dim": 16}, f"linear_head_dim is 16, but {NESTED}.head_dim.* is 12"),
    (HUB, {"layer_types": [LINEAR] * 5}, f"layer_types is .*, but {NESTED}.full_attn_layers, "),
    (HUB, {"layer_types": [LINEAR] * 4, **nested(full_attn_layers=DROP, kda_layers=DROP)},
     "layer_types has 4 entries; num_hidden_layers is 5"),
    (HUB, {NESTED: [1]}, rf"{NESTED} is \[1\]; accepted: an object"),
    (HUB, {"moe_renormalize": None}, "moe_renormalize is None; leave it out"),
    (HUB, nested(gate_rank=8), f"sets {NESTED}.gate_rank = 8.*--inert {NESTED}.gate_rank"),
    (HUB, nested(kda_layers=DROP), r"full_attn_layers is \[4, 5\] and kda_layers is None"),
    (HUB, nested(kda_layers=[0, 1, 2]), r"kda_layers is \[0, 1, 2\]; accepted"),
    (HUB, nested(kda_layers=[1, 2, 3, 4]), r"kda_layers is \[1, 2, 3, 4\]; accepted"),
    (HUB, nested(kda_layers=[1, 2, 3.0]), r"kda_layers is \[1, 2, 3.0\]; accepted"),
    (HUB, nested(kda_layers=[1, 2, 3, 6]), "layer_types has 6 entries; num_hidden_layers is 5"),
    (HUB, nested(num_heads=0), "linear_num_heads is 0; accepted: 1"),
    (PLAIN, {"layer_types": [LINEAR, "ssm", LINEAR, FULL]}, r"layer_types\[1\] is 'ssm'"),
    (PLAIN, {"mlp_layer_types": ["sparse"]}, "mlp_layer_types has 1 entries"),
]  # fmt: skip

FAMILY = Family(
    classes={"kimi_linear": ("KimiLinearConfig", "KimiLinearForCausalLM")},
    variants=VARIANTS,
    released=RELEASED,
    hub_names={"kimi_linear": on_the_hub},
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
    parameters=dict.fromkeys((HUB, LATENT), ()),
)
