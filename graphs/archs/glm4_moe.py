"""GLM-4.5: half of each head rotates; groups of experts, a bias that selects them, shared ones."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.norm import PerHead, RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import further_predictors, head_width
from lmcast.graphs.config.older_spellings import renamed, rope
from lmcast.graphs.config.reading import Count, Experts, Layers, OrAbsent, Positive, Size
from lmcast.graphs.config.rope_parameters import RopeParameters
from lmcast.graphs.weights.bind import COMMON, HEAD_NORMS, Table
from lmcast.graphs.weights.experts import CORRECTION, ROUTER, SHARED_EXPERTS, routed


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size  # of dense layers
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: RopeParameters
    n_routed_experts: Experts
    moe_intermediate_size: Size
    num_experts_per_tok: Experts
    n_group: Experts = 1
    topk_group: Experts = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 1.0
    n_shared_experts: Size = 1
    first_k_dense_replace: Count = 1
    num_nextn_predict_layers: Count = 1  # stored behind the others, and left out
    num_key_value_heads: Size = 8
    head_dim: OrAbsent[Size] = None
    use_qk_norm: bool = False
    max_position_embeddings: Size = 131072
    rms_norm_eps: Positive = 1e-5
    hidden_act: moe.ExpertActivation = "silu"
    attention_bias: bool = False  # of queries, keys and values
    tie_word_embeddings: bool = False


def build(c: Config) -> Decoder:
    dim, heads, kv_heads = c.hidden_size, c.num_attention_heads, c.num_key_value_heads
    head_dim = head_width(dim, heads, kv_heads, c.head_dim)
    positions, act = Rope(head_dim, c.rope_parameters, c.max_position_embeddings), c.hidden_act
    projections = Projections(
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=c.attention_bias,
    )

    def norm(width: int = dim) -> RMSNorm:
        return RMSNorm(width, c.rms_norm_eps)

    def ffn(sparse: bool) -> nn.Module:
        if not sparse:
            return GatedMLP(dim, c.intermediate_size, act=act)
        router = moe.sigmoid_router(
            dim, c.n_routed_experts, c.num_experts_per_tok, groups=c.n_group,
            kept_groups=c.topk_group, renormalize=c.norm_topk_prob, scale=c.routed_scaling_factor,
        )  # fmt: skip
        inner, kind = c.moe_intermediate_size, moe.EXPERT_ACTIVATIONS[act]
        experts = moe.Experts(dim, inner, c.n_routed_experts, activation=kind)
        return moe.MoE(router, experts, GatedMLP(dim, inner * c.n_shared_experts, act=act))

    def layer(index: int) -> Layer:
        mixer = Attention(
            projections,
            rope=positions,
            q_norm=PerHead(norm(head_dim)) if c.use_qk_norm else None,
            k_norm=PerHead(norm(head_dim)) if c.use_qk_norm else None,
        )
        feed = ffn(index >= c.first_k_dense_replace)
        return Layer(pre_mixer=norm(), mixer=mixer, pre_ffn=norm(), ffn=feed)

    embed = nn.Embedding(c.vocab_size, dim)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    layers = [layer(i) for i in range(c.num_hidden_layers)]
    return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


def weights(c: Config) -> Table:
    return {
        **COMMON,
        **SHARED_EXPERTS,
        **routed(c.moe_intermediate_size),
        **HEAD_NORMS,
        **ROUTER,
        **CORRECTION,
    }


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    older = {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"}
    return rope(renamed(raw, older), partial=0.5)


def beside(c: Config, tensors: Collection[str]) -> tuple[str, ...]:
    return further_predictors(c.num_hidden_layers, c.num_nextn_predict_layers, tensors)


INERT = {
    "moe_router_dtype": Literal["float32"],
    "scoring_func": Literal["sigmoid"],
    "topk_method": Literal["noaux_tc"],
}
ARCH = Arch(
    name="glm4_moe",
    config=Config,
    build=build,
    weights=weights,
    tidy=tidy,
    inert=INERT,
    beside=beside,
)
