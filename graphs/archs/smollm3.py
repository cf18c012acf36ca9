"""SmolLM3: Llama's layers, but every fourth has no positions at all (NoPE)."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import LayerType, head_width, windows
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import Layers, OrAbsent, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: FullRope
    num_key_value_heads: Size | None = 4
    head_dim: OrAbsent[Size] = None
    max_position_embeddings: Size = 32768
    rms_norm_eps: Positive = 1e-6
    hidden_act: ActivationName = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    no_rope_layers: tuple[Literal[0, 1], ...] | None = None  # 1: the layer has positions
    no_rope_layer_interval: Size = 4  # without no_rope_layers
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    layer_types: tuple[LayerType, ...] | None = None
    tie_word_embeddings: bool = True

    def rotates(self) -> tuple[bool, ...]:
        """Return whether each layer has positions; a list may be longer than the model."""
        layers, given = self.num_hidden_layers, self.no_rope_layers
        if given is None:
            return tuple((i + 1) % self.no_rope_layer_interval != 0 for i in range(layers))
        if len(given) < layers:
            raise ValueError(f"no_rope_layers has {len(given)} entries for {layers} layers")
        return tuple(bool(g) for g in given[:layers])

    def windows(self) -> tuple[int | None, ...]:
        """Where a window is used, it is for the layers without positions."""
        kinds: tuple[str, ...] | None = self.layer_types
        if kinds is None:
            slides = self.use_sliding_window and self.sliding_window is not None
            kinds = tuple(
                "sliding_attention" if slides and not has else "full_attention"
                for has in self.rotates()
            )
        return windows(kinds, self.num_hidden_layers, self.sliding_window)


def build(c: Config) -> Decoder:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads
    head_dim = head_width(c.hidden_size, heads, kv_heads, c.head_dim)
    positions = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)
    projections = Projections(
        dim=c.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )

    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    def layer(rotates: bool, window: int | None) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=Attention(
                projections,
                rope=positions if rotates else None,
                keeps=windowed(window),
            ),
            pre_ffn=norm(),
            ffn=GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act, bias=c.mlp_bias),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(*kind) for kind in zip(c.rotates(), c.windows(), strict=True)],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


INERT = {"max_window_layers": int}

ARCH = Arch(name="smollm3", config=Config, build=build, weights=COMMON, tidy=rope, inert=INERT)
