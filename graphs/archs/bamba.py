"""Bamba: Mamba-2 in all layers but those listed, whose attention rotates half of each head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import Arch, ConfigError, Count, Size
from lmcast.graphs.families.mamba import Hybrid, mamba_weights, unlimited
from lmcast.graphs.weights.bind import COMMON

HALF = 0.5  # of a head rotates, whatever partial_rotary_factor beside rope_parameters says


@dataclass(frozen=True, kw_only=True)
class Config(Hybrid):
    intermediate_size: Size
    attn_layer_indices: tuple[Count, ...] | None = None
    attn_rotary_emb: Size | None = None  # how many dims of a head rotate, in the released files
    num_key_value_heads: Size | None = 8
    mlp_bias: bool = False
    num_logits_to_keep: int | None = None  # of generation at Hugging Face
    z_loss_coefficient: float | None = None  # of training

    def __post_init__(self) -> None:
        super().__post_init__()
        last = max(self.attn_layer_indices or (0,))
        if last >= self.num_hidden_layers:
            raise ValueError(
                f"attn_layer_indices lists {last}; num_hidden_layers is {self.num_hidden_layers}"
            )


def build(c: Config) -> Decoder:
    dim, positions = c.hidden_size, c.rope()
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
            mixer=c.attention(positions) if attends else c.mamba(),
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
    known = {key: value for key, value in raw.items() if key != "partial_rotary_factor"}
    return rope(unlimited(known), partial=HALF)


ARCH = Arch(name="bamba", config=Config, build=build, weights=WEIGHTS, tidy=tidy)
