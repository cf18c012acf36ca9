"""Qwen1.5, 2 and 2.5, dense: Llama's layers, biases on queries, keys and values alone."""

from dataclasses import dataclass

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import LayerType, head_width, windows_from
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import Count, Layers, OrAbsent, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: FullRope
    num_key_value_heads: Size | None = 32
    head_dim: OrAbsent[Size] = None
    max_position_embeddings: Size = 32768
    rms_norm_eps: Positive = 1e-6
    hidden_act: ActivationName = "silu"
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096  # unread where use_sliding_window is false
    max_window_layers: Count = 28  # how many full layers come first, without layer_types
    layer_types: tuple[LayerType, ...] | None = None
    tie_word_embeddings: bool = False

    def windows(self) -> tuple[int | None, ...]:
        window = self.sliding_window if self.use_sliding_window else None
        first, layers = self.max_window_layers, self.num_hidden_layers
        return windows_from(first, self.layer_types, layers, window)


def build(c: Config) -> Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads
    head_dim = head_width(c.hidden_size, heads, kv_heads, c.head_dim)
    positions = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)
    projections = Projections(
        dim=c.hidden_size, heads=heads, kv_heads=kv_heads, head_dim=head_dim, qkv_bias=True
    )

    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    def layer(window: int | None) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=Attention(projections, rope=positions, keeps=windowed(window)),
            pre_ffn=norm(),
            ffn=GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(window) for window in c.windows()],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


INERT = {"attention_bias": bool}  # the biases are there whatever it says
ARCH = Arch(name="qwen2", config=Config, build=build, weights=COMMON, tidy=rope, inert=INERT)
