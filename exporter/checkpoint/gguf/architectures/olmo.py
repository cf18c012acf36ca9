"""OLMo 2 and Olmo 3, which differ by a window in some layers."""

import math
from typing import Any

from lmcast.exporter.checkpoint.gguf.architecture import ATTENTION, MLP, QK_NORMS, Architecture
from lmcast.exporter.checkpoint.gguf.architectures.llama import plain
from lmcast.exporter.checkpoint.gguf.model import Model

WINDOW, FACTOR = "attention.sliding_window", "rope.scaling.attn_factor"


def olmo2(m: Model) -> dict[str, Any]:
    """The converter writes YaRN's factor of attention for these under a name of its own, too;
    llama.cpp multiplies by it once more, which is in no checkpoint: only the usual one says what
    was meant."""
    out = plain(m)
    if m.has(FACTOR):
        found = m.number(FACTOR)
        usual = 0.1 * math.log(out["rope_parameters"].get("factor", 1.0)) + 1
        if not math.isclose(found, usual, rel_tol=1e-6):  # the file holds float32
            raise m.error(f"{m.key(FACTOR)} is {found}; accepted: {usual:.7g}, as by YaRN")
    return out


def olmo3(m: Model) -> dict[str, Any]:
    """Windowed layers rotate without the scaling of the others."""
    out = olmo2(m)
    full = out["rope_parameters"]
    slides = m.each("attention.sliding_window_pattern", bool)
    return {
        **out,
        "sliding_window": m.integer(WINDOW),
        "layer_types": [("full_attention", "sliding_attention")[slide] for slide in slides],
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": m.number("rope.freq_base_swa", full["rope_theta"]),
            },
        },
    }


LAYER = {
    **ATTENTION,
    **QK_NORMS,
    **MLP,
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ARCHITECTURES = (
    Architecture(
        name="olmo2",
        model_type="olmo3",
        model_class="Olmo3ForCausalLM",
        config=olmo3,
        layer=LAYER,
        when=lambda m: m.has(WINDOW),
    ),
    Architecture(
        name="olmo2",
        model_type="olmo2",
        model_class="Olmo2ForCausalLM",
        config=olmo2,
        layer=LAYER,
    ),
)
