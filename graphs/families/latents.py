"""What architectures after DeepSeek V3 share: config keys and a weight table."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmcast.graphs.blocks.moe import ExpertActivation
from lmcast.graphs.config.inert import Inert
from lmcast.graphs.config.layer_types import further_predictors
from lmcast.graphs.config.older_spellings import renamed, rope
from lmcast.graphs.config.reading import Count, Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import RopeParameters
from lmcast.graphs.weights.bind import COMMON, Table
from lmcast.graphs.weights.experts import ALL, CORRECTION, ROUTER, SHARED_EXPERTS, routed
from lmcast.graphs.weights.sources import View


@dataclass(frozen=True, kw_only=True)
class LatentKeys:
    """Config keys under DeepSeek V3's names; a Config inherits these fields."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size  # of dense layers
    num_hidden_layers: Layers
    num_attention_heads: Size
    q_lora_rank: Size | None
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    qk_head_dim: Size | None = None
    num_key_value_heads: Size | None
    n_routed_experts: Experts
    n_shared_experts: Size = 1
    moe_intermediate_size: Size
    num_experts_per_tok: Experts
    n_group: Experts = 1
    topk_group: Experts = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 1.0
    first_k_dense_replace: Count = 3
    num_nextn_predict_layers: Count = 1  # stored behind the others, and left out
    max_position_embeddings: Size = 4096
    rms_norm_eps: Positive = 1e-6
    hidden_act: ExpertActivation = "silu"
    attention_bias: bool = False  # of the latents and the output

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


def require_head_dim(head_dim: int | None, width: int) -> None:
    """Raise ValueError where head_dim, by which some classes of Hugging Face rotate if it is there,
    is not `width`, what they take without it."""
    if head_dim not in (None, width):
        raise ValueError(
            f"head_dim is {head_dim}, but {width} by qk_rope_head_dim and qk_nope_head_dim; leave"
            " it out"
        )


LATENT_INERT: Inert = {"moe_layer_freq": Literal[1]}
# Of the other members: their classes overwrite it, or nothing rotates, and files say all kinds of
# things there.
UNREAD_HEAD_DIM: Inert = {"head_dim": Any}
# Also of those whose scores are sigmoids, with a correction that selects (arXiv 2412.19437).
SIGMOID_INERT: Inert = {
    **LATENT_INERT,
    "moe_router_dtype": Literal["float32"],
    "scoring_func": Literal["sigmoid"],
    "topk_method": Literal["noaux_tc"],
}


def softmax_scale(width: int, p: RopeParameters) -> float:
    """Return `width ** -0.5`, times the square of YaRN's factor if mscale_all_dim is given."""
    if not p.mscale_all_dim:
        return width**-0.5
    assert p.factor  # of yarn, which alone has mscale_all_dim
    factor = 0.1 * p.mscale_all_dim * math.log(p.factor) + 1.0 if p.factor > 1 else 1.0
    return width**-0.5 * factor * factor


OLDER = {
    "num_local_experts": "n_routed_experts",
    "num_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}


def tidy(raw: Mapping[str, Any], partial: float = 1.0) -> dict[str, Any]:
    """Rename older keys to those of LatentKeys; partial as in older_spellings.rope."""
    return rope(renamed(raw, OLDER), partial=partial)


def beside(c: LatentKeys, tensors: Collection[str]) -> tuple[str, ...]:
    return further_predictors(c.num_hidden_layers, c.num_nextn_predict_layers, tensors)


def weights(c: LatentKeys) -> Table:
    ours, theirs = "layers.{i}.mixer", "model.layers.{i}.self_attn"
    width, heads = c.qk_nope_head_dim, c.num_attention_heads

    def ups(part: slice) -> View:  # the rows of each head: those of its keys, then of its values
        return View(f"{theirs}.kv_b_proj.weight", (ALL, part), runs=heads)

    return {
        **COMMON,
        **SHARED_EXPERTS,
        **routed(c.moe_intermediate_size),
        **ROUTER,
        **CORRECTION,
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
