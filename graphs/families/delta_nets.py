"""What Qwen3-Next and Qwen3.5 share: config keys and weight tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmcast.graphs.config.inert import Inert
from lmcast.graphs.config.layer_types import one_each
from lmcast.graphs.config.older_spellings import renamed, rope
from lmcast.graphs.config.reading import Count, Experts, Layers, Positive, Size
from lmcast.graphs.weights.bind import COMMON, HEAD_NORMS, Entry
from lmcast.graphs.weights.experts import ROUTER, routed

LinearType = Literal["linear_attention", "full_attention"]
BESIDE = ("mtp",)  # what predicts further tokens: left out


@dataclass(frozen=True, kw_only=True)
class DeltaKeys:
    """Config keys of the whole family; a Config inherits these fields."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
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
    attention_bias: bool = False
    tie_word_embeddings: bool = False

    def linear(self) -> tuple[bool, ...]:
        """Return whether each layer is a Gated DeltaNet."""
        layers = self.num_hidden_layers
        if self.layer_types is None:
            return tuple((i + 1) % self.full_attention_interval != 0 for i in range(layers))
        kinds: tuple[str, ...] = one_each("layer_types", self.layer_types, layers)
        return tuple(kind == "linear_attention" for kind in kinds)


@dataclass(frozen=True, kw_only=True)
class SharedExpertKeys:
    """Config keys of the members with experts, one of which is shared by all tokens and gated."""

    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512
    num_experts: Experts
    num_experts_per_tok: Experts


QWEN35_INERT: Inert = {
    "attn_output_gate": Literal[True],
    "output_gate_type": Literal["silu", "swish"],  # of the norms of Gated DeltaNets
    "mamba_ssm_dtype": Literal["float32"],  # of their states
    "mtp_num_hidden_layers": Count,  # stored as BESIDE
    "mtp_use_dedicated_embeddings": bool,
}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return rope(renamed(raw, {"num_local_experts": "num_experts"}), partial=0.25)


# Ours -> theirs, of one layer.
MIXERS = {
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
    **HEAD_NORMS,
    **{f"layers.{{i}}.mixer.{ours}": f"model.layers.{{i}}.{to}" for ours, to in MIXERS.items()},
}


def sparse_weights(c: SharedExpertKeys) -> dict[str, Entry]:
    ours, theirs = "layers.{i}.ffn.shared", "model.layers.{i}.mlp"
    names = ("gate", "up", "down")
    return {
        **WEIGHTS,
        **ROUTER,
        **routed(c.moe_intermediate_size),
        **{f"{ours}.inner.{x}": f"{theirs}.shared_expert.{x}_proj" for x in names},
        f"{ours}.gate": f"{theirs}.shared_expert_gate",
    }
