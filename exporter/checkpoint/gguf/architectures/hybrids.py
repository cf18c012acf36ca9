"""Mamba-2 beside attention: Granite 4.0, Bamba, Nemotron-H and Nemotron 3."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.gguf.architecture import (
    LLAMA,
    OUTER,
    PERMUTED,
    Architecture,
    Join,
    Names,
    To,
    by_halves,
    channels,
    flat,
    log_negative,
)
from lmcast.exporter.checkpoint.gguf.architectures.llama import multipliers
from lmcast.exporter.checkpoint.gguf.architectures.mixtures import GATE, UP, routing
from lmcast.exporter.checkpoint.gguf.decode import by_unit, chained, stored
from lmcast.exporter.checkpoint.gguf.header import Entry
from lmcast.exporter.checkpoint.gguf.model import RMS_EPSILON, Model, require, rope, shared
from lmcast.exporter.checkpoint.tensors import StoredTensor


def attending(m: Model) -> list[int]:
    """The numbers of the layers of attention: those with keys and values."""
    return [i for i, count in enumerate(m.each("attention.head_count_kv", int)) if count]


def kv_heads(m: Model) -> int:
    counts = {count for count in m.each("attention.head_count_kv", int) if count}
    if len(counts) > 1 or min(counts, default=1) < 1:
        raise m.error(
            f"{m.key('attention.head_count_kv')} is {sorted(counts)} where it is not 0; accepted:"
            " one positive integer"
        )
    return max(counts, default=m.integer("attention.head_count"))


def mamba(m: Model) -> tuple[int, int]:
    """Return the number of heads of Mamba and the width of one."""
    inner, count = m.integer("ssm.inner_size"), m.integer("ssm.time_step_rank")
    if inner % count:
        raise m.error(
            f"{m.key('ssm.inner_size')} is {inner}; accepted: a multiple of {count} heads"
        )
    return count, inner // count


def hybrid(m: Model) -> dict[str, Any]:
    """The keys that Granite and Bamba share. Time steps have no bounds at llama.cpp."""
    out = shared(m)
    hidden, (count, width) = out["hidden_size"], mamba(m)
    if count * width % hidden:
        raise m.error(
            f"{m.key('ssm.inner_size')} is {count * width}; accepted: a multiple of the hidden"
            f" {hidden}"
        )
    return {
        **out,
        "hidden_act": "silu",
        "num_key_value_heads": kv_heads(m),
        "attention_bias": m.any_ends("_q.bias", "_k.bias", "_v.bias", "_output.bias"),
        "mamba_n_heads": count,
        "mamba_d_head": width,
        "mamba_n_groups": m.integer("ssm.group_count"),
        "mamba_d_state": m.integer("ssm.state_size"),
        "mamba_d_conv": m.integer("ssm.conv_kernel"),
        "mamba_expand": count * width // hidden,
        "mamba_conv_bias": m.any_ends("ssm_conv1d.bias"),
        "mamba_proj_bias": m.any_ends("ssm_in.bias"),
    }


def granitehybrid(m: Model) -> dict[str, Any]:
    out, attention = hybrid(m), set(attending(m))
    width = out["hidden_size"] // out["num_attention_heads"]
    if m.integer("rope.dimension_count", width) != width:
        raise m.error(
            f"{m.key('rope.dimension_count')} is {m.integer('rope.dimension_count')}; accepted: the"
            f" head's {width}"
        )
    rotates = m.flag("rope.scaling.finetuned", True)
    return {
        **out,
        **multipliers(m),
        "layer_types": ["attention" if i in attention else "mamba" for i in range(m.layers)],
        "position_embedding_type": "rope" if rotates else "nope",
        "rope_parameters": rope(m, width),
        "num_local_experts": m.count("expert_count", 0),
        "num_experts_per_tok": m.count("expert_used_count", 0),
        "intermediate_size": m.integer("feed_forward_length"),
        "shared_intermediate_size": m.integer("expert_shared_feed_forward_length"),
    }


def is_bamba(m: Model) -> bool:
    """Whether a hybrid has none of Granite's multipliers, and no shared expert."""
    return not any(m.has(name) for name in ("embedding_scale", "logit_scale", "attention.scale"))


def bamba(m: Model) -> dict[str, Any]:
    require(m, "rope.scaling.finetuned", True)
    out = hybrid(m)
    width = out["hidden_size"] // out["num_attention_heads"]
    rotated = m.integer("rope.dimension_count", width)
    if 2 * rotated != width:
        raise m.error(f"{m.key('rope.dimension_count')} is {rotated}; accepted: {width // 2}")
    return {
        **out,
        "attn_layer_indices": attending(m),
        "attn_rotary_emb": rotated,
        "intermediate_size": m.integer("feed_forward_length"),
        "rope_parameters": {**rope(m, rotated), "partial_rotary_factor": 0.5},
    }


def nemotron_h(m: Model) -> dict[str, Any]:
    """Which layer does what follows from its tensors, as a layer does one thing."""
    epsilon = "attention.layer_norm_epsilon"
    out = shared(m, epsilon=RMS_EPSILON if m.has(RMS_EPSILON) else epsilon)
    eps = out.pop("rms_norm_eps")
    if m.number(epsilon, eps) != eps:
        raise m.error(f"{m.key(epsilon)} is {m.number(epsilon)}; accepted: {eps}, as of norms")
    m.ignore("feed_forward_length")  # the tensors say it, also of experts
    kinds = [_kind(m, layer) for layer in range(m.layers)]
    plain = (m.entry(f"blk.{i}.ffn_up.weight") for i, kind in enumerate(kinds) if kind == "mlp")
    inner = {entry.shape[0] for entry in plain if entry is not None}
    if out["tie_word_embeddings"]:
        raise m.error("has no tensor 'output.weight'; accepted: a head of its own")
    count, width = mamba(m)
    head_dim = m.integer("attention.key_length")
    m.ignore("rope.")  # no layer has positions
    if m.integer("attention.value_length", head_dim) != head_dim:
        raise m.error(f"{m.key('attention.value_length')} is not the keys' {head_dim}")
    found = {
        **out,
        "layer_norm_epsilon": eps,
        "layer_types": kinds,
        "num_key_value_heads": kv_heads(m),
        "head_dim": head_dim,
        "mlp_hidden_act": "relu2",
        "mlp_bias": m.any_ends("ffn_up.bias", "ffn_down.bias"),
        "mamba_num_heads": count,
        "mamba_head_dim": width,
        "n_groups": m.integer("ssm.group_count"),
        "ssm_state_size": m.integer("ssm.state_size"),
        "conv_kernel": m.integer("ssm.conv_kernel"),
        "use_conv_bias": m.any_ends("ssm_conv1d.bias"),
        "use_bias": m.any_ends("ssm_in.bias", "ssm_out.bias"),
    }
    if inner:
        found["intermediate_size"] = max(inner)
    return found


def _kind(m: Model, layer: int) -> str:
    for part, kind in (
        ("ssm_in", "linear_attention"),
        ("attn_q", "full_attention"),
        ("ffn_up_exps", "moe"),
        ("ffn_up", "mlp"),
    ):
        if m.entry(f"blk.{layer}.{part}.weight") is not None:
            return kind
    raise m.error(f"layer {layer} has no tensor that says what it does; it is damaged")


def nemotron_h_moe(m: Model) -> dict[str, Any]:
    names = {"experts": "n_routed_experts", "top_k": "num_experts_per_tok"}
    m.ignore("expert_shared_count")  # whose width is given
    return {
        **nemotron_h(m),
        **routing(m, **names, inner="moe_intermediate_size"),
        "moe_shared_expert_intermediate_size": m.integer("expert_shared_feed_forward_length"),
        "n_group": m.integer("expert_group_count", 1),
        "topk_group": m.integer("expert_group_used_count", 1),
        "norm_topk_prob": m.flag("expert_weights_norm", False),
        "routed_scaling_factor": m.number("expert_weights_scale", 1.0),
        "moe_latent_size": m.integer("moe_latent_size") if m.has("moe_latent_size") else None,
    }


def granite_experts(m: Model, prefix: str, gate: Entry, up: Entry) -> Iterable[StoredTensor]:
    def join(*parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=2)

    both = (stored(entry.name, entry) for entry in (gate, up))
    name = f"{prefix}block_sparse_moe.input_linear.weight"
    yield by_unit(name, m.integer("expert_count"), join, *both)


def granite_dense(_: Model, prefix: str, gate: Entry, up: Entry) -> Iterable[StoredTensor]:
    both = (stored(entry.name, entry) for entry in (gate, up))
    yield chained(f"{prefix}shared_mlp.input_linear.weight", *both)


def mixer(within: str) -> Names:
    """Mamba-2's tensors, below a module."""
    return {
        "ssm_in": f"{within}.in_proj",
        "ssm_conv1d.weight": To(f"{within}.conv1d.weight", shape=channels),
        "ssm_conv1d.bias": f"{within}.conv1d.bias",
        "ssm_dt.bias": f"{within}.dt_bias",
        "ssm_a": To(f"{within}.A_log", log_negative, shape=flat),
        "ssm_d": To(f"{within}.D", shape=flat),
        "ssm_norm.weight": To(f"{within}.norm.weight", shape=flat),
        "ssm_out": f"{within}.out_proj",
    }


NEMOTRON: Names = {
    **mixer("mixer"),
    "attn_q": To("mixer.q_proj", by_halves),  # no layer rotates, but the converter orders rows
    "attn_k": To("mixer.k_proj", by_halves),
    "attn_v": "mixer.v_proj",
    "attn_output": "mixer.o_proj",
    "attn_norm": "norm",
    "ffn_up": "mixer.up_proj",
    "ffn_down": "mixer.down_proj",
    "ffn_gate_inp": "mixer.gate",
    "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    "ffn_up_exps.weight": To("mixer.experts.{e}.up_proj.weight", each=True),
    "ffn_down_exps.weight": To("mixer.experts.{e}.down_proj.weight", each=True),
    "ffn_up_shexp": "mixer.shared_experts.up_proj",
    "ffn_down_shexp": "mixer.shared_experts.down_proj",
    "ffn_latent_down": "mixer.fc1_latent_proj",
    "ffn_latent_up": "mixer.fc2_latent_proj",
}
BACKBONE: Names = {**OUTER, "token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f"}
ARCHITECTURES = (
    Architecture(
        name="granitehybrid",
        model_type="bamba",
        model_class="BambaForCausalLM",
        config=bamba,
        layer={
            **LLAMA,
            **PERMUTED,
            **mixer("mamba"),
            "ffn_norm": "pre_ff_layernorm",
            **{f"ffn_{x}": f"feed_forward.{x}_proj" for x in ("gate", "up", "down")},
        },
        outer={**OUTER, "output_norm": "model.final_layernorm"},
        when=is_bamba,
    ),
    Architecture(
        name="granitehybrid",
        model_type="granitemoehybrid",
        model_class="GraniteMoeHybridForCausalLM",
        config=granitehybrid,
        layer={
            **LLAMA,
            **PERMUTED,
            **mixer("mamba"),
            "ffn_gate_inp": "block_sparse_moe.router.layer",
            "ffn_down_exps": "block_sparse_moe.output_linear",
            "ffn_down_shexp": "shared_mlp.output_linear",
            "ffn_down": "shared_mlp.output_linear",
        },
        joined=(
            Join((GATE, UP), granite_experts),
            Join(("ffn_gate_shexp.weight", "ffn_up_shexp.weight"), granite_dense),
            Join(("ffn_gate.weight", "ffn_up.weight"), granite_dense),
        ),
    ),
    *(
        Architecture(
            name=name,
            model_type="nemotron_h",
            model_class="NemotronHForCausalLM",
            config=config,
            layer=NEMOTRON,
            outer=BACKBONE,
            within="backbone.layers.{i}.",
        )
        for name, config in (("nemotron_h", nemotron_h), ("nemotron_h_moe", nemotron_h_moe))
    ),
)
