"""MiniMax-Text-01 and M1: lightning attention in most layers; residuals are normed and gained."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, TiedHead
from lmcast.graphs.blocks.deepnorm import GainedLayer
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.lightning import Decay, LightningAttention
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.blocks.step import Mixer
from lmcast.graphs.config.layer_types import check_rotated, head_width, one_each
from lmcast.graphs.config.older_spellings import renamed, rope, rotated_share
from lmcast.graphs.config.reading import Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import RopeParameters
from lmcast.graphs.weights.bind import COMMON, Table
from lmcast.graphs.weights.experts import sparse_block

Kind = Literal["full_attention", "linear_attention"]
IN_TURN: tuple[Kind, ...] = ("full_attention", "linear_attention")


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size  # of one expert
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: RopeParameters
    num_local_experts: Experts = 8
    num_experts_per_tok: Experts
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = None
    rotary_dim: Size | None = None
    layer_types: tuple[Kind, ...] | None = None
    sliding_window: Size | None = None  # of full attention
    full_attn_alpha_factor: float = 1.0
    full_attn_beta_factor: float = 1.0
    linear_attn_alpha_factor: float = 1.0
    linear_attn_beta_factor: float = 1.0
    mlp_alpha_factor: float = 1.0
    mlp_beta_factor: float = 1.0
    max_position_embeddings: Size = 131072
    rms_norm_eps: Positive = 1e-5
    hidden_act: moe.ExpertActivation = "silu"
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        share = self.rope_parameters.partial_rotary_factor
        check_rotated(self.rotary_dim, self.head_width(), share)
        if share != 1 and self.rope_parameters.rope_type != "default":
            raise ValueError(
                f"rope_type is {self.rope_parameters.rope_type!r}, by which the makers' code scales"
                " nothing, and Hugging Face's all of a head, not the part that is rotated;"
                " accepted: default"
            )
        if self.rotary_dim is None and share != 1:
            raise ValueError(
                f"partial_rotary_factor is {share}, which no code of this architecture reads; give"
                " rotary_dim instead"
            )

    def head_width(self) -> int:
        heads = self.num_attention_heads
        return head_width(self.hidden_size, heads, self.num_key_value_heads or heads, self.head_dim)

    def kinds(self) -> tuple[Kind, ...]:
        count, given = self.num_hidden_layers, self.layer_types
        by_default = tuple(IN_TURN[i % 2] for i in range(count))
        return one_each("layer_types", by_default if given is None else given, count)


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    dim, heads, width = (raw.get(k) for k in ("hidden_size", "num_attention_heads", "head_dim"))
    if width is None and type(dim) is type(heads) is int and heads > 0:
        width = dim // heads
    share = rotated_share(raw.get("rotary_dim"), width)
    return rope(renamed(raw, {"num_experts": "num_local_experts"}), partial=share)


def build(c: Config) -> Decoder:
    dim, heads, experts = c.hidden_size, c.num_attention_heads, c.num_local_experts
    head_dim, kv_heads = c.head_width(), c.num_key_value_heads or heads
    positions = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)
    projections = Projections(dim=dim, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    norm, act = partial(RMSNorm, dim, c.rms_norm_eps), moe.EXPERT_ACTIVATIONS[c.hidden_act]

    def layer(index: int, kind: Kind) -> GainedLayer:
        if kind == "full_attention":
            mixer: Mixer = Attention(projections, rope=positions, keeps=windowed(c.sliding_window))
            gains = c.full_attn_alpha_factor, c.full_attn_beta_factor
        else:
            decay = Decay(heads, index, c.num_hidden_layers)
            mixer = LightningAttention(dim, heads, head_dim, decay=decay, act=c.hidden_act)
            gains = c.linear_attn_alpha_factor, c.linear_attn_beta_factor
        router = moe.Router(dim, experts, c.num_experts_per_tok, epsilon=0.0)
        ffn = moe.MoE(router, moe.Experts(dim, c.intermediate_size, experts, activation=act))
        return GainedLayer(
            pre_mixer=norm(), mixer=mixer, mixer_gains=gains,
            pre_ffn=norm(), ffn=ffn, ffn_gains=(c.mlp_alpha_factor, c.mlp_beta_factor),
        )  # fmt: skip

    embed = nn.Embedding(c.vocab_size, dim)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    layers = [layer(index, kind) for index, kind in enumerate(c.kinds())]
    return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


def weights(c: Config) -> Table:
    names = {"qkv": "qkv_proj", "gate": "output_gate", "norm": "norm", "out": "out_proj"}
    at = "model.layers.{i}.self_attn"
    lightning = {f"layers.{{i}}.mixer.{ours}": f"{at}.{name}" for ours, name in names.items()}
    return {**COMMON, **lightning, **sparse_block(c.intermediate_size)}


INERT = {
    "block_size": Size,  # of how Hugging Face computes
    "postnorm": Literal[True],  # residuals are normed
    "shared_intermediate_size": Literal[0] | tuple[Literal[0], ...],
    "shared_moe_mode": str,  # of experts that are not there
}
ARCH = Arch(name="minimax", config=Config, build=build, weights=weights, tidy=tidy, inert=INERT)
