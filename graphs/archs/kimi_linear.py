"""Kimi Linear: Kimi Delta Attention in most layers, latent attention without positions in the rest;
DeepSeek V3's experts (arXiv 2510.26692)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.ffn import GatedMLP
from lmcast.graphs.blocks.kda import KimiDeltaAttention
from lmcast.graphs.blocks.mla import HeadWidths, LatentAttention
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.config.layer_types import FFNType, one_each, with_experts
from lmcast.graphs.config.older_spellings import renamed
from lmcast.graphs.config.reading import ConfigError, Count, Positive, Size
from lmcast.graphs.families import latents
from lmcast.graphs.families.latents import SIGMOID_INERT, UNREAD_HEAD_DIM, LatentKeys, beside
from lmcast.graphs.weights.bind import Table
from lmcast.graphs.weights.experts import either, out_first, per_expert
from lmcast.graphs.weights.sources import View

LayerType = Literal["linear_attention", "full_attention"]
NESTED = "linear_attn_config"
NESTED_NAMES = {
    f"{NESTED}.full_attn_layers": "layer_types",  # once it and the other list are read
    f"{NESTED}.head_dim": "linear_head_dim",
    f"{NESTED}.num_heads": "linear_num_heads",
    f"{NESTED}.short_conv_kernel_size": "linear_conv_kernel_dim",
}
# As on the hub, and Hugging Face's own other name of experts.
NAMES = {
    "model_max_length": "max_position_embeddings",
    "moe_renormalize": "norm_topk_prob",
    "moe_router_activation_func": "scoring_func",
    "num_expert_group": "n_group",
    "num_experts": "n_routed_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_local_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
}


@dataclass(frozen=True, kw_only=True)
class Config(LatentKeys):
    q_lora_rank: Size | None = None
    linear_head_dim: Size = 128
    linear_num_heads: Size = 32
    linear_conv_kernel_dim: Size = 4
    layer_types: tuple[LayerType, ...] | None = None
    mlp_layer_types: tuple[FFNType, ...] | None = None
    first_k_dense_replace: Count = 1  # without mlp_layer_types
    num_nextn_predict_layers: Count = 0
    max_position_embeddings: Size = 1048576
    rms_norm_eps: Positive = 1e-5
    routed_scaling_factor: Positive = 2.446
    # As the code on the hub reads it; transformers' own class uses a head that is stored, and to
    # equal the embedding is asked of that.
    tie_word_embeddings: bool = False

    def kinds(self) -> tuple[LayerType, ...]:
        """Return how each layer attends: as listed, or else as Hugging Face decides."""
        layers = self.num_hidden_layers
        if self.layer_types is not None:
            return one_each("layer_types", self.layer_types, layers)
        full = range(4, layers, 4)
        return tuple("full_attention" if i in full else "linear_attention" for i in range(layers))

    def sparse(self) -> tuple[bool, ...]:
        dense = self.first_k_dense_replace
        return with_experts(self.mlp_layer_types, self.num_hidden_layers, dense)


def lifted(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return `raw` with the keys of its linear_attn_config under Hugging Face's names.

    Raises ConfigError where the two differ.
    """
    out = dict(raw)
    nested = out.pop(NESTED, None)
    if not isinstance(nested, dict | None):
        raise ConfigError(f"config.json: {NESTED} is {nested!r:.80}; accepted: an object or null")
    rest = dict(nested or {})
    lists = [rest.pop(name, None) for name in ("full_attn_layers", "kda_layers")]
    if lists != [None, None]:
        rest["full_attn_layers"] = listed(*lists)
    return renamed(
        {**out, **{f"{NESTED}.{key}": value for key, value in rest.items()}}, NESTED_NAMES
    )


def listed(full: Any, linear: Any) -> list[LayerType]:
    """Return the types of layers of two lists of numbers that count from 1."""
    numbers = [*full, *linear] if isinstance(full, list) and isinstance(linear, list) else []
    counts = all(type(number) is int for number in numbers)
    if not numbers or not counts or sorted(numbers) != list(range(1, len(numbers) + 1)):
        raise ConfigError(
            f"config.json: {NESTED}.full_attn_layers is {full!r:.80} and kda_layers is"
            f" {linear!r:.80}; accepted: lists that together have the number of every layer, from"
            " 1 on, once"
        )
    kinds: list[LayerType] = ["linear_attention"] * len(numbers)
    for number in full:
        kinds[number - 1] = "full_attention"
    return kinds


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return renamed(lifted(raw), NAMES)


def latent_attention(c: Config) -> LatentAttention:
    return LatentAttention(
        dim=c.hidden_size,
        heads=c.num_attention_heads,
        query_rank=c.q_lora_rank,
        rank=c.kv_lora_rank,
        widths=HeadWidths(c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim),
        rope=None,
        bias=c.attention_bias,
    )


def delta_attention(c: Config) -> KimiDeltaAttention:
    return KimiDeltaAttention(
        dim=c.hidden_size,
        heads=c.linear_num_heads,
        width=c.linear_head_dim,
        taps=c.linear_conv_kernel_dim,
        eps=c.rms_norm_eps,
        act=c.hidden_act,
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
    def norm() -> RMSNorm:
        return RMSNorm(c.hidden_size, c.rms_norm_eps)

    def layer(sparse: bool, kind: LayerType) -> Layer:
        return Layer(
            pre_mixer=norm(),
            mixer=latent_attention(c) if kind == "full_attention" else delta_attention(c),
            pre_ffn=norm(),
            ffn=experts(c) if sparse else dense(c),
        )

    embed = nn.Embedding(c.vocab_size, c.hidden_size)
    head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[layer(*each) for each in zip(c.sparse(), c.kinds(), strict=True)],
        norm=norm(),
        head=TiedHead(embed) if c.tie_word_embeddings else head,
    )


def delta_weights(channels: int) -> Table:
    """As on the hub, or as Hugging Face names its modules; `channels` are of queries."""
    ours, theirs = "layers.{i}.mixer", "model.layers.{i}.self_attn"
    modules = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "beta": "b_proj"}
    modules |= {"gate_down": "g_a_proj", "gate_up": "g_b_proj", "norm": "o_norm"}
    decay = {"down.weight": "f_a_proj.weight", "up.weight": "f_b_proj.weight"}
    decay |= {"A_log": "A_log", "dt_bias": "dt_bias"}
    flat, nested = (
        {f"{ours}.decay.{x}": View(f"{module}.{y}") for x, y in decay.items()}
        for module in (theirs, f"{theirs}.forget_gate")
    )
    convs = {
        f"{ours}.{name}_conv": (
            View(f"{theirs}.{name[0]}_conv1d.weight"),
            View(f"{theirs}.conv1d.weight", (slice(i * channels, (i + 1) * channels),)),
        )
        for i, name in enumerate(("query", "key", "value"))
    }
    return {
        **{f"{ours}.{x}": f"{theirs}.{y}" for x, y in modules.items()},
        **either(flat, nested),
        **convs,
    }


def weights(c: Config) -> Table:
    """As on the hub; where save_pretrained writes dense layers; as Hugging Face's modules."""
    ours, theirs = "layers.{i}.ffn", "model.layers.{i}"
    sparse, dense = f"{theirs}.block_sparse_moe", f"{theirs}.mlp"
    feed = {f"{x}.weight": f"{x}_proj.weight" for x in ("gate", "up", "down")}
    routed = {f"shared.{x}": f"shared_experts.{y}" for x, y in feed.items()}
    routed["router.weight"] = "gate.weight"
    routed["router.correction"] = "gate.e_score_correction_bias"

    def within(module: str, names: Mapping[str, str]) -> dict[str, View]:
        return {f"{ours}.{x}": View(f"{module}.{y}") for x, y in names.items()}

    return {
        **latents.weights(c),
        **delta_weights(c.linear_num_heads * c.linear_head_dim),
        **either(within(dense, feed), within(sparse, feed)),
        **either(within(sparse, routed), within(dense, routed)),
        **either(
            per_expert(f"{sparse}.experts", "w1", "w3", "w2"),
            out_first(f"{dense}.experts", c.moe_intermediate_size),
        ),
    }


INERT = {
    **SIGMOID_INERT,
    **UNREAD_HEAD_DIM,
    "mla_use_nope": Literal[True],
    "rope_interleave": bool,  # nothing rotates
    "rope_parameters": None,
    "rope_theta": Positive,
    "use_grouped_topk": Literal[True],
}
ARCH = Arch(
    name="kimi_linear",
    config=Config,
    build=build,
    weights=weights,
    tidy=tidy,
    inert=INERT,
    beside=beside,
)
