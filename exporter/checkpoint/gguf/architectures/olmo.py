"""OLMo 2 and Olmo 3, which differ by a window in some layers."""

from typing import Any

from lmcast.exporter.checkpoint.gguf.architecture import ATTENTION, MLP, QK_NORMS, Architecture
from lmcast.exporter.checkpoint.gguf.architectures.llama import plain
from lmcast.exporter.checkpoint.gguf.model import Model

WINDOW = "attention.sliding_window"


def olmo3(m: Model) -> dict[str, Any]:
    """Windowed layers rotate without the scaling of the others."""
    out = plain(m)
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
        config=plain,
        layer=LAYER,
    ),
)
