"""Gemma 3 from 4B on: the text model of gemma3_text beside a vision tower."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lmcast.graphs.archs import gemma3_text
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.config.older_spellings import rope_with_local_base
from lmcast.graphs.config.reading import ConfigError
from lmcast.graphs.towers import siglip

DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    cap = raw.get("final_logit_softcapping")
    if cap is not None:
        raise ConfigError(
            f"config.json: final_logit_softcapping is {cap!r:.80}; accepted: null, for Hugging Face"
            " applies it to a gemma3_text of its own only"
        )
    return rope_with_local_base(raw)


ARCH = Multimodal(
    name="gemma3",
    texts={"gemma3_text": Text(replace(gemma3_text.ARCH, tidy=tidy), DEFAULTS)},
    inert=at_any_value((*siglip.TOKENS, *siglip.TOWER.keys)),
    beside=siglip.TOWER.modules,
    tied=True,
    tower=siglip.TOWER,
)
