"""Qwen3.5 with experts: the text of qwen3_5_moe_text beside a vision tower."""

from lmcast.graphs.archs import qwen3_5, qwen3_5_moe_text
from lmcast.graphs.archs.multimodal import Multimodal, Text

DEFAULTS = {
    "vocab_size": 248320,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
}

ARCH = Multimodal(
    name="qwen3_5_moe",
    texts={"qwen3_5_moe_text": Text(qwen3_5_moe_text.ARCH, DEFAULTS, theta=10000.0)},
    inert=qwen3_5.ARCH.inert,
    beside=qwen3_5.ARCH.beside,
    tied=False,
    tower=qwen3_5.ARCH.tower,
)
