"""MiniMax-M1 as its own code spells it, which says what Hugging Face takes for granted."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lmcast.graphs.archs import minimax
from lmcast.graphs.config.older_spellings import renamed, worded


@dataclass(frozen=True, kw_only=True)
class Config(minimax.Config):
    layer_types: tuple[minimax.Kind, ...] = field()  # no default
    postnorm: Literal[True] = field()

    def __post_init__(self) -> None:
        super().__post_init__()
        heads = self.num_attention_heads
        if heads & (heads - 1):
            raise ValueError(
                f"num_attention_heads is {heads}; accepted: a power of two (this spelling decays"
                " others in another way)"
            )


BRANCHES = {"full_attention": "full_attn", "linear_attention": "linear_attn", "mlp": "mlp"}
NAMES = {
    f"layernorm_{old}_{gain}": f"{new}_{gain}_factor"
    for old, new in BRANCHES.items()
    for gain in ("alpha", "beta")
}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    out = worded(raw, "attn_type_list", "layer_types", ("linear_attention", "full_attention"))
    return minimax.tidy(renamed(out, NAMES))


ARCH = replace(minimax.ARCH, name="minimax_m1", config=Config, tidy=tidy)
