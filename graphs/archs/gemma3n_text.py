"""Gemma 3n (text): several streams, an input for every layer, keys and values of other layers."""

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.activation_sparsity import SparseMLP
from lmcast.graphs.blocks.altup import AltUp, AltUpLayer, Laurel, Merge, PerLayerInputs, Spread
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, ScaledEmbedding, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName
from lmcast.graphs.blocks.keeps import Lend, windowed
from lmcast.graphs.blocks.kv_sharing import BorrowingAttention
from lmcast.graphs.blocks.norm import PerHead, UnitNorm, WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.blocks.step import Mixer
from lmcast.graphs.config.layer_types import LayerType, full_every, one_each, owners, windows
from lmcast.graphs.config.older_spellings import rope_with_local_base
from lmcast.graphs.config.reading import Count, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import RopeByLayerType
from lmcast.graphs.weights.bind import COMMON, HEAD_NORMS, SANDWICH
from lmcast.plugins.annotations import Range


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size | tuple[Size, ...]
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: RopeByLayerType
    num_key_value_heads: Size = 2
    head_dim: Size = 256
    max_position_embeddings: Size = 32768
    rms_norm_eps: Positive = 1e-6
    hidden_activation: ActivationName = "gelu_pytorch_tanh"
    attention_bias: bool = False
    final_logit_softcapping: Positive = 30.0
    sliding_window: Size = 512
    layer_types: tuple[LayerType, ...] | None = None
    num_kv_shared_layers: Count = 15
    activation_sparsity_pattern: tuple[Annotated[float, Range(0, 1 - 2**-24)], ...] | None = None
    laurel_rank: Size = 64
    altup_num_inputs: Annotated[int, Range(1, 64)] = 4
    altup_active_idx: Count = 0
    altup_correct_scale: bool = True
    hidden_size_per_layer_input: Size = 256
    vocab_size_per_layer_input: Size = 262144
    tie_word_embeddings: bool = True

    def types(self) -> tuple[LayerType, ...]:
        usual = full_every(5, self.num_hidden_layers)
        return usual if self.layer_types is None else self.layer_types

    def sparsity(self) -> tuple[float, ...]:
        layers, given = self.num_hidden_layers, self.activation_sparsity_pattern
        if given is None:
            given = tuple(0.95 if layers > 10 > i else 0.0 for i in range(layers))
        return one_each("activation_sparsity_pattern", given, layers)


def mixers(c: Config) -> list[Mixer]:
    """Return attention for every layer: the last ones borrow from the last owner of their kind."""
    seen = windows(c.types(), c.num_hidden_layers, c.sliding_window)
    owned_by = owners(seen, c.num_kv_shared_layers)
    p = Projections(
        dim=c.hidden_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        qkv_bias=c.attention_bias,
        out_bias=c.attention_bias,
    )
    full, sliding = (
        Rope(c.head_dim, positions, c.max_position_embeddings)
        for positions in (c.rope_parameters.full_attention, c.rope_parameters.sliding_attention)
    )
    lenders = {owner for i, owner in enumerate(owned_by) if owner != i}
    lends = {i: Lend(windowed(seen[i]), p) for i in lenders}

    def norm() -> PerHead:
        return PerHead(WideRMSNorm(c.head_dim, c.rms_norm_eps))

    def mixer(i: int) -> Mixer:
        rope = sliding if seen[i] else full
        if owned_by[i] != i:
            loan = lends[owned_by[i]].loan
            return BorrowingAttention(p, rope=rope, loan=loan, q_norm=norm(), scale=1.0)
        return Attention(
            p,
            rope=rope,
            keeps=lends.get(i, windowed(seen[i])),
            q_norm=norm(),
            k_norm=norm(),
            v_norm=UnitNorm(c.head_dim, c.rms_norm_eps),
            scale=1.0,
        )

    return [mixer(i) for i in range(c.num_hidden_layers)]


def build(c: Config) -> Decoder:
    dim, width, layers = c.hidden_size, c.hidden_size_per_layer_input, c.num_hidden_layers
    act, eps, streams = c.hidden_activation, c.rms_norm_eps, c.altup_num_inputs
    attention = mixers(c)
    sparsity, inner = c.sparsity(), one_each("intermediate_size", c.intermediate_size, layers)
    embed = ScaledEmbedding(c.vocab_size, dim, scale=dim**0.5)
    side = PerLayerInputs(c.vocab_size_per_layer_input, dim, width, layers, eps)
    return Decoder(
        embed=Spread(embed, streams),
        side=side,
        layers=[
            AltUpLayer(
                altup=AltUp(dim, streams, c.altup_active_idx, c.altup_correct_scale, eps),
                laurel=Laurel(dim, c.laurel_rank, eps),
                mixer=attention[i],
                ffn=SparseMLP(dim, inner[i], act=act, sparsity=sparsity[i]),
                own=side.handoffs[i],
                sizes=(dim, width),
                act=act,
                eps=eps,
            )
            for i in range(layers)
        ],
        norm=Merge(streams, dim, eps),
        head=TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False),
        softcap=c.final_logit_softcapping,
    )


SAME = """
altup altup.correction_coefs altup.modality_router altup.prediction_coefs altup.router_norm
laurel.linear_left laurel.linear_right laurel.post_laurel_norm
per_layer_input_gate per_layer_projection post_per_layer_input_norm
"""
WEIGHTS = {
    **COMMON,
    **SANDWICH,
    **{f"layers.{{i}}.{x}": f"model.layers.{{i}}.{x}" for x in SAME.split()},
    **HEAD_NORMS,
    "embed.tokens": "model.embed_tokens",
    "embed.projections.{i}": "model.altup_projections.{i}",
    "side.tokens": "model.embed_tokens_per_layer",
    "side.project": "model.per_layer_model_projection",
    "side.norm.norm": "model.per_layer_projection_norm",
    "final.norm.projections.{i}": "model.altup_unembed_projections.{i}",
    "final.norm.norm": "model.norm",
}
# Files of the hub hold the first three also for layers that use another's, and each the last.
SPARE = ("mixer.k", "mixer.v", "mixer.k_norm.norm", "altup.correct_output_scale")

INERT = {"query_pre_attn_scalar": float}  # stored, and applied by nothing

ARCH = Arch(
    name="gemma3n_text",
    config=Config,
    build=build,
    weights=WEIGHTS,
    tidy=rope_with_local_base,
    inert=INERT,
    spare=SPARE,
)
