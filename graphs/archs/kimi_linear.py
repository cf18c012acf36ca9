"""Kimi Linear: Kimi Delta Attention in most layers, latent attention without positions in the rest;
DeepSeek V3's experts (arXiv 2510.26692)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.kda import KimiDeltaAttention
from lmcast.graphs.blocks.step import Mixer
from lmcast.graphs.config.layer_types import FFNType, one_each, with_experts
from lmcast.graphs.config.older_spellings import renamed
from lmcast.graphs.config.reading import Arch, Count, Positive, Size
from lmcast.graphs.families import kimi_delta, latents
from lmcast.graphs.families.kimi_delta import LayerType
from lmcast.graphs.families.latents import Latents, beside
from lmcast.graphs.families.routing import GroupedRouting
from lmcast.graphs.weights.bind import Table, per_expert
from lmcast.graphs.weights.experts import either, out_first
from lmcast.graphs.weights.sources import View

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
class Config(Latents, GroupedRouting):
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
    routed_scaling_factor: Positive | None = 2.446
    rope_parameters: None = None
    rope_theta: Positive | None = None  # in the released files, read by nothing
    tie_word_embeddings: Literal[False] = False  # Hugging Face's class ties nothing
    mla_use_nope: Literal[True] = True
    use_grouped_topk: Literal[True] = True

    def kinds(self) -> tuple[LayerType, ...]:
        """Return how each layer attends: as listed, or else as Hugging Face decides."""
        layers = self.num_hidden_layers
        if self.layer_types is not None:
            return one_each("layer_types", self.layer_types, layers)
        full = range(4, layers, 4)
        return tuple("full_attention" if i in full else "linear_attention" for i in range(layers))


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Also without head_dim, which concerns nothing here."""
    return renamed(kimi_delta.lifted({k: v for k, v in raw.items() if k != "head_dim"}), NAMES)


def build(c: Config) -> Decoder:
    def mixer(kind: LayerType) -> Mixer:
        if kind == "full_attention":
            return c.attention(c.rope())
        return KimiDeltaAttention(
            dim=c.hidden_size,
            heads=c.linear_num_heads,
            width=c.linear_head_dim,
            taps=c.linear_conv_kernel_dim,
            eps=c.rms_norm_eps,
            act=c.hidden_act,
        )

    sparse = with_experts(c.mlp_layer_types, c.num_hidden_layers, c.first_k_dense_replace)
    return c.decoder([mixer(kind) for kind in c.kinds()], sparse)


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
        **kimi_delta.tensors(c.linear_num_heads * c.linear_head_dim),
        **either(within(dense, feed), within(sparse, feed)),
        **either(within(sparse, routed), within(dense, routed)),
        **either(
            per_expert(f"{sparse}.experts", "w1", "w3", "w2"),
            out_first(f"{dense}.experts", c.moe_intermediate_size),
        ),
    }


ARCH = Arch(
    name="kimi_linear", config=Config, build=build, weights=weights, tidy=tidy, beside=beside
)
