"""Qwen3.5 (text, dense): the layers of Qwen3-Next, with a matrix for each input of a DeltaNet."""

from dataclasses import dataclass

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.delta import GatedDeltaNet, Inputs
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.norm import PerHead, WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import head_width
from lmcast.graphs.config.reading import Size
from lmcast.graphs.config.rope_parameters import MRope
from lmcast.graphs.families.delta_nets import BESIDE, QWEN35_INERT, WEIGHTS, DeltaKeys, tidy


@dataclass(frozen=True, kw_only=True)
class Config(DeltaKeys):
    rope_parameters: MRope
    intermediate_size: Size
    num_key_value_heads: Size = 4
    hidden_act: ActivationName = "silu"


def attention(c: Config, rope: Rope) -> Attention:
    def norm() -> PerHead:
        return PerHead(WideRMSNorm(c.head_dim, c.rms_norm_eps, offset=1.0))

    projections = Projections(
        dim=c.hidden_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )
    return Attention(projections, rope=rope, gate="query", q_norm=norm(), k_norm=norm())


def delta_net(c: Config) -> GatedDeltaNet:
    return GatedDeltaNet(
        dim=c.hidden_size,
        heads=c.linear_num_value_heads,
        groups=c.linear_num_key_heads,
        key_dim=c.linear_key_head_dim,
        value_dim=c.linear_value_head_dim,
        taps=c.linear_conv_kernel_dim,
        eps=c.rms_norm_eps,
        inputs=Inputs,
        act=c.hidden_act,
    )


def build(c: Config) -> Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    head_dim = head_width(c.hidden_size, heads, kv_heads, c.head_dim)
    rope = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)

    def norm() -> WideRMSNorm:
        return WideRMSNorm(c.hidden_size, c.rms_norm_eps, offset=1.0)

    def layer(linear: bool) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=delta_net(c) if linear else attention(c, rope),
            pre_ffn=norm(),
            ffn=GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(linear) for linear in c.linear()],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


ARCH = Arch(
    name="qwen3_5_text",
    config=Config,
    build=build,
    weights=WEIGHTS,
    tidy=tidy,
    inert=QWEN35_INERT,
    beside=BESIDE,
)
