"""The variants of Qwen3-VL: its text, beside a tower whose features enter the first layers too."""

from typing import Any

from tiny.configs import SIZES
from tiny.delta_nets import OUTER
from tiny.family import Change, Family

SECTIONS = {"mrope_interleaved": True, "mrope_section": [4, 2, 2]}
VISION = {**OUTER["vision_config"], "depth": 2, "deepstack_visual_indexes": [0, 1]}
DENSE = {**SIZES, "head_dim": 16}
SPARSE = {
    **DENSE,
    "moe_intermediate_size": 24,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
}
ROPE = {"rope_type": "default", "rope_theta": 100.0}


def _around(tied: bool = False, **text: Any) -> dict[str, Any]:
    return {
        **OUTER,
        "vision_config": VISION,
        "text_config": {**text, "tie_word_embeddings": tied},
        "tie_word_embeddings": tied,
    }


WRITTEN = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "float32",
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {**SECTIONS, "rope_type": "default"},
    "rope_theta": 1000,
    "use_cache": True,
}
DENSE_TEXT, SPARSE_TEXT = "qwen3_vl_text", "qwen3_vl_moe_text"
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3_vl": {
        "bias": _around(
            **DENSE, model_type=DENSE_TEXT, rope_parameters={**ROPE, **SECTIONS},
            attention_bias=True,
        ),
    },
    "qwen3_vl_moe": {
        "a dense layer, gelu": _around(
            **SPARSE, model_type=SPARSE_TEXT, rope_parameters=ROPE, mlp_only_layers=[1],
            hidden_act="gelu", attention_bias=True,
        ),
    },
}  # fmt: skip
RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3_vl": {
        "Qwen3-VL-4B": _around(True, **DENSE, **WRITTEN, model_type=DENSE_TEXT),
    },
    "qwen3_vl_moe": {
        "Qwen3-VL-30B-A3B": _around(
            **SPARSE, **WRITTEN, model_type=SPARSE_TEXT, decoder_sparse_step=1, mlp_only_layers=[],
            norm_topk_prob=True,
        ),
    },
}  # fmt: skip
MOE = "qwen3_vl_moe/Qwen3-VL-30B-A3B"


def _text(of: dict[str, Any], **settings: Any) -> Change:
    return {"text_config": {**of["text_config"], **settings}}


_MOE = RELEASED["qwen3_vl_moe"]["Qwen3-VL-30B-A3B"]
SHOWN: list[tuple[str, Change]] = [
    (MOE, _text(_MOE, num_experts_per_tok=2)),
    (MOE, _text(_MOE, rope_theta=10)),
]
# Text has the same number on all axes, and weights of experts add up to one whatever this says.
SILENT: list[tuple[str, Change]] = [
    (MOE, _text(_MOE, rope_scaling={"mrope_section": [2, 3, 3], "rope_type": "default"})),
]
REFUSED: list[tuple[str, Change, str]] = [
    (MOE, _text(_MOE, norm_topk_prob=False), "text_config.norm_topk_prob is False; implemented"),
    (MOE, _text(_MOE, partial_rotary_factor=0.5), "this architecture rotates whole heads"),
    (MOE, _text(_MOE, sliding_window=8), "text_config.sliding_window = 8, which nothing reads"),
]
FAMILY = Family(
    classes={
        "qwen3_vl": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
        "qwen3_vl_moe": ("Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration"),
    },
    variants=VARIANTS,
    released=RELEASED,
    shown=SHOWN,
    silent=SILENT,
    refused=REFUSED,
)
