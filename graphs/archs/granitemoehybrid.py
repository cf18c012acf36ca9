"""Granite 4.0: Mamba-2 and attention layers, both branches of a layer scaled; with experts or
dense."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, Scaled, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.mamba import Mamba
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import one_each
from lmcast.graphs.config.older_spellings import renamed, rope
from lmcast.graphs.config.reading import Count, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.families.mamba import (
    HYBRID_INERT,
    HybridKeys,
    mamba_weights,
    time_steps,
    unlimited,
)
from lmcast.graphs.weights.bind import COMMON, SCALED_ENDS, Table
from lmcast.graphs.weights.experts import ALL, OURS, either, out_first
from lmcast.graphs.weights.sources import View

LayerType = Literal["linear_attention", "full_attention"]
MAMBA: LayerType = "linear_attention"


@dataclass(frozen=True, kw_only=True)
class Config(HybridKeys):
    rope_parameters: FullRope
    intermediate_size: Size = 11008  # of each expert
    shared_intermediate_size: Size = 1024
    num_local_experts: Count = 8
    num_experts_per_tok: Count
    layer_types: tuple[LayerType, ...] | None = None
    position_embedding_type: Literal["rope", "nope"] | None = None
    max_position_embeddings: Size = 2048
    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0
    rms_norm_eps: Positive = 1e-6
    hidden_act: moe.ExpertActivation = "silu"


def attention(c: Config, rope: Rope | None) -> Attention:
    heads = c.num_attention_heads
    projections = Projections(
        dim=c.hidden_size,
        heads=heads,
        kv_heads=c.num_key_value_heads or heads,
        head_dim=c.head_width(),
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )
    return Attention(projections, rope=rope, scale=c.attention_multiplier)


def mamba(c: Config) -> Mamba:
    return Mamba(
        dim=c.hidden_size,
        heads=c.mamba_n_heads,
        head_dim=c.mamba_expand * c.hidden_size // c.mamba_n_heads,
        groups=c.mamba_n_groups,
        state_dim=c.mamba_d_state,
        taps=c.mamba_d_conv,
        eps=c.rms_norm_eps,
        time_steps=time_steps(c.time_step_limit),
        conv_bias=c.mamba_conv_bias,
        bias=c.mamba_proj_bias,
        act=c.hidden_act,
    )


def feed_forward(c: Config) -> nn.Module:
    dim = c.hidden_size
    dense = GatedMLP(dim, c.shared_intermediate_size, act=c.hidden_act)
    if not c.num_local_experts:
        return dense
    if not c.num_experts_per_tok:
        raise ValueError("num_experts_per_tok is 0; accepted: 0 only without experts")
    # A softmax of the chosen logits: that of all, divided by the sum of the chosen.
    router = moe.Router(dim, c.num_local_experts, c.num_experts_per_tok, epsilon=0.0)
    act = moe.EXPERT_ACTIVATIONS[c.hidden_act]
    experts = moe.Experts(dim, c.intermediate_size, c.num_local_experts, activation=act)
    return moe.MoE(router, experts, shared=dense)


def build(c: Config) -> Decoder:
    dim = c.hidden_size
    positions: Rope | None = None
    if c.position_embedding_type == "rope":
        positions = Rope(c.head_width(), c.rope_parameters, c.max_position_embeddings)

    def norm() -> RMSNorm:
        return RMSNorm(dim, c.rms_norm_eps)

    def branch() -> Scaled:
        return Scaled(nn.Identity(), c.residual_multiplier)

    def layer(kind: str) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=mamba(c) if kind == MAMBA else attention(c, positions),
            post_mixer=branch(),
            pre_ffn=norm(),
            ffn=feed_forward(c),
            post_ffn=branch(),
        )

    embed = nn.Embedding(c.vocab_size, dim)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    given = (MAMBA,) * c.num_hidden_layers if c.layer_types is None else c.layer_types
    kinds: tuple[str, ...] = one_each("layer_types", given, c.num_hidden_layers)
    return Decoder(
        embed=Scaled(embed, c.embedding_multiplier),
        layers=[layer(kind) for kind in kinds],
        norm=norm(),
        head=Scaled(head, 1 / c.logits_scaling),
    )


def weights(c: Config) -> Table:
    layer, ffn = "model.layers.{i}", "layers.{i}.ffn" + (".shared" if c.num_local_experts else "")
    shared, experts = f"{layer}.shared_mlp", f"{layer}.block_sparse_moe"
    both, inner = f"{experts}.input_linear.weight", c.intermediate_size
    stacked: dict[str, View] = {
        f"{OURS}.gate": View(both, (ALL, slice(0, inner))),
        f"{OURS}.up": View(both, (ALL, slice(inner, None))),
        f"{OURS}.down": View(f"{experts}.output_linear.weight"),
        "layers.{i}.ffn.router.weight": View(f"{experts}.router.layer.weight"),
    }
    # As Hugging Face 5 holds them.
    renewed = out_first(f"{experts}.experts", inner)
    renewed["layers.{i}.ffn.router.weight"] = View(f"{experts}.router.weight")
    width, gate_up = c.shared_intermediate_size, f"{shared}.input_linear.weight"
    return {
        **COMMON,
        **SCALED_ENDS,
        **mamba_weights(f"{layer}.mamba"),
        **either(stacked, renewed),
        f"{ffn}.gate.weight": View(gate_up, (slice(0, width),)),
        f"{ffn}.up.weight": View(gate_up, (slice(width, None),)),
        f"{ffn}.down": f"{shared}.output_linear",
    }


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return rope(unlimited(renamed(raw, {"layers_block_type": "layer_types"})))


INERT = {
    **HYBRID_INERT,
    "init_method": str,
    "normalization_function": Literal["rmsnorm"],
}
ARCH = Arch(
    name="granitemoehybrid", config=Config, build=build, weights=weights, tidy=tidy, inert=INERT
)
