"""Ministral 3 (text): Mistral's layers; rotated queries grow with the logarithm of the position."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention, Positions
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope, temperature
from lmcast.graphs.config.layer_types import head_width
from lmcast.graphs.config.older_spellings import rope, says
from lmcast.graphs.config.reading import Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import TEMPERED_INERT, TemperedRope
from lmcast.graphs.weights.bind import COMMON

# What Hugging Face takes where a config says nothing of positions.
POSITIONS = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: TemperedRope
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 262144
    rms_norm_eps: Positive = 1e-5
    hidden_act: ActivationName = "silu"
    sliding_window: Size | None = None
    tie_word_embeddings: bool = False


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = says(raw, "rope_scaling", "rope_parameters")
    return rope(raw if given else {**raw, "rope_parameters": POSITIONS})


def build(c: Config) -> Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads
    head_dim = head_width(c.hidden_size, heads, kv_heads, c.head_dim)
    positions = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)
    tempered = temperature(c.rope_parameters, c.max_position_embeddings)
    projections = Projections(
        dim=c.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )

    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    def layer() -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=Attention(
                projections,
                rope=Positions(positions, temperature=tempered),
                keeps=windowed(c.sliding_window),
            ),
            pre_ffn=norm(),
            ffn=GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer() for _ in range(c.num_hidden_layers)],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


ARCH = Arch(
    name="ministral3",
    config=Config,
    build=build,
    weights=COMMON,
    tidy=tidy,
    inert=TEMPERED_INERT,
)
