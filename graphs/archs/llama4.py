"""Llama 4 Scout and Maverick: the text model of llama4_text beside a vision model."""

from lmcast.graphs.archs import llama4_text
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.towers import llama4_vision

DEFAULTS = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
}

ARCH = Multimodal(
    name="llama4",
    texts={"llama4_text": Text(llama4_text.ARCH, DEFAULTS, theta=500000.0)},
    inert=at_any_value((*llama4_vision.TOKENS, *llama4_vision.TOWER.keys)),
    beside=llama4_vision.TOWER.modules,
    tied=False,
    tower=llama4_vision.TOWER,
)
