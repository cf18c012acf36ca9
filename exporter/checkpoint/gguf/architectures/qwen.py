"""Qwen 2 and 3, dense and with experts."""

from typing import Any

from lmcast.exporter.checkpoint.gguf.architecture import EXPERTS, LLAMA, QK_NORMS, Architecture
from lmcast.exporter.checkpoint.gguf.architectures.llama import plain
from lmcast.exporter.checkpoint.gguf.model import Model, require


def experts(m: Model) -> dict[str, Any]:
    """Keys of routed experts; llama.cpp renormalizes for this architecture."""
    require(m, "expert_weights_norm", True)
    return {
        "moe_intermediate_size": m.same("expert_feed_forward_length"),
        "num_experts": m.integer("expert_count"),
        "num_experts_per_tok": m.integer("expert_used_count"),
        "norm_topk_prob": True,
    }


def qwen3moe(m: Model) -> dict[str, Any]:
    dense = [i for i, e in enumerate(m.layer_entries("ffn_gate.weight")) if e is not None]
    return {**plain(m), **experts(m), "mlp_only_layers": dense}


ARCHITECTURES = (
    Architecture(
        name="qwen2",
        model_type="qwen2",
        model_class="Qwen2ForCausalLM",
        config=plain,
        layer=LLAMA,
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        model_class="Qwen3ForCausalLM",
        config=plain,
        layer={**LLAMA, **QK_NORMS},
    ),
    Architecture(
        name="qwen3moe",
        model_type="qwen3_moe",
        model_class="Qwen3MoeForCausalLM",
        config=qwen3moe,
        layer={**LLAMA, **QK_NORMS, **EXPERTS},
    ),
)
