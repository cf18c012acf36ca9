"""Gemma 3 (text): Gemma 2 with norms on heads; windowed layers have positions of their own."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, ScaledEmbedding, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import PerHead, WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import LayerType, head_width, windows
from lmcast.graphs.config.older_spellings import rope_with_local_base
from lmcast.graphs.config.reading import Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import RopeByLayerType
from lmcast.graphs.weights.bind import COMMON, HEAD_NORMS, SANDWICH


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: RopeByLayerType
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    max_position_embeddings: Size = 131072
    rms_norm_eps: Positive = 1e-6
    hidden_activation: ActivationName = "gelu_pytorch_tanh"
    attention_bias: bool = False
    query_pre_attn_scalar: Positive = 256.0
    final_logit_softcapping: Positive | None = None
    sliding_window: Size | None = 4096
    sliding_window_pattern: Size | None = None  # the older spelling of layer_types
    layer_types: tuple[LayerType, ...] | None = None
    tie_word_embeddings: bool = True

    def windows(self) -> tuple[int | None, ...]:
        pattern = self.sliding_window_pattern or 6
        kinds: tuple[str, ...] = tuple(
            "sliding_attention" if (i + 1) % pattern else "full_attention"
            for i in range(self.num_hidden_layers)
        )
        if self.layer_types is not None:
            if self.sliding_window_pattern is not None and kinds != self.layer_types:
                raise ValueError(f"layer_types is not what sliding_window_pattern {pattern} means")
            kinds = self.layer_types
        return windows(kinds, self.num_hidden_layers, self.sliding_window)


def build(c: Config) -> Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    head_dim = head_width(c.hidden_size, heads, kv_heads, c.head_dim)
    full, sliding = (
        Rope(head_dim, p, c.max_position_embeddings)
        for p in (c.rope_parameters.full_attention, c.rope_parameters.sliding_attention)
    )
    projections = Projections(
        dim=c.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )

    def norm(dim: int = c.hidden_size) -> WideRMSNorm:
        return WideRMSNorm(dim, c.rms_norm_eps, offset=1.0)

    def layer(window: int | None) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=Attention(
                projections,
                rope=sliding if window else full,
                keeps=windowed(window),
                q_norm=PerHead(norm(head_dim)),
                k_norm=PerHead(norm(head_dim)),
                scale=c.query_pre_attn_scalar**-0.5,
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
    **HEAD_NORMS,
    **SANDWICH,
}

INERT = {
    "attn_logit_softcapping": float,  # stored, and applied by nothing
    "use_bidirectional_attention": Literal[False],
}
ARCH = Arch(
    name="gemma3_text",
    config=Config,
    build=build,
    weights=WEIGHTS,
    tidy=rope_with_local_base,
    inert=INERT,
)
