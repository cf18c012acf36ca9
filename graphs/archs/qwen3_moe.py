"""Qwen3 MoE: the layers of Qwen3, with experts in all of them but those listed as dense."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import PerHead, RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import head_width
from lmcast.graphs.config.older_spellings import renamed, rope
from lmcast.graphs.config.reading import Count, Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON, HEAD_NORMS, Table
from lmcast.graphs.weights.experts import ROUTER, routed


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: FullRope
    moe_intermediate_size: Size
    num_experts: Experts
    num_experts_per_tok: Experts
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = None
    norm_topk_prob: bool = False
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[Count, ...] | None = None
    max_position_embeddings: Size = 32768
    rms_norm_eps: Positive = 1e-6
    hidden_act: moe.ExpertActivation = "silu"
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096  # of all layers; unread where use_sliding_window is false
    tie_word_embeddings: bool = False

    def is_sparse(self, layer: int) -> bool:
        dense = self.mlp_only_layers or ()
        return layer not in dense and (layer + 1) % self.decoder_sparse_step == 0


def build(c: Config) -> Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads
    head_dim = head_width(c.hidden_size, heads, kv_heads, c.head_dim)
    positions = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)
    projections = Projections(
        dim=c.hidden_size, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        qkv_bias=c.attention_bias, out_bias=c.attention_bias,
    )  # fmt: skip

    def norm(dim: int = c.hidden_size) -> RMSNorm:
        return RMSNorm(dim, c.rms_norm_eps)

    def ffn(sparse: bool) -> nn.Module:
        if not sparse:
            return GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act)
        return moe.MoE(
            moe.Router(
                c.hidden_size,
                c.num_experts,
                c.num_experts_per_tok,
                epsilon=0.0 if c.norm_topk_prob else None,
            ),
            moe.Experts(
                c.hidden_size,
                c.moe_intermediate_size,
                c.num_experts,
                activation=moe.EXPERT_ACTIVATIONS[c.hidden_act],
            ),
        )

    def layer(index: int) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=Attention(
                projections,
                rope=positions,
                keeps=windowed(c.sliding_window if c.use_sliding_window else None),
                q_norm=PerHead(norm(head_dim)),
                k_norm=PerHead(norm(head_dim)),
            ),
            pre_ffn=norm(),
            ffn=ffn(c.is_sparse(index)),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    untied = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    head = TiedHead(embed) if c.tie_word_embeddings else untied
    layers = [layer(i) for i in range(c.num_hidden_layers)]
    return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


def weights(c: Config) -> Table:
    return {
        **COMMON,
        **routed(c.moe_intermediate_size),
        **HEAD_NORMS,
        **ROUTER,
    }


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return rope(renamed(raw, {"num_local_experts": "num_experts"}))


INERT = {
    "max_window_layers": int,
    "shared_expert_intermediate_size": Literal[0],  # no expert is shared
    "use_qk_norm": Literal[True],
}
ARCH = Arch(name="qwen3_moe", config=Config, build=build, weights=weights, tidy=tidy, inert=INERT)
