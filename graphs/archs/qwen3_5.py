"""Qwen3.5: the text of qwen3_5_text beside a vision tower."""

from lmcast.graphs.archs import qwen3_5_text
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.towers import qwen_vision

DEFAULTS = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
}

ARCH = Multimodal(
    name="qwen3_5",
    texts={"qwen3_5_text": Text(qwen3_5_text.ARCH, DEFAULTS, theta=10000.0)},
    inert=at_any_value(qwen_vision.TOWER.keys),
    beside=qwen_vision.TOWER.modules,
    tied=False,
    tower=qwen_vision.TOWER,
)
