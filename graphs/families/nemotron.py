"""How Nemotron-H spells its config.json and its tensors."""

from collections.abc import Mapping
from typing import Any, Literal

from lmcast.graphs.config.older_spellings import renamed
from lmcast.graphs.config.reading import ConfigError
from lmcast.graphs.families.mamba import mamba_weights, unlimited
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
OLDER_TYPES: dict[str, LayerType] = {"mamba": "linear_attention", "attention": "full_attention"}
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
# In the released files, and read by nothing: how training began (time_step_min and the like), how
# others compute, positions that no layer has, predictors of further tokens, which are left out.
_UNREAD = """
chunk_size expand hidden_act mamba_chunk_size mamba_dt_init_floor mamba_dt_max mamba_dt_min
mamba_expand mamba_proj_bias mamba_ssm_cache_dtype moe_shared_expert_overlap
mtp_hybrid_override_pattern mtp_layers_block_type n_shared_experts num_logits_to_keep
num_nextn_predict_layers num_query_groups partial_rotary_factor rescale_prenorm_residual
residual_in_fp32 rope_parameters rope_scaling rope_theta time_step_floor time_step_max time_step_min
time_step_rank use_mamba_kernels
"""
UNREAD = frozenset(_UNREAD.split())


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a raw config in the spelling of the Config; the list of layers says how many."""
    found = {key: value for key, value in raw.items() if key not in UNREAD}
    for key in ("layers_block_type", "layer_types"):
        if isinstance(found.get(key), list):
            found[key] = [OLDER_TYPES.get(str(kind), kind) for kind in found[key]]
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
