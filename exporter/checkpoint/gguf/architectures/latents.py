"""Latent attention with sigmoid routers: DeepSeek V3 to V3.2, Kimi K2 and Linear, GLM-4.7 and 5."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.gguf.architecture import (
    ATTENTION,
    CORRECTION,
    EXPERTS,
    MLP,
    NORMS,
    SHARED_EXPERTS,
    Architecture,
    Join,
    To,
    channels,
    log_negative,
    routed,
)
from lmcast.exporter.checkpoint.gguf.architectures.mixtures import require_sigmoid, routing
from lmcast.exporter.checkpoint.gguf.decode import by_unit, stored
from lmcast.exporter.checkpoint.gguf.header import Entry
from lmcast.exporter.checkpoint.gguf.model import Model, dense, require, rope, shared
from lmcast.exporter.checkpoint.tensors import StoredTensor

LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"  # a tenth of mscale_all_dim


def latents(m: Model) -> dict[str, Any]:
    """Keys of latent attention; files from before it was absorbed have the widths of a head under
    the names of plain attention."""
    rotated = m.integer("rope.dimension_count")
    absorbed = m.has("attention.key_length_mla")
    suffix = "_length_mla" if absorbed else "_length"
    key, value = (m.integer(f"attention.{name}{suffix}") for name in ("key", "value"))
    if key <= rotated:
        raise m.error(f"heads are {key} wide, of which {rotated} rotate; accepted: fewer")
    rank = m.integer("attention.kv_lora_rank")
    if absorbed and m.metadata.architecture != "kimi-linear":  # of the head that all share
        for name, width in (("key", rank + rotated), ("value", rank)):
            if m.integer(f"attention.{name}_length", width) != width:
                raise m.error(
                    f"{m.key(f'attention.{name}_length')} is"
                    f" {m.integer(f'attention.{name}_length')}; accepted: {width}"
                )
    return {
        "num_key_value_heads": m.integer("attention.head_count"),  # every head makes its own
        "q_lora_rank": m.integer("attention.q_lora_rank")
        if m.any_ends("attn_q_a.weight")
        else None,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": key - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": value,
    }


def sigmoid_experts(m: Model) -> dict[str, Any]:
    require_sigmoid(m, 1)  # what says nothing is DeepSeek V2
    names = {"experts": "n_routed_experts", "top_k": "num_experts_per_tok"}
    return {
        **routing(m, **names, inner="moe_intermediate_size"),
        "n_shared_experts": m.integer("expert_shared_count"),
        "first_k_dense_replace": m.count("leading_dense_block_count", 0),
        "routed_scaling_factor": m.number("expert_weights_scale", 1.0),
    }


def deepseek2(m: Model) -> dict[str, Any]:
    name, wanted = "attention.head_count_kv", m.integer("attention.head_count")
    if m.has("attention.key_length_mla"):  # absorbed: all share one head
        wanted = 1
    if (found := m.same(name, wanted)) != wanted:
        raise m.error(f"{m.key(name)} is {found}; accepted of this form: {wanted}")
    attention = latents(m)
    positions = rope(m, attention["qk_rope_head_dim"])
    if m.has(LOG_MULTIPLIER):
        both = round(m.number(LOG_MULTIPLIER) * 10, 6)  # mscale is the same in all releases
        positions |= {"mscale": both, "mscale_all_dim": both}
    return {
        **shared(m),
        **attention,
        **dense(m),
        **sigmoid_experts(m),
        # Files from before llama.cpp knew groups do not say how many the model has.
        "n_group": m.integer("expert_group_count"),
        "topk_group": m.integer("expert_group_used_count"),
        "norm_topk_prob": m.flag("expert_weights_norm", False),
        "num_nextn_predict_layers": 0,  # of the tensors that are shown
        "rope_parameters": positions,
    }


def indexed(m: Model) -> dict[str, Any]:
    """Also with the indexer that chooses the positions to attend to."""
    return {
        **deepseek2(m),
        "index_n_heads": m.integer("attention.indexer.head_count"),
        "index_head_dim": m.integer("attention.indexer.key_length"),
        "index_topk": m.integer("attention.indexer.top_k"),
    }


def glm_dsa(m: Model) -> dict[str, Any]:
    """Files that do not say which layers have an indexer are of GLM-5 and 5.1, where all have."""
    types = "attention.indexer.types"
    if not m.has(types) and m.integer("context_length") >= 1 << 20:
        raise m.error(f"{m.key(types)} is missing; of a model of so long a context it is needed")
    full = m.each(types, bool, True)
    return {**indexed(m), "indexer_types": [("shared", "full")[has] for has in full]}


def kimi_linear(m: Model) -> dict[str, Any]:
    """Layers without keys and values of attention are linear; llama.cpp renormalizes, and knows no
    groups of experts here."""
    require(m, "expert_weights_norm", True)
    counts = m.each("attention.head_count_kv", int)
    heads = {math.prod(entry.shape) for entry in m.layer_entries("ssm_a") if entry is not None}
    if len(heads) > 1:
        raise m.error(f"tensors 'ssm_a' are of {sorted(heads)} heads; accepted: one number for all")
    for name in ("attention.key_length", "attention.value_length", "rope."):  # nothing rotates
        m.ignore(name)
    if m.integer("expert_group_used_count", 1) != 1:
        raise m.error(f"{m.key('expert_group_used_count')} is not 1; accepted: 1")
    out = {
        **shared(m),
        **latents(m),
        **dense(m),
        **sigmoid_experts(m),
        "norm_topk_prob": True,
        "layer_types": ["full_attention" if count else "linear_attention" for count in counts],
        "linear_head_dim": m.integer("kda.head_dim"),
        "linear_conv_kernel_dim": m.integer("ssm.conv_kernel"),
        "num_nextn_predict_layers": 0,
    }
    if heads:
        out["linear_num_heads"] = heads.pop()
    if out["tie_word_embeddings"]:
        raise m.error("has no tensor 'output.weight'; accepted: a head of its own")
    return out


def keys_and_values(m: Model, prefix: str, keys: Entry, values: Entry) -> Iterable[StoredTensor]:
    """kv_b_proj: of each head the rows of its keys, which the file has transposed, then of its
    values; both are stacks of a matrix a head."""
    parts = [stored(entry.name, entry) for entry in (keys, values)]
    for part in parts:
        if len(part.shape) != 3:
            raise ValueError(f"tensor {part.name!r} is {list(part.shape)}; accepted: three axes")

    def join(k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([k[:, 0].mT, v[:, 0]], dim=1)

    heads = m.integer("attention.head_count")
    yield by_unit(f"{prefix}self_attn.kv_b_proj.weight", heads, join, *parts)


LATENTS = {
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj",
}
INDEXER = {
    "indexer.attn_q_b": "self_attn.indexer.wq_b",
    "indexer.attn_k": "self_attn.indexer.wk",
    "indexer.k_norm": "self_attn.indexer.k_norm",
    "indexer.proj": "self_attn.indexer.weights_proj",
}
LAYER = {**NORMS, **LATENTS, **MLP, **EXPERTS, **CORRECTION, **SHARED_EXPERTS}
ABSORBED = Join(("attn_k_b.weight", "attn_v_b.weight"), keys_and_values)
ARCHITECTURES = (
    Architecture(
        name="deepseek2",
        model_type="deepseek_v3",
        model_class="DeepseekV3ForCausalLM",
        config=deepseek2,
        layer=LAYER,
        joined=(ABSORBED,),
    ),
    Architecture(
        name="deepseek32",
        model_type="deepseek_v32",
        model_class="DeepseekV32ForCausalLM",
        config=indexed,
        layer={**LAYER, **INDEXER},
        joined=(ABSORBED,),
    ),
    Architecture(
        name="glm-dsa",
        model_type="glm_moe_dsa",
        model_class="GlmMoeDsaForCausalLM",
        config=glm_dsa,
        layer={**LAYER, **INDEXER},
        joined=(ABSORBED,),
    ),
    Architecture(
        name="kimi-linear",
        model_type="kimi_linear",
        model_class="KimiLinearForCausalLM",
        config=kimi_linear,
        layer={
            **NORMS,
            **LATENTS,
            **ATTENTION,
            **MLP,
            **{f"ssm_{x}": f"self_attn.{x}_proj" for x in ("f_a", "f_b", "g_a", "g_b")},
            **{
                f"ssm_conv1d_{x}.weight": To(f"self_attn.{x}_conv1d.weight", shape=channels)
                for x in "qkv"
            },
            "ssm_a": To("self_attn.A_log", log_negative, shape=lambda _: (1, 1, -1, 1)),
            "ssm_dt.bias": "self_attn.dt_bias",
            "ssm_beta": "self_attn.b_proj",
            "ssm_norm": "self_attn.o_norm",
            "ffn_gate_inp": "block_sparse_moe.gate",
            "exp_probs_b.bias": "block_sparse_moe.gate.e_score_correction_bias",
            **routed("block_sparse_moe.experts", "w1", "w3", "w2"),
            **{
                f"ffn_{x}_shexp": f"block_sparse_moe.shared_experts.{x}_proj"
                for x in ("gate", "up", "down")
            },
        },
        joined=(ABSORBED,),
    ),
)
