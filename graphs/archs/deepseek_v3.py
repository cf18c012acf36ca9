"""DeepSeek V3, V3.1 and R1: latent attention; groups of experts, a bias that selects them."""

from dataclasses import dataclass

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.mla import HeadWidths, LatentAttention
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.rope import Rope, rotate, rotate_interleaved
from lmcast.graphs.config.reading import Experts, OrAbsent, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.families.latents import (
    SIGMOID_INERT,
    LatentKeys,
    beside,
    require_head_dim,
    softmax_scale,
    tidy,
    weights,
)


@dataclass(frozen=True, kw_only=True)
class Config(LatentKeys):
    rope_parameters: FullRope
    rope_interleave: bool = True
    n_group: Experts = 8
    topk_group: Experts = 4
    routed_scaling_factor: Positive = 2.5
    head_dim: OrAbsent[Size] = None
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_head_dim(self.head_dim, self.qk_rope_head_dim)


def attention(c: Config, rope: Rope) -> LatentAttention:
    return LatentAttention(
        dim=c.hidden_size,
        heads=c.num_attention_heads,
        query_rank=c.q_lora_rank,
        rank=c.kv_lora_rank,
        widths=HeadWidths(c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim),
        rope=rope,
        bias=c.attention_bias,
        scale=softmax_scale(c.qk_nope_head_dim + c.qk_rope_head_dim, c.rope_parameters),
        rotation=rotate_interleaved if c.rope_interleave else rotate,
    )


def dense(c: Config) -> GatedMLP:
    return GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act)


def experts(c: Config) -> moe.MoE:
    dim, inner, act = c.hidden_size, c.moe_intermediate_size, c.hidden_act
    return moe.MoE(
        moe.sigmoid_router(
            dim,
            c.n_routed_experts,
            c.num_experts_per_tok,
            groups=c.n_group,
            kept_groups=c.topk_group,
            renormalize=c.norm_topk_prob,
            scale=c.routed_scaling_factor,
        ),
        moe.Experts(dim, inner, c.n_routed_experts, activation=moe.EXPERT_ACTIVATIONS[act]),
        shared=GatedMLP(dim, inner * c.n_shared_experts, act=act),
    )


def build(c: Config) -> Decoder:
    rope = Rope(c.qk_rope_head_dim, c.rope_parameters, c.max_position_embeddings)

    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    def layer(index: int) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=attention(c, rope),
            pre_ffn=norm(),
            ffn=experts(c) if index >= c.first_k_dense_replace else dense(c),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(i) for i in range(c.num_hidden_layers)],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


ARCH = Arch(
    name="deepseek_v3",
    config=Config,
    build=build,
    weights=weights,
    tidy=tidy,
    inert=SIGMOID_INERT,
    beside=beside,
)
