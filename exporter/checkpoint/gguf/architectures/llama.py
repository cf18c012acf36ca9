"""Llama and what shares its layers: heads whose rows rotate in pairs at llama.cpp."""

from typing import Any

from lmcast.exporter.checkpoint.gguf.architecture import LLAMA, PERMUTED, Architecture
from lmcast.exporter.checkpoint.gguf.model import Model, dense, heads, require, rope, shared


def plain(m: Model) -> dict[str, Any]:
    """The keys of Llama's layers, without those of an architecture alone."""
    attention = heads(m)
    return {
        **shared(m),
        **attention,
        **dense(m),
        "rope_parameters": rope(m, attention["head_dim"]),
    }


def llama(m: Model) -> dict[str, Any]:
    return {**plain(m), "mlp_bias": m.any_ends("_gate.bias", "_up.bias", "_down.bias")}


def smollm3(m: Model) -> dict[str, Any]:
    every = 4  # as llama.cpp has it for this architecture
    rotates = [int((layer + 1) % every != 0) for layer in range(m.layers)]
    return {**llama(m), "no_rope_layers": rotates, "no_rope_layer_interval": every}


def granite(m: Model) -> dict[str, Any]:
    """Also of Granite 4.0 without Mamba layers, whose dense part has the width of a shared one."""
    require(m, "rope.scaling.finetuned", True)  # false: no layer has positions
    m.ignore("ssm.")  # of layers that it does not have
    out = {**llama(m), **multipliers(m)}
    if m.count("expert_shared_feed_forward_length", 0):
        out["intermediate_size"] = m.integer("expert_shared_feed_forward_length")
    return out


def multipliers(m: Model) -> dict[str, Any]:
    """Granite's; what is missing is what llama.cpp does without it."""
    width = m.integer("embedding_length") // m.integer("attention.head_count")
    return {
        "attention_multiplier": m.number("attention.scale", width**-0.5),
        "embedding_multiplier": m.number("embedding_scale", 1.0),
        "residual_multiplier": m.number("residual_scale", 1.0),
        "logits_scaling": m.number("logit_scale", 1.0),
    }


def mistral(m: Model) -> dict[str, Any]:
    out = plain(m)
    del out["attention_bias"]
    return {**out, "sliding_window": None}


def ministral(m: Model) -> dict[str, Any]:
    """Queries grow with the position, and YaRN's factor is that of two equal mscales.

    The file holds one of them; llama.cpp takes 1 for the other, as it is in all releases.
    """
    out, name = mistral(m), "rope.scaling.yarn_log_multiplier"
    both = m.number(name)
    if both != 1:
        raise m.error(f"{m.key(name)} is {both}; accepted: 1, as the mscale that it does not hold")
    beta = m.number("attention.temperature_scale")
    out["rope_parameters"] |= {
        "mscale": both,
        "mscale_all_dim": both,
        "llama_4_scaling_beta": beta,
    }
    return out


LAYER = {**LLAMA, **PERMUTED}
ARCHITECTURES = (
    Architecture(
        name="llama",
        model_type="llama",
        model_class="LlamaForCausalLM",
        config=llama,
        layer=LAYER,
    ),
    Architecture(
        name="smollm3",
        model_type="smollm3",
        model_class="SmolLM3ForCausalLM",
        config=smollm3,
        layer=LAYER,
    ),
    Architecture(
        name="granite",
        model_type="granite",
        model_class="GraniteForCausalLM",
        config=granite,
        layer=LAYER,
    ),
    Architecture(
        name="mistral3",
        model_type="ministral3",
        model_class="Ministral3ForCausalLM",
        config=ministral,
        layer=LAYER,
        when=lambda m: m.has("attention.temperature_scale"),
    ),
    Architecture(
        name="mistral3",
        model_type="mistral",
        model_class="MistralForCausalLM",
        config=mistral,
        layer=LAYER,
    ),
)
