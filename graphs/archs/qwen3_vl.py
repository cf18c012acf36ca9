"""Qwen3-VL: the layers of Qwen3, of which the first take features of their own, beside a tower."""

from dataclasses import dataclass

from lmcast.graphs.archs import qwen3
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.ffn import ActivationName
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import WholeMRope
from lmcast.graphs.towers import qwen_vision


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: WholeMRope
    num_key_value_heads: Size | None = 32
    head_dim: Size = 128
    max_position_embeddings: Size = 128000
    rms_norm_eps: Positive = 1e-6
    hidden_act: ActivationName = "silu"
    attention_bias: bool = False
    tie_word_embeddings: bool = False

    def windows(self) -> tuple[None, ...]:
        return (None,) * self.num_hidden_layers


DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
TEXT = Arch(
    name="qwen3_vl_text", config=Config, build=qwen3.build, weights=qwen3.WEIGHTS, tidy=rope
)

ARCH = Multimodal(
    name="qwen3_vl",
    texts={"qwen3_vl_text": Text(TEXT, DEFAULTS, theta=500000.0)},
    inert=at_any_value(qwen_vision.DEEPSTACK.keys),
    beside=qwen_vision.DEEPSTACK.modules,
    tied=False,
    tower=qwen_vision.DEEPSTACK,
)
