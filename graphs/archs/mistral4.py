"""Mistral Small 4 and Mistral Large 3 (text): DeepSeek V3's layers, routed by a softmax; queries
grow with the logarithm of the position."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.mla import HeadWidths, LatentAttention
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.rope import Rope, Temperature, rotate, rotate_interleaved, temperature
from lmcast.graphs.config.older_spellings import says
from lmcast.graphs.config.reading import ConfigError, Count, OrAbsent, Size
from lmcast.graphs.config.rope_parameters import TEMPERED_INERT, TemperedRope
from lmcast.graphs.families import latents
from lmcast.graphs.families.latents import (
    LATENT_INERT,
    LatentKeys,
    beside,
    require_head_dim,
    softmax_scale,
)
from lmcast.graphs.weights.bind import Table
from lmcast.graphs.weights.experts import PER_EXPERT, either, out_first

# What Hugging Face takes where a config says nothing of positions.
POSITIONS = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class Config(LatentKeys):
    rope_parameters: TemperedRope
    rope_interleave: bool = True
    first_k_dense_replace: Count = 0
    num_nextn_predict_layers: Count = 0
    max_position_embeddings: Size = 1048576
    head_dim: OrAbsent[Size] = None
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_head_dim(self.head_dim, self.qk_nope_head_dim + self.qk_rope_head_dim)


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Also without partial_rotary_factor: of the whole head, it says qk_rope_head_dim again."""
    given = says(raw, "rope_scaling", "rope_parameters")
    rotated, rest = raw.get("qk_rope_head_dim", 0), raw.get("qk_nope_head_dim", 0)
    counts = type(rotated) is int and type(rest) is int and rotated > 0 and rest > 0
    share = rotated / (rotated + rest) if counts else 1.0
    out = latents.tidy(raw if given else {**raw, "rope_parameters": POSITIONS}, share)
    partial = out["rope_parameters"].pop("partial_rotary_factor", share)
    if counts and partial != share:  # else the widths are refused by name
        raise ConfigError(
            f"config.json: rope_parameters.partial_rotary_factor is {partial!r:.80}; accepted:"
            f" {share}, the share of qk_rope_head_dim in a head"
        )
    return out


def attention(c: Config, rope: Rope, tempered: Temperature) -> LatentAttention:
    return LatentAttention(
        dim=c.hidden_size,
        heads=c.num_attention_heads,
        query_rank=c.q_lora_rank,
        rank=c.kv_lora_rank,
        widths=HeadWidths(c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim),
        rope=rope,
        bias=c.attention_bias,
        scale=softmax_scale(c.qk_nope_head_dim + c.qk_rope_head_dim, c.rope_parameters),
        temperature=tempered,
        rotation=rotate_interleaved if c.rope_interleave else rotate,
    )


def dense(c: Config) -> GatedMLP:
    return GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act)


def experts(c: Config) -> moe.MoE:
    dim, inner, act = c.hidden_size, c.moe_intermediate_size, c.hidden_act
    return moe.MoE(
        moe.Router(
            dim,
            c.n_routed_experts,
            c.num_experts_per_tok,
            groups=c.n_group,
            kept_groups=c.topk_group,
            epsilon=1e-20 if c.norm_topk_prob else None,
            scale=c.routed_scaling_factor,
        ),
        moe.Experts(dim, inner, c.n_routed_experts, activation=moe.EXPERT_ACTIVATIONS[act]),
        shared=GatedMLP(dim, inner * c.n_shared_experts, act=act),
    )


def build(c: Config) -> Decoder:
    rope = Rope(c.qk_rope_head_dim, c.rope_parameters, c.max_position_embeddings)
    tempered = temperature(c.rope_parameters, c.max_position_embeddings)

    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    def layer(index: int) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=attention(c, rope, tempered),
            pre_ffn=norm(),
            ffn=experts(c) if index >= c.first_k_dense_replace else dense(c),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(i) for i in range(c.num_hidden_layers)],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


def weights(c: Config) -> Table:
    stacks = out_first("model.layers.{i}.mlp.experts", c.moe_intermediate_size)
    return {**latents.weights(c), **either(stacks, PER_EXPERT)}


ARCH = Arch(
    name="mistral4",
    config=Config,
    build=build,
    weights=weights,
    tidy=tidy,
    inert={**LATENT_INERT, **TEMPERED_INERT},
    beside=beside,
)
