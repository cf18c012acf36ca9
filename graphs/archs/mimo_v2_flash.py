"""MiMo-V2-Flash: narrow, scaled values; windowed layers have sinks and twice the key heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, Scaled, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import FFNType, LayerType, full_every, windows, with_experts
from lmcast.graphs.config.older_spellings import renamed, rope_by_layer_type, says, worded
from lmcast.graphs.config.reading import ConfigError, Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import PartialRopeByLayerType
from lmcast.graphs.weights.bind import COMMON, Table
from lmcast.graphs.weights.experts import CORRECTION, ROUTER, routed
from lmcast.graphs.weights.sources import View


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: PartialRopeByLayerType
    n_routed_experts: Experts
    moe_intermediate_size: Size
    num_experts_per_tok: Experts
    n_group: Experts = 1
    topk_group: Experts = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive | None = 1.0
    num_key_value_heads: Size = 4  # of layers without a window
    swa_num_key_value_heads: Size | None = None  # twice as many, if not given
    head_dim: Size = 192
    v_head_dim: Size = 128
    attention_value_scale: Positive | None = 0.707
    attention_bias: bool = False  # of queries, keys and values
    sliding_window: Size = 129
    sliding_window_size: Size | None = None  # without the token itself; goes before the above
    layer_types: tuple[LayerType, ...] | None = None
    mlp_layer_types: tuple[FFNType, ...] | None = None
    max_position_embeddings: Size = 131072
    rms_norm_eps: Positive = 1e-5
    hidden_act: moe.ExpertActivation = "silu"
    tie_word_embeddings: bool = False

    def windows(self) -> tuple[int | None, ...]:
        count, before = self.num_hidden_layers, self.sliding_window_size
        kinds = ("full_attention", *full_every(6, count)[1:])
        window = self.sliding_window if before is None else before + 1
        return windows(kinds if self.layer_types is None else self.layer_types, count, window)

    def sparse(self) -> tuple[bool, ...]:
        return with_experts(self.mlp_layer_types, self.num_hidden_layers, dense=1)


# The released files say what Hugging Face takes for granted.
THETA = {"full_attention": 5e6, "sliding_attention": 1e4}
POSITIONS = {k: {"rope_theta": t, "partial_rotary_factor": 0.334} for k, t in THETA.items()}
OLDER = {"full_attention": "rope_theta", "sliding_attention": "swa_rope_theta"}
NAMES = {"num_local_experts": "n_routed_experts", "layernorm_epsilon": "rms_norm_eps"}
NAMES |= {f"swa_{name}": name for name in ("num_attention_heads", "head_dim", "v_head_dim")}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    out = worded(raw, "hybrid_layer_pattern", "layer_types", tuple(THETA))
    out = renamed(worded(out, "moe_layer_freq", "mlp_layer_types", ("dense", "sparse")), NAMES)
    if out.get("rope_scaling", {}) is None:
        raise ConfigError("config.json: rope_scaling is None; leave it out, or give a value")
    given = out["rope_parameters"] if says(out, "rope_parameters") else POSITIONS
    out = rope_by_layer_type({**out, "rope_parameters": given}, dict.fromkeys(THETA), OLDER)
    for positions in out["rope_parameters"].values():
        if positions.get("rope_type", "default") == "default":
            positions.setdefault("partial_rotary_factor", 0.334)
    return out


def build(c: Config) -> Decoder:
    dim, by_type, longest = c.hidden_size, c.rope_parameters, c.max_position_embeddings
    full = Rope(c.head_dim, by_type.full_attention, longest)
    sliding = Rope(c.head_dim, by_type.sliding_attention, longest)
    kv_heads, swa_kv_heads = c.num_key_value_heads, c.swa_num_key_value_heads
    value_scale = c.attention_value_scale
    norm = partial(RMSNorm, dim, c.rms_norm_eps)

    def ffn(sparse: bool) -> nn.Module:
        if not sparse:
            return GatedMLP(dim, c.intermediate_size, act=c.hidden_act)
        router = moe.sigmoid_router(
            dim, c.n_routed_experts, c.num_experts_per_tok, groups=c.n_group,
            kept_groups=c.topk_group, renormalize=c.norm_topk_prob, scale=c.routed_scaling_factor,
        )  # fmt: skip
        inner, kind = c.moe_intermediate_size, moe.EXPERT_ACTIVATIONS[c.hidden_act]
        experts = moe.Experts(dim, inner, c.n_routed_experts, activation=kind)
        return moe.MoE(router, experts)

    def layer(window: int | None, sparse: bool) -> Layer:
        projections = Projections(
            dim=dim,
            heads=c.num_attention_heads,
            kv_heads=(swa_kv_heads or 2 * kv_heads) if window else kv_heads,
            head_dim=c.head_dim,
            value_dim=c.v_head_dim,
            qkv_bias=c.attention_bias,
        )
        mixer = Attention(
            projections,
            rope=sliding if window else full,
            keeps=windowed(window),
            v_norm=Scaled(nn.Identity(), value_scale) if value_scale else None,
            sinks=window is not None,
        )
        return Layer(pre_mixer=norm(), mixer=mixer, pre_ffn=norm(), ffn=ffn(sparse))

    embed = nn.Embedding(c.vocab_size, dim)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    layers = [layer(*kind) for kind in zip(c.windows(), c.sparse(), strict=True)]
    return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


def weights(c: Config) -> Table:
    at = "model.layers.{i}.self_attn"
    return {
        **COMMON,
        **routed(c.moe_intermediate_size),
        # The released name, and Hugging Face's.
        "layers.{i}.mixer.sink": (View(f"{at}.attention_sink_bias"), View(f"{at}.sinks")),
        **ROUTER,
        **CORRECTION,
    }


INERT = {
    "add_swa_attention_sink_bias": Literal[True],
    "attention_chunk_size": int,
    "scoring_func": Literal["sigmoid"],
    "topk_method": Literal["noaux_tc"],
}
ARCH = Arch(
    name="mimo_v2_flash", config=Config, build=build, weights=weights, tidy=tidy, inert=INERT
)
