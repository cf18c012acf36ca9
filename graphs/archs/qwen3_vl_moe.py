"""Qwen3-VL with experts: the layers of Qwen3 MoE, the tower of Qwen3-VL."""

from dataclasses import dataclass, replace
from typing import Literal

from lmcast.graphs.archs import qwen3_moe, qwen3_vl
from lmcast.graphs.archs.multimodal import Text
from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.config.reading import Count, Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import WholeMRope
from lmcast.graphs.weights.bind import COMMON, HEAD_NORMS, Table
from lmcast.graphs.weights.experts import PER_EXPERT, ROUTER, either, in_first, out_first


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: WholeMRope
    num_experts: Experts = 60
    num_experts_per_tok: Experts = 4
    intermediate_size: Size = 5632
    moe_intermediate_size: Size = 1408
    num_key_value_heads: Size | None = 16
    head_dim: Size | None = None
    norm_topk_prob: Literal[True] = True
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[Count, ...] | None = None
    max_position_embeddings: Size = 128000
    rms_norm_eps: Positive = 1e-6
    hidden_act: moe.ExpertActivation = "silu"
    attention_bias: bool = False
    tie_word_embeddings: bool = False

    use_sliding_window, sliding_window = False, None  # no keys: all layers see everything

    def is_sparse(self, layer: int) -> bool:
        dense = self.mlp_only_layers or ()
        return layer not in dense and (layer + 1) % self.decoder_sparse_step == 0


def weights(c: Config) -> Table:
    """Files of the hub have stacks that Hugging Face's modules have transposed: shapes tell."""
    theirs, inner = "model.layers.{i}.mlp.experts", c.moe_intermediate_size
    experts = either(out_first(theirs, inner), in_first(theirs, inner), PER_EXPERT)
    return {**COMMON, **experts, **HEAD_NORMS, **ROUTER}


DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
TEXT = Arch(
    name="qwen3_vl_moe_text",
    config=Config,
    build=qwen3_moe.build,
    weights=weights,
    tidy=qwen3_moe.tidy,
)

ARCH = replace(
    qwen3_vl.ARCH,
    name="qwen3_vl_moe",
    texts={"qwen3_vl_moe_text": Text(TEXT, DEFAULTS, theta=500000.0)},
)
