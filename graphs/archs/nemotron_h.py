"""Nemotron-H, Nano 2 and 3: one branch a layer, Mamba-2, attention without positions, a
feed-forward or experts; no gates in the last two, and experts may see a latent of each token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks import moe
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, TiedHead
from lmcast.graphs.blocks.ffn import ActivationName, PlainMLP
from lmcast.graphs.blocks.mamba import Mamba
from lmcast.graphs.blocks.norm import WideRMSNorm
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.single_branch import SingleLayer, TokenByToken
from lmcast.graphs.blocks.step import Mixer
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.config.layer_types import one_each
from lmcast.graphs.config.older_spellings import renamed
from lmcast.graphs.config.reading import ConfigError, Experts, Layers, OrAbsent, Positive, Size
from lmcast.graphs.families.mamba import mamba_weights, time_steps, unlimited
from lmcast.graphs.weights.bind import EachExpert, Table
from lmcast.graphs.weights.experts import either
from lmcast.graphs.weights.sources import View

LayerType = Literal["linear_attention", "full_attention", "mlp", "moe"]
PATTERN: dict[str, LayerType] = {
    "M": "linear_attention",
    "*": "full_attention",
    "-": "mlp",
    "E": "moe",
}
OLDER = {
    "layers_block_type": "layer_types",
    "hybrid_override_pattern": "layer_types",
    "attention_head_dim": "head_dim",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_limit": "time_step_limit",
    "mamba_n_groups": "n_groups",
    "mamba_num_groups": "n_groups",
    "mamba_state_dim": "ssm_state_size",
    "num_local_experts": "n_routed_experts",
}


@dataclass(frozen=True, kw_only=True)
class Config:
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
    time_step_limit: OrAbsent[tuple[float, ...]] = None
    n_routed_experts: Experts = 8
    num_experts_per_tok: OrAbsent[Experts] = None  # of layers with experts
    n_group: Experts = 1
    topk_group: Experts = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 1.0
    moe_intermediate_size: Size = 7688
    moe_shared_expert_intermediate_size: Size = 7688
    moe_latent_size: Size | None = None
    layer_norm_epsilon: Positive = 1e-5
    norm_eps: Positive | None = None  # the same again
    rms_norm_eps: Positive | None = None
    # As the code on the hub reads it; transformers' own class uses a head that is stored, and to
    # equal the embedding is asked of that.
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        time_steps(self.time_step_limit)
        kinds: tuple[str, ...] = one_each("layer_types", self.layer_types, self.num_hidden_layers)
        if "moe" in kinds and self.num_experts_per_tok is None:
            raise ValueError("num_experts_per_tok is missing; layers with experts need it")
        if "moe" in kinds and self.mlp_hidden_act != "relu2":
            raise ValueError(f"mlp_hidden_act is {self.mlp_hidden_act!r}; of experts: 'relu2'")
        for name, eps in (("norm_eps", self.norm_eps), ("rms_norm_eps", self.rms_norm_eps)):
            if eps not in (None, self.layer_norm_epsilon):
                raise ValueError(
                    f"{name} is {eps}, but layer_norm_epsilon, which all norms have, is"
                    f" {self.layer_norm_epsilon}"
                )


# In the released files: how training began (time_step_min and the like), how others compute,
# positions that no layer has, predictors of further tokens, which are left out.
_INERT = """
chunk_size expand hidden_act mamba_chunk_size mamba_dt_init_floor mamba_dt_max mamba_dt_min
mamba_expand mamba_proj_bias mamba_ssm_cache_dtype moe_shared_expert_overlap
mtp_hybrid_override_pattern mtp_layers_block_type n_shared_experts num_logits_to_keep
num_nextn_predict_layers num_query_groups partial_rotary_factor rescale_prenorm_residual
residual_in_fp32 rope_parameters rope_scaling rope_theta time_step_floor time_step_max time_step_min
time_step_rank use_mamba_kernels
"""
INERT = {
    **at_any_value(_INERT.split()),
    "attention_bias": Literal[False],
    "scoring_func": Literal["sigmoid"],
    "topk_method": Literal["noaux_tc"],
}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of a raw config to those of the Config; the number of layers follows from
    their list."""
    found = dict(raw)
    if found.get("hybrid_override_pattern") is not None:
        found["hybrid_override_pattern"] = _listed(found["hybrid_override_pattern"])
    found = unlimited(renamed(found, OLDER))
    if found.get("num_hidden_layers") is None and isinstance(found.get("layer_types"), list):
        found["num_hidden_layers"] = len(found["layer_types"])
    return found


def _listed(pattern: object) -> list[LayerType]:
    if not isinstance(pattern, str) or not set(pattern) <= PATTERN.keys():
        letters = ", ".join(f"{letter} ({kind})" for letter, kind in PATTERN.items())
        raise ConfigError(
            f"config.json: hybrid_override_pattern is {pattern!r:.80}; accepted: a string of"
            f" {letters}"
        )
    return [PATTERN[letter] for letter in pattern]


def mamba(c: Config) -> Mamba:
    return Mamba(
        dim=c.hidden_size, heads=c.mamba_num_heads, head_dim=c.mamba_head_dim, groups=c.n_groups,
        state_dim=c.ssm_state_size, taps=c.conv_kernel, eps=c.layer_norm_epsilon,
        time_steps=time_steps(c.time_step_limit), conv_bias=c.use_conv_bias, bias=c.use_bias,
        act=c.mamba_hidden_act,
    )  # fmt: skip


def attention(c: Config) -> Attention:
    dim, heads = c.hidden_size, c.num_attention_heads
    kv_heads = c.num_key_value_heads or heads
    projections = Projections(dim=dim, heads=heads, kv_heads=kv_heads, head_dim=c.head_dim)
    return Attention(projections, rope=None)


def mlp(c: Config, inner: int) -> PlainMLP:
    return PlainMLP(c.hidden_size, inner, act=c.mlp_hidden_act, bias=c.mlp_bias)


def experts(c: Config) -> moe.MoE:
    dim, latent, count = c.hidden_size, c.moe_latent_size, c.n_routed_experts
    assert c.num_experts_per_tok
    return moe.MoE(
        moe.sigmoid_router(
            dim, count, c.num_experts_per_tok, groups=c.n_group,
            kept_groups=c.topk_group, renormalize=c.norm_topk_prob, scale=c.routed_scaling_factor,
        ),
        # Squared, as relu2 says.
        moe.Experts(latent or dim, c.moe_intermediate_size, count, activation="relu", gated=False),
        mlp(c, c.moe_shared_expert_intermediate_size),
        enter=nn.Linear(dim, latent, bias=c.mlp_bias) if latent else None,
        leave=nn.Linear(latent, dim, bias=c.mlp_bias) if latent else None,
    )  # fmt: skip


def build(c: Config) -> Decoder:
    dim = c.hidden_size

    def norm() -> WideRMSNorm:
        return WideRMSNorm(dim, c.layer_norm_epsilon)

    mixers: dict[LayerType, Callable[[], Mixer]] = {
        "linear_attention": lambda: mamba(c),
        "full_attention": lambda: attention(c),
        "mlp": lambda: TokenByToken(mlp(c, c.intermediate_size)),
        "moe": lambda: TokenByToken(experts(c)),
    }
    embed = nn.Embedding(c.vocab_size, dim)
    head = TiedHead(embed) if c.tie_word_embeddings else nn.Linear(dim, c.vocab_size, bias=False)
    return Decoder(
        embed=embed,
        layers=[SingleLayer(norm(), mixers[kind]()) for kind in c.layer_types],
        norm=norm(),
        head=head,
    )


# Our modules and theirs, below the one that holds the trunk.
MIXER = "layers.{i}.mixer"
MODULES = {
    "embed": "embeddings",
    "final.norm": "norm_f",
    "layers.{i}.norm": "layers.{i}.norm",
    **{f"{MIXER}.{x}": f"{MIXER}.{x}_proj" for x in "qkvo"},
    **{f"{MIXER}.ffn.{x}": f"{MIXER}.{x}_proj" for x in ("up", "down")},
    **{f"{MIXER}.ffn.shared.{x}": f"{MIXER}.shared_experts.{x}_proj" for x in ("up", "down")},
    f"{MIXER}.ffn.enter": f"{MIXER}.fc1_latent_proj",
    f"{MIXER}.ffn.leave": f"{MIXER}.fc2_latent_proj",
}


def weights(_: object) -> Table:
    """As on the hub, below `backbone`, or as Hugging Face names its modules, below `model`, where
    experts are stacks."""
    hub, modules = _below("backbone"), _below("model")
    for name in ("up", "down"):
        ours, theirs = f"{MIXER}.ffn.experts.{name}", f"{MIXER}.experts"
        hub[ours] = EachExpert(View(f"backbone.{theirs}.{{e}}.{name}_proj.weight"))
        modules[ours] = View(f"model.{theirs}.{name}_proj")
    # The first is no parameter: it says where the layers are.
    return {"layers.{i}": "backbone.layers.{i}", "final.head": "lm_head", **either(hub, modules)}


def _below(trunk: str) -> dict[str, View | EachExpert]:
    """Return where the parameters of each module come from, but those of experts."""
    router = f"{MIXER}.ffn.router"
    table: dict[str, View | EachExpert] = {
        f"{router}.weight": View(f"{trunk}.{MIXER}.gate.weight"),
        f"{router}.correction": View(f"{trunk}.{MIXER}.gate.e_score_correction_bias"),
    }
    found = {ours: f"{trunk}.{theirs}" for ours, theirs in MODULES.items()}
    for ours, theirs in {**found, **mamba_weights(f"{trunk}.{MIXER}")}.items():
        for leaf in ("", ".weight", ".bias"):  # A_log and the like are parameters themselves
            table[f"{ours}{leaf}"] = View(f"{theirs}{leaf}")
    return table


ARCH = Arch(
    name="nemotron_h",
    config=Config,
    build=build,
    weights=weights,
    tidy=tidy,
    inert=INERT,
    beside=("mtp",),
)
