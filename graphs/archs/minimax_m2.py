"""MiniMax-M2: experts everywhere; norms over all heads of queries and keys; half a head rotates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import check_rotated, head_width, one_each
from lmcast.graphs.config.older_spellings import renamed, rope, rotated_share
from lmcast.graphs.config.reading import Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import RopeParameters
from lmcast.graphs.weights.bind import COMMON, QK_NORMS, Table
from lmcast.graphs.weights.experts import sparse_block
from lmcast.graphs.weights.sources import View
from lmcast.plugins.annotations import Range

HEAD_DIM = 128
One = Annotated[float, Range(1, 1)]


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size  # of one expert
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: RopeParameters
    num_local_experts: Experts
    num_experts_per_tok: Experts
    num_key_value_heads: Size = 8
    head_dim: Size = HEAD_DIM
    rotary_dim: Size | None = None
    max_position_embeddings: Size = 196608
    rms_norm_eps: Positive = 1e-6
    hidden_act: moe.ExpertActivation = "silu"
    tie_word_embeddings: bool = False
    attn_type_list: tuple[Literal[1], ...] | None = None  # 1: full attention, as everywhere

    def __post_init__(self) -> None:
        share = self.rope_parameters.partial_rotary_factor
        check_rotated(self.rotary_dim, self.head_dim, share)
        one_each("attn_type_list", self.attn_type_list or 1, self.num_hidden_layers)


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    partial = rotated_share(raw.get("rotary_dim"), raw.get("head_dim", HEAD_DIM))
    return rope(renamed(raw, {"num_experts": "num_local_experts"}), partial=partial)


def build(c: Config) -> Decoder:
    dim, heads, kv_heads = c.hidden_size, c.num_attention_heads, c.num_key_value_heads
    head_dim = head_width(dim, heads, kv_heads, c.head_dim)
    positions = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)
    act, experts = moe.EXPERT_ACTIVATIONS[c.hidden_act], c.num_local_experts
    projections = Projections(dim=dim, heads=heads, kv_heads=kv_heads, head_dim=head_dim)

    def norm(width: int = dim) -> RMSNorm:
        return RMSNorm(width, c.rms_norm_eps)

    def layer() -> Layer:
        mixer = Attention(
            projections, rope=positions,
            q_norm=norm(heads * head_dim), k_norm=norm(kv_heads * head_dim),
        )  # fmt: skip
        top_k = c.num_experts_per_tok
        router = moe.Router(dim, experts, top_k, score="sigmoid", correction=True, epsilon=0.0)
        ffn = moe.MoE(router, moe.Experts(dim, c.intermediate_size, experts, activation=act))
        return Layer(pre_mixer=norm(), mixer=mixer, pre_ffn=norm(), ffn=ffn)

    embed = nn.Embedding(c.vocab_size, dim)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    layers = [layer() for _ in range(c.num_hidden_layers)]
    return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


def weights(c: Config) -> Table:
    """As on the hub, or as Hugging Face names its modules."""
    correction = "e_score_correction_bias"
    return {
        **COMMON,
        **sparse_block(c.intermediate_size),
        "layers.{i}.ffn.router.correction": (
            View(f"model.layers.{{i}}.block_sparse_moe.{correction}"),
            View(f"model.layers.{{i}}.mlp.{correction}"),
        ),
        **QK_NORMS,
    }


INERT = {
    "layernorm_full_attention_beta": One,
    "layernorm_linear_attention_beta": One,
    "layernorm_mlp_beta": One,
    "mlp_intermediate_size": int,  # of dense layers, of which there are none
    "qk_norm_type": Literal["per_layer"],
    "scoring_func": Literal["sigmoid"],
    "shared_intermediate_size": Literal[0],
    "shared_moe_mode": str,
    "use_qk_norm": Literal[True],
    "use_routing_bias": Literal[True],
}
ARCH = Arch(name="minimax_m2", config=Config, build=build, weights=weights, tidy=tidy, inert=INERT)
