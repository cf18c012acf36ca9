"""Bamba: Mamba-2 in all layers but those listed, whose attention rotates half of each head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.mamba import Mamba
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import ConfigError, Count, Size
from lmcast.graphs.config.rope_parameters import RopeParameters
from lmcast.graphs.families.mamba import (
    HYBRID_INERT,
    HybridKeys,
    mamba_weights,
    time_steps,
    unlimited,
)
from lmcast.graphs.weights.bind import COMMON

HALF = 0.5  # of a head rotates, whatever partial_rotary_factor beside rope_parameters says


@dataclass(frozen=True, kw_only=True)
class Config(HybridKeys):
    rope_parameters: RopeParameters
    intermediate_size: Size
    attn_layer_indices: tuple[Count, ...] | None = None
    attn_rotary_emb: Size | None = None  # how many dims of a head rotate, in the released files
    num_key_value_heads: Size | None = 8
    mlp_bias: bool = False
    hidden_act: ActivationName = "silu"

    def __post_init__(self) -> None:
        super().__post_init__()
        last = max(self.attn_layer_indices or (0,))
        if last >= self.num_hidden_layers:
            raise ValueError(
                f"attn_layer_indices lists {last}; num_hidden_layers is {self.num_hidden_layers}"
            )


def attention(c: Config, rope: Rope) -> Attention:
    heads = c.num_attention_heads
    projections = Projections(
        dim=c.hidden_size,
        heads=heads,
        kv_heads=c.num_key_value_heads or heads,
        head_dim=c.head_width(),
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )
    return Attention(projections, rope=rope)


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


def build(c: Config) -> Decoder:
    dim = c.hidden_size
    positions = Rope(c.head_width(), c.rope_parameters, c.max_position_embeddings)
    if c.attn_rotary_emb not in (None, positions.dim):
        raise ValueError(
            f"attn_rotary_emb is {c.attn_rotary_emb}, but rope_parameters make it {positions.dim}"
        )

    def norm() -> RMSNorm:
        return RMSNorm(dim, c.rms_norm_eps)

    def layer(index: int) -> Layer:
        attends = index in (c.attn_layer_indices or ())
        return Layer(
            pre_mixer=norm(),
            mixer=attention(c, positions) if attends else mamba(c),
            pre_ffn=norm(),
            ffn=GatedMLP(dim, c.intermediate_size, act=c.hidden_act, bias=c.mlp_bias),
        )

    embed = nn.Embedding(c.vocab_size, dim)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    layers = [layer(i) for i in range(c.num_hidden_layers)]
    return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


WEIGHTS = {
    **COMMON,
    **mamba_weights("model.layers.{i}.mamba"),
    "final.norm": "model.final_layernorm",
    "layers.{i}.pre_ffn": "model.layers.{i}.pre_ff_layernorm",
    **{f"layers.{{i}}.ffn.{x}": f"model.layers.{{i}}.feed_forward.{x}_proj"
       for x in ("gate", "up", "down")},
}  # fmt: skip


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    factor = raw.get("partial_rotary_factor", HALF)
    if factor not in (None, HALF):
        raise ConfigError(f"config.json: partial_rotary_factor is {factor!r:.80}; accepted: {HALF}")
    for key in ("layer_types", "layers_block_type"):  # which Hugging Face lets nobody set
        if key in raw:
            raise ConfigError(f"config.json: {key} is {raw[key]!r:.80}; leave it out")
    known = {key: value for key, value in raw.items() if key != "partial_rotary_factor"}
    return rope(unlimited(known), partial=HALF)


INERT = {
    **HYBRID_INERT,
    "num_logits_to_keep": int,  # of generation at Hugging Face
    "z_loss_coefficient": float,  # of training
}
ARCH = Arch(name="bamba", config=Config, build=build, weights=WEIGHTS, tidy=tidy, inert=INERT)
