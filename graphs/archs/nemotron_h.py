"""Nemotron-H, Nano 2 and 3: one branch a layer, Mamba-2, attention without positions, a
feed-forward or experts; no gates in the last two, and experts may see a latent of each token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.ffn import ActivationName, PlainMLP
from lmcast.graphs.blocks.mamba import Mamba
from lmcast.graphs.blocks.norm import WideRMSNorm
from lmcast.graphs.blocks.single_branch import SingleLayer, TokenByToken
from lmcast.graphs.blocks.step import Mixer
from lmcast.graphs.config.layer_types import one_each
from lmcast.graphs.config.reading import Arch, Experts, Layers, Positive, Size
from lmcast.graphs.families.mamba import time_steps
from lmcast.graphs.families.nemotron import LayerType, tidy, weights
from lmcast.graphs.families.routing import GroupedRouting


@dataclass(frozen=True, kw_only=True)
class Config(GroupedRouting):
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    layer_types: tuple[LayerType, ...]
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    head_dim: Size = 128
    max_position_embeddings: Size = 4096
    intermediate_size: Size = 21504
    mlp_hidden_act: ActivationName = "relu2"
    mlp_bias: bool = False  # also of shared experts and of the ways into latents and back
    mamba_num_heads: Size = 128
    mamba_head_dim: Size = 64
    n_groups: Size = 8
    ssm_state_size: Size = 128
    conv_kernel: Size = 4
    use_conv_bias: bool = True
    use_bias: bool = False  # of the projections around Mamba-2
    mamba_hidden_act: ActivationName = "silu"
    time_step_limit: tuple[float | None, ...] | None = None
    n_routed_experts: Experts = 8
    num_experts_per_tok: Experts = 2
    moe_intermediate_size: Size = 7688
    moe_shared_expert_intermediate_size: Size = 7688
    moe_latent_size: Size | None = None
    layer_norm_epsilon: Positive = 1e-5
    norm_eps: Positive | None = None  # the same again
    rms_norm_eps: Positive | None = None
    attention_bias: Literal[False] = False
    tie_word_embeddings: Literal[False] = False

    def __post_init__(self) -> None:
        kinds: tuple[str, ...] = one_each("layer_types", self.layer_types, self.num_hidden_layers)
        if "moe" in kinds and self.mlp_hidden_act != "relu2":
            raise ValueError(f"mlp_hidden_act is {self.mlp_hidden_act!r}; of experts: 'relu2'")
        for name, eps in (("norm_eps", self.norm_eps), ("rms_norm_eps", self.rms_norm_eps)):
            if eps not in (None, self.layer_norm_epsilon):
                raise ValueError(
                    f"{name} is {eps}, but layer_norm_epsilon, which all norms have, is"
                    f" {self.layer_norm_epsilon}"
                )


def build(c: Config) -> Decoder:
    dim = c.hidden_size

    def norm() -> WideRMSNorm:
        return WideRMSNorm(dim, c.layer_norm_epsilon)

    def mamba() -> Mamba:
        return Mamba(
            dim=dim, heads=c.mamba_num_heads, head_dim=c.mamba_head_dim, groups=c.n_groups,
            state_dim=c.ssm_state_size, taps=c.conv_kernel, eps=c.layer_norm_epsilon,
            time_steps=time_steps(c.time_step_limit), conv_bias=c.use_conv_bias, bias=c.use_bias,
            act=c.mamba_hidden_act,
        )  # fmt: skip

    def attention() -> Attention:
        heads = c.num_attention_heads
        kv_heads = c.num_key_value_heads or heads
        return Attention(dim=dim, heads=heads, kv_heads=kv_heads, head_dim=c.head_dim, rope=None)

    def mlp(inner: int) -> PlainMLP:
        return PlainMLP(dim, inner, act=c.mlp_hidden_act, bias=c.mlp_bias)

    def experts() -> moe.MoE:
        latent, inner, count = c.moe_latent_size, c.moe_intermediate_size, c.n_routed_experts
        return moe.MoE(
            c.router(dim),
            moe.Experts(latent or dim, inner, count, activation="relu", gated=False),  # relu2
            mlp(c.moe_shared_expert_intermediate_size),
            enter=nn.Linear(dim, latent, bias=c.mlp_bias) if latent else None,
            leave=nn.Linear(latent, dim, bias=c.mlp_bias) if latent else None,
        )

    mixers: dict[LayerType, Callable[[], Mixer]] = {
        "linear_attention": mamba,
        "full_attention": attention,
        "mlp": lambda: TokenByToken(mlp(c.intermediate_size)),
        "moe": lambda: TokenByToken(experts()),
    }
    return Decoder(
        embed=nn.Embedding(c.vocab_size, dim),
        layers=[SingleLayer(norm(), mixers[kind]()) for kind in c.layer_types],
        norm=norm(),
        head=nn.Linear(dim, c.vocab_size, bias=False),
    )


ARCH = Arch(
    name="nemotron_h", config=Config, build=build, weights=weights, tidy=tidy, beside=("mtp",)
)
