"""Grok 2.5: every layer adds experts and a dense feed-forward; scores and logits are capped.

No Hugging Face class defines it: this follows SGLang's models/grok.py and attention kernels, which
xAI names as the way to run it.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, Scaled, Softcap
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.norm import WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import LogTemperature, Rope
from lmcast.graphs.config.reading import Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.weights.bind import COMMON, SCALED_ENDS, Table
from lmcast.graphs.weights.experts import whole_or_parts
from lmcast.plugins.annotations import Range

RANKS = 8  # of tensor parallelism, in the files of the hub: parts of every expert matrix


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    moe_intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size
    num_local_experts: Experts
    num_experts_per_tok: Experts
    max_position_embeddings: Size
    rms_norm_eps: Positive
    embedding_multiplier_scale: Positive
    output_multiplier_scale: Positive
    rope_theta: Annotated[float, Range(1, 1e30)]  # of which the model takes the whole part
    head_dim: Size = 128
    residual_moe: bool = False
    attn_logit_softcapping: float = 30.0  # none at 0 and below
    router_logit_softcapping: Positive = 30.0
    final_logit_softcapping: Positive | None = None
    attn_temperature_len: int = -1  # none at 0 and below


def feed_forward(c: Config) -> nn.Module:
    # By tanh, as SGLang's modules and xAI's JAX code say; SGLang's CUDA kernels take the exact one.
    dim, experts, cap = c.hidden_size, c.num_local_experts, Softcap(c.router_logit_softcapping)
    router = moe.Router(dim, experts, c.num_experts_per_tok, softcap=cap, in_fp32=True)
    dense = GatedMLP(dim, c.intermediate_size, act="gelu_pytorch_tanh")
    routed = moe.Experts(dim, c.moe_intermediate_size, experts, activation="gelu_tanh")
    both = moe.MoE(router, routed, shared=dense if c.residual_moe else None)
    return Scaled(both, 0.5**0.5) if c.residual_moe else both


def build(c: Config) -> Decoder:
    rope = Rope(c.head_dim, FullRope(rope_theta=int(c.rope_theta)), c.max_position_embeddings)
    temperature = LogTemperature(c.attn_temperature_len) if c.attn_temperature_len > 0 else None
    projections = Projections(
        dim=c.hidden_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
    )

    def norm() -> WideRMSNorm:
        return WideRMSNorm(c.hidden_size, c.rms_norm_eps)

    def layer() -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=Attention(
                projections,
                rope=rope,
                softcap=max(c.attn_logit_softcapping, 0.0),
                temperature=temperature,
            ),
            post_mixer=norm(),
            pre_ffn=norm(),
            ffn=feed_forward(c),
            post_ffn=norm(),
        )

    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=Scaled(nn.Embedding(c.vocab_size, c.hidden_size), c.embedding_multiplier_scale),
        layers=[layer() for _ in range(c.num_hidden_layers)],
        norm=norm(),
        head=Scaled(head, c.output_multiplier_scale),
        softcap=c.final_logit_softcapping,
    )


def weights(c: Config) -> Table:
    layer, ffn = "model.layers.{i}", "layers.{i}.ffn" + (".inner" if c.residual_moe else "")
    dense = {f"{ffn}.shared.{x}": f"{layer}.mlp.{x}_proj" for x in ("gate", "up", "down")}
    theirs = {"pre_mixer": "pre_attn", "post_mixer": "post_attn"}
    theirs |= {"pre_ffn": "pre_moe", "post_ffn": "post_moe"}
    return {
        **COMMON,
        **SCALED_ENDS,
        **{f"layers.{{i}}.{ours}": f"{layer}.{name}_norm" for ours, name in theirs.items()},
        f"{ffn}.router": f"{layer}.block_sparse_moe.gate",
        **whole_or_parts(f"{ffn}.experts", f"{layer}.block_sparse_moe.experts", RANKS),
        **(dense if c.residual_moe else {}),
    }


STRETCH = ("scaling_factor", "extrapolation_factor", "attn_factor", "beta_fast", "beta_slow")
INERT = {
    "global_attn_every_n": Literal[1],
    "sliding_window_size": Literal[-1],
    "rope_type": Literal["original"],  # not stretched, so nothing reads the others:
    "original_max_position_embeddings": int,
    **dict.fromkeys(STRETCH, float),
}
ARCH = Arch(name="grok2", config=Config, build=build, weights=weights, inert=INERT)
