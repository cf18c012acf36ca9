"""Llama 4 (text): attention in chunks, in full where positions are missing; routes scale inputs."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention, Positions
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.keeps import All, Chunks
from lmcast.graphs.blocks.norm import RMSNorm, UnitNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope, Temperature, rotate_pairs
from lmcast.graphs.config.layer_types import CHUNKED, ChunkedType, one_each, windows
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import Count, Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON, Table
from lmcast.graphs.weights.experts import either, in_first, per_expert


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size  # of an expert, routed or shared
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: FullRope
    intermediate_size_mlp: Size = 16384
    num_local_experts: Experts = 16
    num_experts_per_tok: Experts
    moe_layers: tuple[Count, ...] | None = None
    interleave_moe_layer_step: Size = 1  # without moe_layers
    num_key_value_heads: Size = 8
    head_dim: Size = 128
    attention_bias: bool = False
    use_qk_norm: bool = True
    no_rope_layers: tuple[Literal[0, 1], ...] | None = None  # 1: the layer has positions
    no_rope_layer_interval: Size = 4  # without no_rope_layers
    layer_types: tuple[ChunkedType, ...] | None = None
    attention_chunk_size: Size | None = 8192
    attn_temperature_tuning: bool = True
    floor_scale: Size = 8192
    attn_scale: float = 0.1
    max_position_embeddings: Size = 131072
    rms_norm_eps: Positive = 1e-5
    hidden_act: moe.ExpertActivation = "silu"
    tie_word_embeddings: bool = False

    def rotates(self) -> tuple[bool, ...]:
        """Return whether each layer has positions; a list may be longer than the model."""
        layers, every = self.num_hidden_layers, self.no_rope_layer_interval
        derived = [(i + 1) % every != 0 for i in range(layers)]
        given = tuple(map(bool, self.no_rope_layers or derived))
        return one_each("no_rope_layers", given[:layers], layers)

    def chunks(self) -> tuple[int | None, ...]:
        """Return the size of the chunks of each layer; those without positions have none."""
        kinds: tuple[str, ...] | None = self.layer_types
        if kinds is None:
            kinds = tuple(("full_attention", CHUNKED)[has] for has in self.rotates())
        return windows(kinds, self.num_hidden_layers, self.attention_chunk_size, CHUNKED)

    def sparse(self) -> tuple[bool, ...]:
        layers, step = range(self.num_hidden_layers), self.interleave_moe_layer_step
        listed = range(step - 1, len(layers), step) if self.moe_layers is None else self.moe_layers
        return tuple(i in listed for i in layers)


def build(c: Config) -> Decoder:
    dim, inner, count = c.hidden_size, c.intermediate_size, c.num_local_experts
    positions = Rope(c.head_dim, c.rope_parameters, c.max_position_embeddings)
    unit = UnitNorm(c.head_dim, c.rms_norm_eps) if c.use_qk_norm else None
    rotated = Positions(positions, rotate_pairs, norm=unit)
    tempered = Temperature(c.attn_scale, c.floor_scale, offset=1)
    unrotated = Positions(None, temperature=tempered if c.attn_temperature_tuning else None)
    projections = Projections(
        dim=dim,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )
    norm = partial(RMSNorm, dim, c.rms_norm_eps)

    def experts() -> moe.MoE:
        router = moe.Router(dim, count, c.num_experts_per_tok, score="sigmoid")
        act = moe.EXPERT_ACTIVATIONS[c.hidden_act]
        routed = moe.Experts(dim, inner, count, activation=act, scale_input=True)
        return moe.MoE(router, routed, GatedMLP(dim, inner, act=c.hidden_act))

    def layer(rotates: bool, chunk: int | None, sparse: bool) -> Layer:
        mixer = Attention(
            projections,
            rope=rotated if rotates else unrotated,
            keeps=Chunks(chunk) if chunk else All(),
        )
        ffn = experts() if sparse else GatedMLP(dim, c.intermediate_size_mlp, act=c.hidden_act)
        return Layer(pre_mixer=norm(), mixer=mixer, pre_ffn=norm(), ffn=ffn)

    embed = nn.Embedding(c.vocab_size, dim)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    layers = list(map(layer, c.rotates(), c.chunks(), c.sparse()))
    return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


def weights(c: Config) -> Table:
    ours, theirs = "layers.{i}.ffn", "model.layers.{i}.feed_forward"
    stacks = in_first(f"{theirs}.experts", c.intermediate_size)
    # As tools unfold them to quantize each expert by itself.
    single = per_expert(f"{theirs}.experts", "gate_proj", "up_proj", "down_proj")
    table = {**COMMON, **either(stacks, single)}
    table[f"{ours}.router"] = f"{theirs}.router"
    for name in ("gate", "up", "down"):
        table[f"{ours}.{name}"] = f"{theirs}.{name}_proj"
        table[f"{ours}.shared.{name}"] = f"{theirs}.shared_expert.{name}_proj"
    return table


INERT = {
    "for_llm_compressor": bool,  # how tensors of experts are named, by which they are found
    "nope_layer_interval": Literal[4],  # what no_rope_layer_interval is by default
}
ARCH = Arch(name="llama4_text", config=Config, build=build, weights=weights, tidy=rope, inert=INERT)
