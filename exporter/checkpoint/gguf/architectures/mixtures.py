"""Layers of attention with experts: gpt-oss, Llama 4, GLM-4.5, MiniMax M2, Trinity."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.gguf.architecture import (
    ATTENTION,
    CORRECTION,
    EXPERTS,
    LLAMA,
    MLP,
    NORMS,
    QK_NORMS,
    SHARED_EXPERTS,
    Architecture,
    Join,
    To,
    routed,
)
from lmcast.exporter.checkpoint.gguf.architectures.llama import plain
from lmcast.exporter.checkpoint.gguf.decode import TRANSPOSED, Step, as_bytes, by_unit, stored
from lmcast.exporter.checkpoint.gguf.header import Entry
from lmcast.exporter.checkpoint.gguf.model import (
    SIGMOID,
    Model,
    dense,
    heads,
    require,
    rope,
    shared,
)
from lmcast.exporter.checkpoint.tensors import StoredTensor

GATE, UP, DOWN = "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"


def routing(m: Model, **names: str) -> dict[str, Any]:
    """Keys of routed experts, under the names that an architecture gives them."""
    found = {
        "experts": m.integer("expert_count"),
        "top_k": m.integer("expert_used_count"),
        "inner": m.same("expert_feed_forward_length"),
    }
    return {theirs: found[ours] for ours, theirs in names.items()}


def require_sigmoid(m: Model, default: int | None = None) -> None:
    """Refuse a file whose router is a softmax, or says nothing where llama.cpp takes that."""
    gating = m.integer("expert_gating_func", default)
    if gating != SIGMOID:
        raise m.error(f"{m.key('expert_gating_func')} is {gating}; accepted: {SIGMOID} (sigmoid)")


def partial_rope(m: Model, width: int) -> dict[str, Any]:
    """rope_parameters of heads of which only the first numbers rotate."""
    rotated = m.integer("rope.dimension_count", width)
    if rotated > width or rotated % 2:
        raise m.error(
            f"{m.key('rope.dimension_count')} is {rotated}; accepted: an even number up to the"
            f" head's {width}"
        )
    return {**rope(m, rotated), "partial_rotary_factor": rotated / width}


def gpt_oss(m: Model) -> dict[str, Any]:
    """What the file does not hold is as in all releases: every other layer has a window, and the
    ramp of YaRN is not rounded."""
    out = plain(m)
    del out["intermediate_size"]
    if out["rope_parameters"]["rope_type"] == "yarn":
        out["rope_parameters"]["truncate"] = False
    kinds = {
        entry.kind.name for part in (GATE, UP, DOWN) for entry in m.layer_entries(part) if entry
    }
    quantized = {"quantization_config": {"quant_method": "mxfp4"}} if kinds == {"MXFP4"} else {}
    names = {"experts": "num_local_experts", "top_k": "num_experts_per_tok"}
    return {
        **out,
        **routing(m, **names, inner="intermediate_size"),
        **quantized,
        "sliding_window": m.integer("attention.sliding_window"),
    }


def by_block(raw: Tensor) -> Tensor:
    """Bytes of rows of MXFP4 -> ..., blocks, 17."""
    return raw.reshape(*raw.shape[:-1], -1, 17)


def halves_of_bytes(blocks: Tensor) -> Tensor:
    """MXFP4 of ggml ..., 17 bytes (scale, then byte j with numbers j and j + 16) -> ..., 16 bytes
    with numbers 2 j and 2 j + 1."""
    numbers = torch.cat([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], dim=-1)
    return torch.bitwise_or(numbers[..., ::2], numbers[..., 1::2] << 4)


def alternating(*parts: Tensor) -> Tensor:
    """Rows of several tensors n, E, I, ... by turns: n, E, len(parts) * I, ..."""
    return torch.stack(parts, dim=3).flatten(2, 3)


def gpt_oss_experts(
    m: Model, prefix: str, gate: Entry, up: Entry, down: Entry
) -> Iterable[StoredTensor]:
    """Stacks as gpt-oss has them: gate and up by turns; in MXFP4 its own order of numbers."""
    units = m.integer("expert_count")
    for name, entries in (("gate_up_proj", (gate, up)), ("down_proj", (down,))):
        theirs = f"{prefix}mlp.experts.{name}"
        if any(entry.kind.name != "MXFP4" for entry in (gate, up, down)):
            values = [stored(entry.name, entry) for entry in entries]
            yield by_unit(theirs, units, lambda *parts: alternating(*parts).mT, *values)
            continue
        raw = [as_bytes(entry) for entry in entries]

        def blocks(*parts: Tensor) -> Tensor:
            return halves_of_bytes(by_block(alternating(*parts)))

        def scales(*parts: Tensor) -> Tensor:
            return by_block(alternating(*parts))[..., 0]

        yield by_unit(f"{theirs}_blocks", units, blocks, *raw)
        yield by_unit(f"{theirs}_scales", units, scales, *raw)


def gpt_oss_biases(m: Model, prefix: str, gate: Entry, up: Entry) -> Iterable[StoredTensor]:
    both = (stored(entry.name, entry) for entry in (gate, up))
    units = m.integer("expert_count")
    yield by_unit(f"{prefix}mlp.experts.gate_up_proj_bias", units, alternating, *both)


def llama4(m: Model) -> dict[str, Any]:
    """What the file does not hold is as llama.cpp has it: chunks, temperature, which one has norms
    on heads."""
    window = "attention.sliding_window"
    if m.has(window):
        raise m.error(f"{m.key(window)} is there, of a model without chunks; accepted: no such key")
    out = plain(m)
    out |= routing(m, experts="num_local_experts", top_k="num_experts_per_tok")
    return {
        **out,
        "intermediate_size": m.same("expert_feed_forward_length"),
        "intermediate_size_mlp": m.same("feed_forward_length"),
        "interleave_moe_layer_step": m.integer("interleave_moe_layer_step"),
        "use_qk_norm": out["num_local_experts"] != 128,  # Maverick
        "attention_chunk_size": 8192,
        "no_rope_layer_interval": 4,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    }


def llama4_experts(m: Model, prefix: str, gate: Entry, up: Entry) -> Iterable[StoredTensor]:
    both = (stored(entry.name, entry) for entry in (gate, up))
    yield by_unit(
        f"{prefix}feed_forward.experts.gate_up_proj",
        m.integer("expert_count"),
        lambda *parts: torch.cat(parts, dim=2).mT,
        *both,
    )


def transposed(_: Model) -> tuple[Step, ...]:
    return (TRANSPOSED,)


def glm4moe(m: Model) -> dict[str, Any]:
    require_sigmoid(m, SIGMOID)
    attention = heads(m, partial=True)
    names = {"experts": "n_routed_experts", "top_k": "num_experts_per_tok"}
    return {
        **shared(m),
        **attention,
        **dense(m),
        **routing(m, **names, inner="moe_intermediate_size"),
        "n_shared_experts": m.integer("expert_shared_count"),
        "n_group": m.integer("expert_group_count", 1),
        "topk_group": m.integer("expert_group_used_count", 1),
        "first_k_dense_replace": m.count("leading_dense_block_count", 0),
        "norm_topk_prob": m.flag("expert_weights_norm", False),
        "routed_scaling_factor": m.number("expert_weights_scale", 1.0),
        "use_qk_norm": m.any_ends("attn_q_norm.weight"),
        "num_nextn_predict_layers": 0,  # of the tensors that are shown
        "rope_parameters": partial_rope(m, attention["head_dim"]),
    }


def minimax_m2(m: Model) -> dict[str, Any]:
    require_sigmoid(m)
    require(m, "expert_weights_norm", True)
    m.ignore("feed_forward_length")  # of dense layers, of which there are none
    attention = heads(m, partial=True)
    del attention["attention_bias"]
    width = attention["head_dim"]
    names = {"experts": "num_local_experts", "top_k": "num_experts_per_tok"}
    return {
        **shared(m),
        **attention,
        **routing(m, **names, inner="intermediate_size"),
        "hidden_act": "silu",
        "rotary_dim": m.integer("rope.dimension_count", width),
        "rope_parameters": partial_rope(m, width),
    }


def afmoe(m: Model) -> dict[str, Any]:
    """llama.cpp scales embeddings by the root of their width, and every fourth layer is full."""
    require_sigmoid(m, SIGMOID)
    for name in ("expert_group_count", "expert_group_used_count"):
        if m.integer(name, 1) != 1:
            raise m.error(f"{m.key(name)} is {m.integer(name)}; accepted: 1")
    if not m.flag("expert_weights_norm", False):
        raise m.error(f"{m.key('expert_weights_norm')} is not true, as in all files of it")
    names = {"experts": "num_experts", "top_k": "num_experts_per_tok"}
    return {
        **plain(m),
        **routing(m, **names, inner="moe_intermediate_size"),
        "num_shared_experts": m.integer("expert_shared_count"),
        "num_dense_layers": m.count("leading_dense_block_count", 0),
        "route_scale": m.number("expert_weights_scale", 1.0),
        "sliding_window": m.integer("attention.sliding_window"),
        "global_attn_every_n_layers": 4,
        "mup_enabled": True,
    }


ARCHITECTURES = (
    Architecture(
        name="gpt-oss",
        model_type="gpt_oss",
        model_class="GptOssForCausalLM",
        config=gpt_oss,
        layer={
            **ATTENTION,
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks.weight": "self_attn.sinks",
            "ffn_gate_inp": "mlp.router",
            "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
        },
        joined=(
            Join((GATE, UP, DOWN), gpt_oss_experts),
            Join(("ffn_gate_exps.bias", "ffn_up_exps.bias"), gpt_oss_biases),
        ),
    ),
    Architecture(
        name="llama4",
        model_type="llama4_text",
        model_class="Llama4ForCausalLM",
        config=llama4,
        layer={
            **NORMS,
            **ATTENTION,
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_inp": "feed_forward.router",
            DOWN: To("feed_forward.experts.down_proj", transposed),
            "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
            "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
            "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
        },
        joined=(Join((GATE, UP), llama4_experts),),
    ),
    Architecture(
        name="glm4moe",
        model_type="glm4_moe",
        model_class="Glm4MoeForCausalLM",
        config=glm4moe,
        layer={
            **ATTENTION,
            **QK_NORMS,
            **MLP,
            **EXPERTS,
            **CORRECTION,
            **SHARED_EXPERTS,
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
        },
    ),
    Architecture(
        name="minimax-m2",
        model_type="minimax_m2",
        model_class="MiniMaxM2ForCausalLM",
        config=minimax_m2,
        layer={
            **NORMS,
            **ATTENTION,
            **QK_NORMS,
            **routed("block_sparse_moe.experts", "w1", "w3", "w2"),
            "ffn_gate_inp": "block_sparse_moe.gate",
            "exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias",
        },
    ),
    Architecture(
        name="afmoe",
        model_type="afmoe",
        model_class="AfmoeForCausalLM",
        config=afmoe,
        layer={
            **LLAMA,
            **QK_NORMS,
            **EXPERTS,
            **SHARED_EXPERTS,
            "attn_gate": "self_attn.gate_proj",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_mlp_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_gate_inp": "mlp.router.gate",
            "exp_probs_b.bias": "mlp.expert_bias",
        },
    ),
)
