"""What a config.json says of latent attention, and a decoder with it, in the families that follow
DeepSeek V3."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.mla import LatentAttention
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.rope import Rope, rotate, rotate_interleaved
from lmcast.graphs.blocks.step import Mixer
from lmcast.graphs.config.layer_types import further_predictors
from lmcast.graphs.config.older_spellings import renamed, rope
from lmcast.graphs.config.reading import Count, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope, RopeParameters
from lmcast.graphs.families.routing import Routing
from lmcast.graphs.weights.bind import COMMON, PER_EXPERT, SHARED_EXPERTS, Table
from lmcast.graphs.weights.experts import ALL, either, out_first
from lmcast.graphs.weights.sources import View


@dataclass(frozen=True, kw_only=True)
class Latents(Routing):
    """The keys under DeepSeek V3's names, for a Config to take over."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size  # of dense layers
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: FullRope | None
    q_lora_rank: Size | None
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    qk_head_dim: Size | None = None
    num_key_value_heads: Size | None = None
    n_shared_experts: Size = 1
    first_k_dense_replace: Count = 3
    num_nextn_predict_layers: Count = 1  # stored behind the others, and left out
    max_position_embeddings: Size = 4096
    rms_norm_eps: Positive = 1e-6
    attention_bias: bool = False  # of the latents and the output
    rope_interleave: bool = True
    tie_word_embeddings: bool = False
    moe_layer_freq: Literal[1] = 1

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if kv_heads not in (None, heads):
            raise ValueError(
                f"num_key_value_heads is {kv_heads}; accepted: num_attention_heads, {heads}, as"
                " every head makes its own keys and values of the latents"
            )
        whole = self.qk_nope_head_dim + self.qk_rope_head_dim
        if self.qk_head_dim not in (None, whole):
            raise ValueError(
                f"qk_head_dim is {self.qk_head_dim}, but qk_nope_head_dim and qk_rope_head_dim"
                f" make it {whole}"
            )

    def rope(self) -> Rope | None:
        """Return what rotates queries and keys, None without rope_parameters."""
        if self.rope_parameters is None:
            return None
        return Rope(self.qk_rope_head_dim, self.rope_parameters, self.max_position_embeddings)

    def attention(self, rope: Rope | None, **more: Any) -> LatentAttention:
        """Return the attention of one layer; `more` are further arguments of LatentAttention."""
        return LatentAttention(
            dim=self.hidden_size,
            heads=self.num_attention_heads,
            query_rank=self.q_lora_rank,
            rank=self.kv_lora_rank,
            head_dim=self.qk_nope_head_dim,
            rope_dim=self.qk_rope_head_dim,
            value_dim=self.v_head_dim,
            rope=rope,
            bias=self.attention_bias,
            scale=softmax_scale(
                self.qk_nope_head_dim + self.qk_rope_head_dim, self.rope_parameters
            ),
            rotation=rotate_interleaved if self.rope_interleave else rotate,
            **more,
        )

    def decoder(self, mixers: Sequence[Mixer], sparse: Sequence[bool]) -> Decoder:
        """Return the model with these mixers, and experts in the layers that are `sparse`."""
        dim, act = self.hidden_size, self.hidden_act

        def norm() -> RMSNorm:
            return RMSNorm(dim, self.rms_norm_eps)

        def ffn(sparse: bool) -> nn.Module:
            if not sparse:
                return GatedMLP(dim, self.intermediate_size, act=act)
            inner = self.moe_intermediate_size * self.n_shared_experts
            return self.experts(dim, GatedMLP(dim, inner, act=act))

        layers = [
            Layer(pre_mixer=norm(), mixer=mixer, pre_ffn=norm(), ffn=ffn(has))
            for mixer, has in zip(mixers, sparse, strict=True)
        ]
        embed = nn.Embedding(self.vocab_size, dim)
        tied = self.tie_word_embeddings
        head = TiedHead(embed) if tied else nn.Linear(dim, self.vocab_size, bias=False)
        return Decoder(embed=embed, layers=layers, norm=norm(), head=head)


def softmax_scale(width: int, p: RopeParameters | None) -> float:
    """Return `width ** -0.5`, times the square of YaRN's factor if mscale_all_dim is given."""
    if p is None or not p.mscale_all_dim:
        return width**-0.5
    if p.factor is None:
        raise ValueError(
            f"rope_parameters.factor is missing; mscale_all_dim, {p.mscale_all_dim}, needs it"
        )
    factor = 0.1 * p.mscale_all_dim * math.log(p.factor) + 1.0 if p.factor > 1 else 1.0
    return width**-0.5 * factor * factor


OLDER = {
    "num_local_experts": "n_routed_experts",
    "num_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}


def tidy(raw: Mapping[str, Any], partial: float = 1.0) -> dict[str, Any]:
    """Return a raw config in the spelling of Latents, without head_dim: what rotates is
    qk_rope_head_dim, and files say all kinds of things there. partial as in legacy.rope."""
    known = {key: value for key, value in raw.items() if key != "head_dim"}
    return rope(renamed(known, OLDER), partial=partial)


def beside(c: Latents, tensors: Collection[str]) -> tuple[str, ...]:
    return further_predictors(c.num_hidden_layers, c.num_nextn_predict_layers, tensors)


def weights(c: Latents) -> Table:
    ours, theirs = "layers.{i}.mixer", "model.layers.{i}.self_attn"
    width, heads = c.qk_nope_head_dim, c.num_attention_heads

    def ups(part: slice) -> View:  # the rows of each head: those of its keys, then of its values
        return View(f"{theirs}.kv_b_proj.weight", (ALL, part), runs=heads)

    return {
        **COMMON,
        **SHARED_EXPERTS,
        **either(PER_EXPERT, out_first("model.layers.{i}.mlp.experts", c.moe_intermediate_size)),
        "layers.{i}.ffn.router": "model.layers.{i}.mlp.gate",
        "layers.{i}.ffn.router.correction": "model.layers.{i}.mlp.gate.e_score_correction_bias",
        f"{ours}.q_a": f"{theirs}.q_a_proj",
        f"{ours}.q_norm": f"{theirs}.q_a_layernorm",
        f"{ours}.q": f"{theirs}.q_proj" if c.q_lora_rank is None else f"{theirs}.q_b_proj",
        f"{ours}.kv_a": f"{theirs}.kv_a_proj_with_mqa",
        f"{ours}.kv_norm": f"{theirs}.kv_a_layernorm",
        f"{ours}.key_up": ups(slice(0, width)),
        f"{ours}.value_up": ups(slice(width, None)),
        f"{ours}.indexer.q": f"{theirs}.indexer.wq_b",
        f"{ours}.indexer.k": f"{theirs}.indexer.wk",
        f"{ours}.indexer.k_norm": f"{theirs}.indexer.k_norm",
        f"{ours}.indexer.weight": f"{theirs}.indexer.weights_proj.weight",
    }
