"""Granite 3, dense: Llama's layers with four multipliers, one of them instead of 1 / sqrt(d)."""

from dataclasses import dataclass

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, Scaled, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import head_width
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import Layers, OrAbsent, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON, SCALED_ENDS


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: FullRope
    num_key_value_heads: Size | None = None
    head_dim: OrAbsent[Size] = None
    max_position_embeddings: Size = 2048
    rms_norm_eps: Positive = 1e-6
    hidden_act: ActivationName = "silu"
    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0  # of queries times keys
    residual_multiplier: Positive = 1.0  # of what a branch adds
    logits_scaling: Positive = 1.0  # logits are divided by it
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False


def build(c: Config) -> Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads
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

    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    def branch() -> Scaled:
        return Scaled(nn.Identity(), c.residual_multiplier)

    def layer() -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=Attention(projections, rope=positions, scale=c.attention_multiplier),
            post_mixer=branch(),
            pre_ffn=norm(),
            ffn=GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act, bias=c.mlp_bias),
            post_ffn=branch(),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    untied = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    head = TiedHead(embed) if c.tie_word_embeddings else untied
    return Decoder(
        embed=Scaled(embed, c.embedding_multiplier),
        layers=[layer() for _ in range(c.num_hidden_layers)],
        norm=norm(),
        head=Scaled(head, 1 / c.logits_scaling),
    )


WEIGHTS = {**COMMON, **SCALED_ENDS}
ARCH = Arch(name="granite", config=Config, build=build, weights=WEIGHTS, tidy=rope)
