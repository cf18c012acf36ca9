"""GLM-5, 5.1 and 5.2: DeepSeek V3.2's layers, whose indexers rotate pairs; some attend where an
earlier layer does (arXiv 2603.12201)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.mla import HeadWidths, Indexer, LatentAttention, choice
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.rope import Rope, rotate_interleaved
from lmcast.graphs.blocks.step import Handoff
from lmcast.graphs.config.layer_types import FFNType, one_each, with_experts
from lmcast.graphs.config.older_spellings import renamed
from lmcast.graphs.config.reading import ConfigError, Positive, Size
from lmcast.graphs.config.rope_parameters import FullRope
from lmcast.graphs.families import latents
from lmcast.graphs.families.latents import (
    SIGMOID_INERT,
    UNREAD_HEAD_DIM,
    LatentKeys,
    beside,
    softmax_scale,
    weights,
)

IndexerType = Literal["full", "shared"]
LETTERS = {"F": "full", "S": "shared"}


@dataclass(frozen=True, kw_only=True)
class Config(LatentKeys):
    rope_parameters: FullRope
    q_lora_rank: Size
    num_key_value_heads: Size
    index_topk: Size = 2048
    index_head_dim: Size = 128
    index_n_heads: Size = 32
    indexer_types: tuple[IndexerType, ...] | None = None
    index_topk_freq: Size = 1  # without indexer_types
    index_skip_topk_offset: int = 2
    routed_scaling_factor: Positive = 2.5
    mlp_layer_types: tuple[FFNType, ...] | None = None
    layer_types: tuple[Literal["indexed_attention"], ...] | None = None
    max_position_embeddings: Size = 202752
    rms_norm_eps: Positive = 1e-5
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_each("layer_types", self.layer_types or "indexed_attention", self.num_hidden_layers)

    def kinds(self) -> tuple[IndexerType, ...]:
        """Return whether each layer has an indexer, or attends where the last one did that has."""
        layers, offset = self.num_hidden_layers, self.index_skip_topk_offset
        if self.indexer_types is not None:
            return one_each("indexer_types", self.indexer_types, layers)
        since = (max(i - offset + 1, 0) for i in range(layers))
        return tuple("shared" if n % self.index_topk_freq else "full" for n in since)

    def sparse(self) -> tuple[bool, ...]:
        dense = self.first_k_dense_replace
        return with_experts(self.mlp_layer_types, self.num_hidden_layers, dense)


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Also with index_topk_pattern, a word or a list, as indexer_types."""
    raw = {k: v for k, v in raw.items() if (k, v) != ("index_topk_pattern", None)}  # as released
    pattern = raw.get("index_topk_pattern")
    if isinstance(pattern, str):
        if not set(pattern) <= LETTERS.keys():
            raise ConfigError(
                f"config.json: index_topk_pattern is {pattern!r:.80}; accepted: a word of F (full)"
                " and S (shared)"
            )
        raw = {**raw, "index_topk_pattern": [LETTERS[letter] for letter in pattern]}
    return latents.tidy(renamed(raw, {"index_topk_pattern": "indexer_types"}))


def choices(kinds: Sequence[IndexerType]) -> list[Handoff | None]:
    """Return where each layer leaves or takes the chosen positions, None where none are shared."""
    if kinds[0] == "shared":
        raise ValueError(
            "indexer_types[0] is 'shared'; accepted: 'full', as no layer before it has an indexer"
        )
    found: list[Handoff | None] = []
    for kind, following in zip(kinds, (*kinds[1:], "full"), strict=True):
        if kind == "full":
            found.append(choice() if following == "shared" else None)
        else:
            found.append(found[-1])
    return found


def indexer(c: Config) -> Indexer:
    return Indexer(
        dim=c.hidden_size,
        query_rank=c.q_lora_rank,
        heads=c.index_n_heads,
        width=c.index_head_dim,
        top_k=c.index_topk,
        rotation=rotate_interleaved,
    )


def attention(c: Config, rope: Rope, kind: IndexerType, chosen: Handoff | None) -> LatentAttention:
    return LatentAttention(
        dim=c.hidden_size,
        heads=c.num_attention_heads,
        query_rank=c.q_lora_rank,
        rank=c.kv_lora_rank,
        widths=HeadWidths(c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim),
        rope=rope,
        bias=c.attention_bias,
        scale=softmax_scale(c.qk_nope_head_dim + c.qk_rope_head_dim, c.rope_parameters),
        rotation=rotate_interleaved,
        indexer=indexer(c) if kind == "full" else None,
        chosen=chosen,
    )


def dense(c: Config) -> GatedMLP:
    return GatedMLP(c.hidden_size, c.intermediate_size, act=c.hidden_act)


def experts(c: Config) -> moe.MoE:
    dim, inner, act = c.hidden_size, c.moe_intermediate_size, c.hidden_act
    return moe.MoE(
        moe.sigmoid_router(
            dim,
            c.n_routed_experts,
            c.num_experts_per_tok,
            groups=c.n_group,
            kept_groups=c.topk_group,
            renormalize=c.norm_topk_prob,
            scale=c.routed_scaling_factor,
        ),
        moe.Experts(dim, inner, c.n_routed_experts, activation=moe.EXPERT_ACTIVATIONS[act]),
        shared=GatedMLP(dim, inner * c.n_shared_experts, act=act),
    )


def build(c: Config) -> Decoder:
    rope = Rope(c.qk_rope_head_dim, c.rope_parameters, c.max_position_embeddings)
    kinds = c.kinds()

    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    def layer(kind: IndexerType, chosen: Handoff | None, sparse: bool) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=attention(c, rope, kind, chosen),
            pre_ffn=norm(),
            ffn=experts(c) if sparse else dense(c),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(*each) for each in zip(kinds, choices(kinds), c.sparse(), strict=True)],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


INERT = {
    **SIGMOID_INERT,
    **UNREAD_HEAD_DIM,
    "mlp_bias": Literal[False],
    "rope_interleave": Literal[True],
    "indexer_rope_interleave": Literal[True],
    "index_share_for_mtp_iteration": bool,  # of predictors of further tokens, which are left out
}
ARCH = Arch(
    name="glm_moe_dsa",
    config=Config,
    build=build,
    weights=weights,
    tidy=tidy,
    inert=INERT,
    beside=beside,
)
