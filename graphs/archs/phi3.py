"""Phi-3, 3.5 and 4: Llama's layers with fused projections, LongRoPE and heads that rotate in part.

With LongRoPE a call that ends beyond the original length rotates by the long factors; a row that
grows beyond it is computed anew (`Definition.anew_beyond`), as by Hugging Face's `generate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.keeps import windowed
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.layer_types import head_width
from lmcast.graphs.config.older_spellings import rope
from lmcast.graphs.config.reading import Layers, OrAbsent, Positive, Size
from lmcast.graphs.config.rope_parameters import LENGTH, LongRope
from lmcast.graphs.weights.bind import COMMON, Table
from lmcast.graphs.weights.sources import View


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: LongRope
    num_key_value_heads: Size | None = None
    head_dim: OrAbsent[Size] = None
    max_position_embeddings: Size = 4096
    rms_norm_eps: Positive = 1e-5
    hidden_act: ActivationName = "silu"
    sliding_window: Size | None = None
    tie_word_embeddings: bool = False


def projections(c: Config) -> Projections:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads
    return Projections(
        dim=c.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_width(c.hidden_size, heads, kv_heads, c.head_dim),
    )


def build(c: Config) -> Decoder:
    p = projections(c)
    positions = Rope(p.head_dim, c.rope_parameters, c.max_position_embeddings)

    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    def layer() -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=Attention(p, rope=positions, keeps=windowed(c.sliding_window)),
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


def weights(c: Config) -> Table:
    p, mixer, ffn = projections(c), "layers.{i}.mixer", "layers.{i}.ffn"
    queries, keys = p.heads * p.head_dim, p.kv_heads * p.head_dim
    qkv = "model.layers.{i}.self_attn.qkv_proj.weight"
    gate_up = "model.layers.{i}.mlp.gate_up_proj.weight"
    return {
        **COMMON,
        f"{mixer}.q.weight": View(qkv, (slice(0, queries),)),
        f"{mixer}.k.weight": View(qkv, (slice(queries, queries + keys),)),
        f"{mixer}.v.weight": View(qkv, (slice(queries + keys, None),)),
        f"{ffn}.gate.weight": View(gate_up, (slice(0, c.intermediate_size),)),
        f"{ffn}.up.weight": View(gate_up, (slice(c.intermediate_size, None),)),
    }


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    # To Hugging Face it or its default hides that of rope_scaling; `rope` refuses a difference.
    out = {LENGTH: 4096, **raw}
    for key in ("rope_scaling", "rope_parameters"):
        given = out.get(key)
        if isinstance(given, Mapping):
            types = {k: "longrope" for k in ("type", "rope_type") if given.get(k) == "su"}
            out[key] = {**given, **types}
    return rope(out)


ARCH = Arch(
    name="phi3",
    config=Config,
    build=build,
    weights=weights,
    tidy=tidy,
    inert={"full_attn_mod": Literal[1], "interpolate_factor": Literal[1]},
)
