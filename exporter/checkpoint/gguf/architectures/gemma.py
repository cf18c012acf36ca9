"""Gemma 2 and 3: norms that multiply by 1 + weight, which files hold as one number."""

from statistics import NormalDist
from typing import Any

from lmcast.exporter.checkpoint.gguf.architecture import (
    LLAMA,
    OUTER,
    QK_NORMS,
    SANDWICH,
    Architecture,
    To,
    shifted,
)
from lmcast.exporter.checkpoint.gguf.architectures.llama import plain
from lmcast.exporter.checkpoint.gguf.model import Model

PERIOD = 6  # of Gemma 3: every sixth layer attends to everything, unless the file says otherwise
LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, whose softmax scale is another


def both(m: Model) -> dict[str, Any]:
    out = plain(m)
    del out["hidden_act"]
    scalar = out["head_dim"]
    if m.layers == LARGEST[m.metadata.architecture]:
        scalar = out["hidden_size"] // out["num_attention_heads"]
    return {
        **out,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": m.integer("attention.sliding_window"),
    }


def windowed(m: Model, period: int) -> list[str]:
    """The kind of each layer: the last of every `period` attends to everything."""
    return [
        "sliding_attention" if (layer + 1) % period else "full_attention"
        for layer in range(m.layers)
    ]


def gemma2(m: Model) -> dict[str, Any]:
    return {
        **both(m),
        "layer_types": windowed(m, 2),
        "attn_logit_softcapping": m.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": m.number("final_logit_softcapping", 30.0),
    }


def gemma3(m: Model) -> dict[str, Any]:
    out = both(m)
    local = m.number("rope.freq_base_swa", 10000.0)
    out["layer_types"] = windowed(m, m.integer("attention.sliding_window_pattern", PERIOD))
    out["rope_parameters"] = {
        "full_attention": out["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
    if m.has("final_logit_softcapping"):
        out["final_logit_softcapping"] = m.number("final_logit_softcapping")
    return out


def gemma3n(m: Model) -> dict[str, Any]:
    """The file holds how many standard deviations above the mean an activation must be; Hugging
    Face's config which share of them is below."""
    out = plain(m)
    del out["hidden_act"], out["intermediate_size"]
    slides = m.each("attention.sliding_window_pattern", bool)
    scales = m.each("activation_sparsity_scale", float)
    side = m.entry("per_layer_token_embd.weight")
    low = m.entry("blk.0.laurel_l.weight")
    if side is None or low is None:
        raise m.error("has no tensor 'per_layer_token_embd.weight' or 'blk.0.laurel_l.weight'")
    local = m.number("rope.freq_base_swa", 10000.0)
    return {
        **out,
        "hidden_activation": "gelu_pytorch_tanh",
        "intermediate_size": m.each("feed_forward_length", int),
        "sliding_window": m.integer("attention.sliding_window"),
        "layer_types": [("full_attention", "sliding_attention")[slide] for slide in slides],
        "rope_parameters": {
            "full_attention": out["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        # 7 digits: the file's float32 has no more.
        "activation_sparsity_pattern": [round(NormalDist().cdf(scale), 7) for scale in scales],
        "num_kv_shared_layers": m.count("attention.shared_kv_layers"),
        "final_logit_softcapping": m.number("final_logit_softcapping")
        if m.has("final_logit_softcapping")
        else None,
        "laurel_rank": low.shape[0],
        "altup_num_inputs": m.integer("altup.num_inputs"),
        "altup_active_idx": m.count("altup.active_idx"),
        "altup_correct_scale": m.any_ends("altup_correct_scale.weight"),
        "hidden_size_per_layer_input": m.integer("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": side.shape[0],
    }


LAYER = {**LLAMA, **SANDWICH}
ARCHITECTURES = (
    Architecture(
        name="gemma2",
        model_type="gemma2",
        model_class="Gemma2ForCausalLM",
        config=gemma2,
        layer=shifted(LAYER),
        outer=shifted(OUTER),
    ),
    Architecture(
        name="gemma3",
        model_type="gemma3_text",
        model_class="Gemma3ForCausalLM",
        config=gemma3,
        layer=shifted({**LAYER, **QK_NORMS}),
        outer=shifted(OUTER),
    ),
    Architecture(
        name="gemma3n",
        model_type="gemma3n_text",
        model_class="Gemma3nForCausalLM",
        config=gemma3n,
        layer={
            **LAYER,
            **QK_NORMS,
            "altup_correct_coef": "altup.correction_coefs",
            "altup_correct_scale.weight": "altup.correct_output_scale",
            "altup_predict_coef": "altup.prediction_coefs",
            "altup_router": "altup.modality_router",
            "altup_router_norm": "altup.router_norm",
            "inp_gate": "per_layer_input_gate",
            "laurel_l": "laurel.linear_left",
            "laurel_r": "laurel.linear_right",
            "laurel_post_norm": "laurel.post_laurel_norm",
            "post_norm": "post_per_layer_input_norm",
            "proj": "per_layer_projection",
        },
        outer={
            **OUTER,
            "altup_proj.weight": To("model.altup_projections.{e}.weight", each=True),
            "altup_unembd_proj.weight": To("model.altup_unembed_projections.{e}.weight", each=True),
            "per_layer_model_proj": "model.per_layer_model_projection",
            "per_layer_proj_norm": "model.per_layer_projection_norm",
            "per_layer_token_embd": "model.embed_tokens_per_layer",
        },
    ),
)
