"""OLMo 2: norms after each branch instead of before, and over all heads of queries and keys."""

from dataclasses import dataclass

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention, Positions
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.norm import WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope, rotate_wide
from lmcast.graphs.config.layer_types import head_width
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import Layers, OrAbsent, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON, QK_NORMS, SANDWICH


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
    rms_norm_eps: Positive = 1e-5
    hidden_act: ActivationName = "silu"
    attention_bias: bool = False
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

    def norm(dim: int = c.hidden_size) -> WideRMSNorm:
        return WideRMSNorm(dim, c.rms_norm_eps)

    def layer() -> Layer:
        return Layer(
            mixer=Attention(
                projections,
                rope=Positions(positions, rotate_wide),
                q_norm=norm(heads * head_dim),
                k_norm=norm(kv_heads * head_dim),
            ),
            post_mixer=norm(),
            ffn=GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act),
            post_ffn=norm(),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer() for _ in range(c.num_hidden_layers)],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


WEIGHTS = {
    **COMMON,
    **QK_NORMS,
    **SANDWICH,
}

ARCH = Arch(name="olmo2", config=Config, build=build, weights=WEIGHTS, tidy=rope)
