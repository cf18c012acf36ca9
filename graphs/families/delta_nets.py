"""What a config.json says of Gated DeltaNets among layers of gated attention, and a decoder with
both, in Qwen3-Next and Qwen3.5."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer, TiedHead
from lmcast.graphs.blocks.delta import GatedDeltaNet, GroupedInputs, Inputs
from lmcast.graphs.blocks.ffn import ActivationName, GatedMLP
from lmcast.graphs.blocks.norm import PerHead, WideRMSNorm
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.blocks.step import Mixer
from lmcast.graphs.config.layer_types import head_width, one_each
from lmcast.graphs.config.older_spellings import renamed, rope
from lmcast.graphs.config.reading import Count, Experts, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import RopeParameters
from lmcast.graphs.weights.bind import COMMON, PER_EXPERT, Entry, Table
from lmcast.graphs.weights.experts import either, out_first

LinearType = Literal["linear_attention", "full_attention"]
BESIDE = ("mtp",)  # what predicts further tokens: left out


@dataclass(frozen=True, kw_only=True)
class MRope(RopeParameters):
    """Also with how pairs divide among the positions in time, height and width (M-RoPE), which are
    the same number wherever there is only text."""

    mrope_section: tuple[Count, ...] | None = None
    mrope_interleaved: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mrope_section is not None and len(self.mrope_section) != 3:
            raise ValueError(f"mrope_section has {len(self.mrope_section)} entries; accepted: 3")


@dataclass(frozen=True, kw_only=True)
class DeltaNets:
    """The keys that all of the families have, for a Config to take over."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    rope_parameters: RopeParameters
    num_key_value_heads: Size = 2
    head_dim: Size = 256
    linear_conv_kernel_dim: Size = 4
    linear_key_head_dim: Size = 128
    linear_value_head_dim: Size = 128
    linear_num_key_heads: Size = 16
    linear_num_value_heads: Size = 32
    layer_types: tuple[LinearType, ...] | None = None
    full_attention_interval: Size = 4  # where layer_types does not say more
    max_position_embeddings: Size = 32768
    rms_norm_eps: Positive = 1e-6
    hidden_act: ActivationName = "silu"
    attention_bias: bool = False
    tie_word_embeddings: bool = False

    def linear(self) -> tuple[bool, ...]:
        """Return whether each layer is a Gated DeltaNet."""
        layers = self.num_hidden_layers
        if self.layer_types is None:
            return tuple((i + 1) % self.full_attention_interval != 0 for i in range(layers))
        kinds: tuple[str, ...] = one_each("layer_types", self.layer_types, layers)
        return tuple(kind == "linear_attention" for kind in kinds)

    def norm(self, width: int) -> WideRMSNorm:
        return WideRMSNorm(width, self.rms_norm_eps, offset=1.0)

    def dense(self, inner: int) -> GatedMLP:
        return GatedMLP(self.hidden_size, inner, act=self.hidden_act)

    def decoder(
        self, inputs: type[Inputs] | type[GroupedInputs], ffn: Callable[[int], nn.Module]
    ) -> Decoder:
        """Return the model; `ffn` makes what comes behind the mixer of the layer of a number."""
        dim, heads, kv_heads = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        head_width(dim, heads, kv_heads, self.head_dim)
        positions = Rope(self.head_dim, self.rope_parameters, self.max_position_embeddings)

        def mixer(linear: bool) -> Mixer:
            if not linear:
                return Attention(
                    dim=dim, heads=heads, kv_heads=kv_heads, head_dim=self.head_dim, rope=positions,
                    qkv_bias=self.attention_bias, out_bias=self.attention_bias, gate="query",
                    q_norm=PerHead(self.norm(self.head_dim)),
                    k_norm=PerHead(self.norm(self.head_dim)),
                )  # fmt: skip
            return GatedDeltaNet(
                dim=dim, heads=self.linear_num_value_heads, groups=self.linear_num_key_heads,
                key_dim=self.linear_key_head_dim, value_dim=self.linear_value_head_dim,
                taps=self.linear_conv_kernel_dim, eps=self.rms_norm_eps, inputs=inputs,
                act=self.hidden_act,
            )  # fmt: skip

        layers = [
            Layer(
                pre_mixer=self.norm(dim), mixer=mixer(kind), pre_ffn=self.norm(dim), ffn=ffn(i)
            )
            for i, kind in enumerate(self.linear())
        ]  # fmt: skip
        embed = nn.Embedding(self.vocab_size, dim)
        tied = self.tie_word_embeddings
        head = TiedHead(embed) if tied else nn.Linear(dim, self.vocab_size, bias=False)
        return Decoder(embed=embed, layers=layers, norm=self.norm(dim), head=head)


@dataclass(frozen=True, kw_only=True)
class SparseDeltaNets(DeltaNets):
    """Also with experts, and one that all tokens share through a gate."""

    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512
    num_experts: Experts
    num_experts_per_tok: Experts
    norm_topk_prob: bool = True
    hidden_act: moe.ExpertActivation = "silu"

    def experts(self) -> moe.MoE:
        dim, experts = self.hidden_size, self.num_experts
        epsilon = 0.0 if self.norm_topk_prob else None
        act = moe.EXPERT_ACTIVATIONS[self.hidden_act]
        return moe.MoE(
            moe.Router(dim, experts, self.num_experts_per_tok, epsilon=epsilon),
            moe.Experts(dim, self.moe_intermediate_size, experts, activation=act),
            moe.GatedShared(dim, self.dense(self.shared_expert_intermediate_size)),
        )


@dataclass(frozen=True, kw_only=True)
class Qwen35(DeltaNets):
    """The keys that files of Qwen3.5 have besides."""

    rope_parameters: MRope
    attn_output_gate: Literal[True] = True
    output_gate_type: Literal["silu", "swish"] = "silu"  # of the norms of Gated DeltaNets
    mamba_ssm_dtype: Literal["float32"] = "float32"  # of their states
    mtp_num_hidden_layers: Count = 1  # stored as BESIDE
    mtp_use_dedicated_embeddings: bool = False


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return rope(renamed(raw, {"num_local_experts": "num_experts"}), partial=0.25)


# Ours -> theirs, of one layer.
MIXERS = {
    "q_norm.norm": "self_attn.q_norm",
    "k_norm.norm": "self_attn.k_norm",
    "inputs.qkv_gate": "linear_attn.in_proj_qkvz",
    "inputs.beta_dt": "linear_attn.in_proj_ba",
    "inputs.qkv": "linear_attn.in_proj_qkv",
    "inputs.gate": "linear_attn.in_proj_z",
    "inputs.beta": "linear_attn.in_proj_b",
    "inputs.dt": "linear_attn.in_proj_a",
    "conv": "linear_attn.conv1d",
    "A_log": "linear_attn.A_log",
    "dt_bias": "linear_attn.dt_bias",
    "norm.norm": "linear_attn.norm",
    "output": "linear_attn.out_proj",
}
WEIGHTS: dict[str, Entry] = {
    **COMMON,
    **{f"layers.{{i}}.mixer.{ours}": f"model.layers.{{i}}.{to}" for ours, to in MIXERS.items()},
}


def sparse_weights(c: SparseDeltaNets) -> Table:
    ours, theirs = "layers.{i}.ffn", "model.layers.{i}.mlp"
    shared: dict[str, Entry] = {
        f"{ours}.shared.inner.{x}": f"{theirs}.shared_expert.{x}_proj"
        for x in ("gate", "up", "down")
    }
    return {
        **WEIGHTS,
        **shared,
        **either(PER_EXPERT, out_first(f"{theirs}.experts", c.moe_intermediate_size)),
        f"{ours}.router": f"{theirs}.gate",
        f"{ours}.shared.gate": f"{theirs}.shared_expert_gate",
    }
