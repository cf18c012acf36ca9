"""MiniMax-M1 as its own code spells it, which says what Hugging Face takes for granted."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lmcast.graphs.archs import minimax
from lmcast.graphs.config.older_spellings import renamed, worded
from lmcast.graphs.config.reading import ConfigError

BRANCHES = {"full_attention": "full_attn", "linear_attention": "linear_attn", "mlp": "mlp"}
NAMES = {
    f"layernorm_{old}_{gain}": f"{new}_{gain}_factor"
    for old, new in BRANCHES.items()
    for gain in ("alpha", "beta")
}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of a raw config to those of minimax, and add the defaults that it states
    there."""
    out = worded(raw, "attn_type_list", "layer_types", ("linear_attention", "full_attention"))
    for key in ("layer_types", "postnorm"):
        if out.get(key) is None:
            raise ConfigError(f"config.json: {key} is missing; this architecture needs it")
    heads = out.get("num_attention_heads")
    if type(heads) is int and heads > 0 and heads & (heads - 1):
        raise ConfigError(
            f"config.json: num_attention_heads is {heads}; accepted: a power of two (this spelling"
            " decays others in another way)"
        )
    return minimax.tidy(renamed(out, NAMES))


ARCH = replace(minimax.ARCH, name="minimax_m1", tidy=tidy)
