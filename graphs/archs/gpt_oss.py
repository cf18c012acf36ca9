"""gpt-oss: experts everywhere, a sink in every head, a window in every other layer, biases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import LayerType, head_width, windows
from lmcast.graphs.config.older_spellings import renamed, rope, says
from lmcast.graphs.config.reading import Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON
from lmcast.graphs.weights.experts import alternating

# What Hugging Face takes where a config says nothing of positions.
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
POSITIONS = {**YARN, "truncate": False, "original_max_position_embeddings": 4096}


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size  # of one expert
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: FullRope
    num_local_experts: Experts
    num_experts_per_tok: Experts
    num_key_value_heads: Size | None = 8
    head_dim: Size = 64
    sliding_window: Size | None = 128
    layer_types: tuple[LayerType, ...] | None = None
    max_position_embeddings: Size = 131072
    rms_norm_eps: Positive = 1e-5
    swiglu_alpha: Positive = 1.702
    swiglu_limit: Positive = 7.0
    attention_bias: bool = True
    tie_word_embeddings: bool = False

    def windows(self) -> tuple[int | None, ...]:
        kinds: tuple[str, ...] | None = self.layer_types
        if kinds is None:
            both = ("sliding_attention", "full_attention")
            kinds = tuple(both[i % 2] for i in range(self.num_hidden_layers))
        return windows(kinds, self.num_hidden_layers, self.sliding_window)


NAMES = {"experts_per_token": "num_experts_per_tok", "num_experts": "num_local_experts"}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = says(raw, "rope_scaling", "rope_parameters")
    out = renamed(raw, NAMES)
    return rope(out if given else {**out, "rope_parameters": POSITIONS})


def build(c: Config) -> Decoder:
    dim, heads = c.hidden_size, c.num_attention_heads
    kv_heads = c.num_key_value_heads or heads
    head_dim = head_width(dim, heads, kv_heads, c.head_dim)
    positions = Rope(head_dim, c.rope_parameters, c.max_position_embeddings)
    projections = Projections(
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )

    def norm() -> WideRMSNorm:
        return WideRMSNorm(dim, c.rms_norm_eps)

    def layer(window: int | None) -> Layer:
        # A softmax of the chosen logits: that of all, divided by the sum of the chosen.
        router = moe.Router(dim, c.num_local_experts, c.num_experts_per_tok, bias=True, epsilon=0.0)
        experts = moe.Experts(
            dim,
            c.intermediate_size,
            c.num_local_experts,
            activation="clipped_swish",
            alpha=c.swiglu_alpha,
            limit=c.swiglu_limit,
            bias=True,
        )
        attention = Attention(projections, rope=positions, keeps=windowed(window), sinks=True)
        ffn = moe.MoE(router, experts)
        return Layer(pre_mixer=norm(), mixer=attention, pre_ffn=norm(), ffn=ffn)

    embed = nn.Embedding(c.vocab_size, dim)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    layers = [layer(window) for window in c.windows()]
    return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


WEIGHTS = {
    **COMMON,
    **alternating("model.layers.{i}.mlp.experts"),
    "layers.{i}.mixer.sink": "model.layers.{i}.self_attn.sinks",
    "layers.{i}.ffn.router": "model.layers.{i}.mlp.router",
}

INERT = {
    "hidden_act": Literal["silu"],  # as swiglu_alpha and swiglu_limit change it
    "initial_context_length": int,
}
ARCH = Arch(name="gpt_oss", config=Config, build=build, weights=WEIGHTS, tidy=tidy, inert=INERT)
