"""DeepSeek V3.2: V3 with an indexer in every layer, which rotates halves where attention rotates
pairs."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.mla import HeadWidths, Indexer, LatentAttention
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.rope import Rope, rotate, rotate_interleaved
from lmcast.graphs.config.layer_types import FFNType, one_each, with_experts
from lmcast.graphs.config.reading import Experts, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.families.latents import (
    SIGMOID_INERT,
    UNREAD_HEAD_DIM,
    LatentKeys,
    beside,
    softmax_scale,
    tidy,
    weights,
)


@dataclass(frozen=True, kw_only=True)
class Config(LatentKeys):
    rope_parameters: FullRope
    q_lora_rank: Size
    num_key_value_heads: Size
    index_topk: Size = 2048
    index_head_dim: Size = 128
    index_n_heads: Size = 64
    n_group: Experts = 8
    topk_group: Experts = 4
    routed_scaling_factor: Positive = 2.5
    mlp_layer_types: tuple[FFNType, ...] | None = None
    layer_types: tuple[Literal["indexed_attention"], ...] | None = None
    max_position_embeddings: Size = 163840
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_each("layer_types", self.layer_types or "indexed_attention", self.num_hidden_layers)

    def sparse(self) -> tuple[bool, ...]:
        dense = self.first_k_dense_replace
        return with_experts(self.mlp_layer_types, self.num_hidden_layers, dense)


def indexer(c: Config) -> Indexer:
    return Indexer(
        dim=c.hidden_size,
        query_rank=c.q_lora_rank,
        heads=c.index_n_heads,
        width=c.index_head_dim,
        top_k=c.index_topk,
        rotation=rotate,
    )


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
        rotation=rotate_interleaved,
        indexer=indexer(c),
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

    def layer(sparse: bool) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=attention(c, rope),
            pre_ffn=norm(),
            ffn=experts(c) if sparse else dense(c),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(sparse) for sparse in c.sparse()],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


INERT = {
    **SIGMOID_INERT,
    **UNREAD_HEAD_DIM,
    "mlp_bias": Literal[False],
    "rope_interleave": Literal[True],
    "indexer_rope_interleave": Literal[False],
}
ARCH = Arch(
    name="deepseek_v32",
    config=Config,
    build=build,
    weights=weights,
    tidy=tidy,
    inert=INERT,
    beside=beside,
)
