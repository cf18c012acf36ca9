"""Olmo 3: OLMo 2 with a window in three of four layers, and positions for each kind of layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention, Positions
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope, rotate_wide
from lmcast.graphs.config.layer_types import LayerType, head_width, windows
from lmcast.graphs.config.older_spellings import rope_by_layer_type
from lmcast.graphs.config.reading import ConfigError, Layers, OrAbsent, Positive, Size
from lmcast.graphs.config.rope_parameters import RopeByLayerType
from lmcast.graphs.weights.bind import COMMON, QK_NORMS, SANDWICH


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: RopeByLayerType
    num_key_value_heads: Size | None = None
    head_dim: OrAbsent[Size] = None
    max_position_embeddings: Size = 2048
    rms_norm_eps: Positive = 1e-5
    hidden_act: ActivationName = "silu"
    attention_bias: bool = False
    sliding_window: Size | None = 4096
    layer_types: tuple[LayerType, ...] | None = None
    tie_word_embeddings: bool = False

    def windows(self) -> tuple[int | None, ...]:
        kinds: tuple[str, ...] | None = self.layer_types
        if kinds is None:
            kinds = tuple(
                "sliding_attention" if (i + 1) % 4 else "full_attention"
                for i in range(self.num_hidden_layers)
            )
        return windows(kinds, self.num_hidden_layers, self.sliding_window)


THETA = 5e5


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    if raw.get("rope_theta") not in (None, THETA) and not raw.get("rope_parameters"):
        raise ConfigError(
            f"config.json: rope_theta is {raw['rope_theta']!r:.80}: transformers 4 gave it to all"
            " layers, 5 gives it to the full ones; write rope_parameters with one object each for"
            " full_attention and sliding_attention instead"
        )
    theta = {"full_attention": THETA, "sliding_attention": THETA}
    return rope_by_layer_type(raw, theta, dict.fromkeys(theta, "rope_theta"))


def build(c: Config) -> Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads
    head_dim = head_width(c.hidden_size, heads, kv_heads, c.head_dim)
    full, sliding = (
        Rope(head_dim, p, c.max_position_embeddings)
        for p in (c.rope_parameters.full_attention, c.rope_parameters.sliding_attention)
    )
    projections = Projections(
        dim=c.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )

    def norm(dim: int = c.hidden_size) -> WideRMSNorm:
        return WideRMSNorm(dim, c.rms_norm_eps)

    def layer(window: int | None) -> Layer:
        return Layer(
            mixer=Attention(
                projections,
                rope=Positions(sliding if window else full, rotate_wide),
                keeps=windowed(window),
                q_norm=norm(heads * head_dim),
                k_norm=norm(kv_heads * head_dim),
            ),
            post_mixer=norm(),
            ffn=GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act),
            post_ffn=norm(),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(window) for window in c.windows()],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


WEIGHTS = {
    **COMMON,
    **QK_NORMS,
    **SANDWICH,
}

ARCH = Arch(name="olmo3", config=Config, build=build, weights=WEIGHTS, tidy=tidy)
