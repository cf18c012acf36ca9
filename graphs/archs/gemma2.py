"""Gemma 2: norms on both sides of each branch, softcaps, a window in every other layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, ScaledEmbedding, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import LayerType, head_width, windows
from lmcast.graphs.config.older_spellings import renamed, rope
from lmcast.graphs.config.reading import Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON, SANDWICH


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: FullRope
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    max_position_embeddings: Size = 8192
    rms_norm_eps: Positive = 1e-6
    hidden_activation: ActivationName = "gelu_pytorch_tanh"
    hidden_act: ActivationName | None = None  # an older name; must not say anything else
    attention_bias: bool = False
    query_pre_attn_scalar: Positive = 256.0
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0
    sliding_window: Size | None = 4096
    layer_types: tuple[LayerType, ...] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.hidden_act not in (None, self.hidden_activation):
            raise ValueError(
                f"hidden_act is {self.hidden_act!r}, but hidden_activation, the one that counts,"
                f" is {self.hidden_activation!r}"
            )

    def windows(self) -> tuple[int | None, ...]:
        kinds: tuple[str, ...] | None = self.layer_types
        if kinds is None:
            kinds = tuple(
                "full_attention" if i % 2 else "sliding_attention"
                for i in range(self.num_hidden_layers)
            )
        return windows(kinds, self.num_hidden_layers, self.sliding_window)


def build(c: Config) -> Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    head_dim = head_width(c.hidden_size, heads, kv_heads, c.head_dim)
    positions = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)
    projections = Projections(
        dim=c.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )

    def norm() -> WideRMSNorm:
        return WideRMSNorm(c.hidden_size, c.rms_norm_eps, offset=1.0)

    def layer(window: int | None) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=Attention(
                projections,
                rope=positions,
                keeps=windowed(window),
                scale=c.query_pre_attn_scalar**-0.5,
                softcap=c.attn_logit_softcapping,
            ),
            post_mixer=norm(),
            pre_ffn=norm(),
            ffn=GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_activation),
            post_ffn=norm(),
        )

    embed = ScaledEmbedding(c.vocab_size, c.hidden_size, scale=c.hidden_size**0.5)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(window) for window in c.windows()],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
        softcap=c.final_logit_softcapping,
    )


WEIGHTS = {
    **COMMON,
    **SANDWICH,
}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return rope(renamed(raw, {"sliding_window_size": "sliding_window"}))


INERT = {"use_bidirectional_attention": Literal[False]}
ARCH = Arch(name="gemma2", config=Config, build=build, weights=WEIGHTS, tidy=tidy, inert=INERT)
