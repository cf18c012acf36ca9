"""Trinity: norms around each branch, a gate on attention, positions in windowed layers alone."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead, WideScaledEmbedding
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import PerHead, WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import full_every, head_width, windows
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import Count, Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON, HEAD_NORMS, Table
from lmcast.graphs.weights.experts import SHARED_EXPERTS, routed


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size  # of dense layers
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: FullRope
    moe_intermediate_size: Size
    num_experts: Experts
    num_experts_per_tok: Experts
    num_shared_experts: Size = 2
    num_dense_layers: Count = 1
    route_scale: Positive = 1.0
    num_key_value_heads: Size | None = None
    head_dim: Size = 128
    sliding_window: Size | None = 1024
    layer_types: tuple[Literal["sliding_attention", "full_attention"], ...] | None = None
    global_attn_every_n_layers: Size = 4  # where layer_types does not say more
    max_position_embeddings: Size = 16384
    rms_norm_eps: Positive = 1e-5
    hidden_act: moe.ExpertActivation = "silu"
    attention_bias: bool = False
    mup_enabled: bool = False
    tie_word_embeddings: bool = False

    def windows(self) -> tuple[int | None, ...]:
        kinds: tuple[str, ...] | None = self.layer_types
        if kinds is None:
            kinds = full_every(self.global_attn_every_n_layers, self.num_hidden_layers)
        return windows(kinds, self.num_hidden_layers, self.sliding_window)


def build(c: Config) -> Decoder:
    dim, heads = c.hidden_size, c.num_attention_heads
    kv_heads, act = c.num_key_value_heads or heads, c.hidden_act
    head_dim = head_width(dim, heads, kv_heads, c.head_dim)
    positions = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)
    projections = Projections(
        dim=dim, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        qkv_bias=c.attention_bias, out_bias=c.attention_bias,
    )  # fmt: skip

    def norm(width: int = dim) -> WideRMSNorm:
        return WideRMSNorm(width, c.rms_norm_eps)

    def ffn(sparse: bool) -> nn.Module:
        if not sparse:
            return GatedMLP(dim, c.intermediate_size, act=act)
        inner, experts = c.moe_intermediate_size, c.num_experts
        router = moe.Router(
            dim, experts, c.num_experts_per_tok, score="sigmoid", correction=True, epsilon=1e-20,
            scale=c.route_scale,
        )  # fmt: skip
        routed = moe.Experts(dim, inner, experts, activation=moe.EXPERT_ACTIVATIONS[act])
        return moe.MoE(router, routed, GatedMLP(dim, inner * c.num_shared_experts, act=act))

    def layer(index: int, window: int | None) -> Layer:
        mixer = Attention(
            projections, rope=positions if window else None, keeps=windowed(window),
            q_norm=PerHead(norm(head_dim)), k_norm=PerHead(norm(head_dim)),
            gate=nn.Linear(dim, heads * head_dim, bias=False),
        )  # fmt: skip
        return Layer(
            pre_mixer=norm(), mixer=mixer, post_mixer=norm(),
            pre_ffn=norm(), ffn=ffn(index >= c.num_dense_layers), post_ffn=norm(),
        )  # fmt: skip

    embed = nn.Embedding(c.vocab_size, dim)
    if c.mup_enabled:
        embed = WideScaledEmbedding(c.vocab_size, dim, scale=dim**0.5)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    layers = [layer(i, window) for i, window in enumerate(c.windows())]
    return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


def weights(c: Config) -> Table:
    norms = {"post_mixer": "post_attention", "pre_ffn": "pre_mlp", "post_ffn": "post_mlp"}
    return {
        **COMMON,
        **SHARED_EXPERTS,
        **routed(c.moe_intermediate_size),
        **{f"layers.{{i}}.{x}": f"model.layers.{{i}}.{y}_layernorm" for x, y in norms.items()},
        "layers.{i}.mixer.gate": "model.layers.{i}.self_attn.gate_proj",
        **HEAD_NORMS,
        "layers.{i}.ffn.router": "model.layers.{i}.mlp.router.gate",
        "layers.{i}.ffn.router.correction": "model.layers.{i}.mlp.expert_bias",
    }


ROUTING = {"route_norm": Literal[True], "score_func": Literal["sigmoid"]}
GROUPS = ("n_group", "topk_group", "num_expert_groups", "num_limited_groups")
INERT = {**dict.fromkeys(GROUPS, Literal[1]), **ROUTING}

ARCH = Arch(name="afmoe", config=Config, build=build, weights=weights, tidy=rope, inert=INERT)
