"""Llama 4 Scout and Maverick: the text model of llama4_text beside a vision model."""

from lmcast.graphs.archs import llama4_text
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.config.inert import at_any_value

DEFAULTS = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
}
KEYS = """
boi_token_id boi_token_index eoi_token_id eoi_token_index image_token_id image_token_index
vision_config
"""

ARCH = Multimodal(
    name="llama4",
    texts={"llama4_text": Text(llama4_text.ARCH, DEFAULTS, theta=500000.0)},
    inert=at_any_value(KEYS.split()),
    beside=("vision_model", "multi_modal_projector"),
    tied=False,
)
