"""Phi-3, 3.5 and 4: fused projections, LongRoPE, heads that rotate in part."""

import math
from typing import Any

from lmcast.exporter.checkpoint.gguf.architecture import NORMS, Architecture
from lmcast.exporter.checkpoint.gguf.model import LONG, SHORT, Model, dense, heads, shared

ORIGINAL = "rope.scaling.original_context_length"


def phi3(m: Model) -> dict[str, Any]:
    attention = heads(m, partial=True)
    del attention["attention_bias"]
    width = attention["head_dim"]
    rotated = m.integer("rope.dimension_count", width)
    if rotated > width or rotated % 2:
        raise m.error(
            f"{m.key('rope.dimension_count')} is {rotated}; accepted: an even number up to the"
            f" head's {width}"
        )
    # llama.cpp does not apply it, and a file that says nothing may be of a model that has one.
    window = m.count("attention.sliding_window")
    return {
        **shared(m),
        **attention,
        **dense(m),
        "original_max_position_embeddings": m.integer(ORIGINAL),
        "sliding_window": window or None,
        "rope_parameters": {**_rope(m, rotated), "partial_rotary_factor": rotated / width},
    }


def _rope(m: Model, rotated: int) -> dict[str, Any]:
    theta = m.number("rope.freq_base", 10000.0)
    long, short = (m.frequencies(name, rotated // 2) for name in (LONG, SHORT))
    if long is None and short is None:
        return {"rope_type": "default", "rope_theta": theta}
    if long is None or short is None:
        raise m.error(f"one of the tensors {LONG!r} and {SHORT!r} is missing")
    out: dict[str, Any] = {
        "rope_type": "longrope",
        "rope_theta": theta,
        "long_factor": [float(str(value)) for value in long],
        "short_factor": [float(str(value)) for value in short],
        "original_max_position_embeddings": m.integer(ORIGINAL),
    }
    factor, original = m.number("rope.scaling.attn_factor", 1.0), m.integer(ORIGINAL)
    ratio = m.integer("context_length") / original
    if original == 1:
        raise m.error(f"{m.key(ORIGINAL)} is 1; accepted: a context of some length")
    usual = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    if not math.isclose(factor, usual, rel_tol=1e-6):  # the file holds float32
        out["attention_factor"] = factor
    return out


ARCHITECTURES = (
    Architecture(
        name="phi3",
        model_type="phi3",
        model_class="Phi3ForCausalLM",
        config=phi3,
        layer={
            **NORMS,
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
)
