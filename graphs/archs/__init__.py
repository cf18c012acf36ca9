"""The catalogue of architectures: one module per model_type."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lmcast.graphs.archs.multimodal import Multimodal
from lmcast.graphs.archs.record import Arch
from lmcast.graphs.config.model_classes import require_generator
from lmcast.graphs.config.reading import ConfigError

NAMES = (
    "afmoe",
    "bamba",
    "deepseek_v3",
    "deepseek_v32",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3n",
    "gemma3n_text",
    "glm4_moe",
    "glm_moe_dsa",
    "gpt_oss",
    "granite",
    "granitemoehybrid",
    "grok2",
    "kimi_k2",
    "kimi_k25",
    "kimi_linear",
    "llama",
    "llama4",
    "llama4_text",
    "mimo_v2_flash",
    "minimax",
    "minimax_m1",
    "minimax_m2",
    "minimax_text_01",
    "ministral3",
    "mistral",
    "mistral3",
    "mistral4",
    "nemotron_h",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smollm3",
)

# Names of architectures whose model_type is another, by model_type and architectures[0]. The
# files of Grok 2.5 say "git", which at Hugging Face is another model, without experts.
ALIASES = {("git", "Grok1ForCausalLM"): "grok2"}


def name_of(config: Mapping[str, Any]) -> Any:
    """Return the architecture's name that a config.json asks for, whether or not it is in the
    catalogue."""
    found, classes = config.get("model_type"), config.get("architectures")
    for (model_type, model_class), name in ALIASES.items():
        if found == model_type and isinstance(classes, list) and classes[:1] == [model_class]:
            return name
    return found


def known(config: Mapping[str, Any]) -> str:
    """Return the name of the architecture that a config.json asks for; raises ConfigError for one
    that is not in the catalogue, and for a model that generates no text."""
    require_generator(config)
    name = name_of(config)
    if name not in NAMES:
        said = "there is no model_type" if name is None else f"model_type is {name!r:.80}"
        raise ConfigError(f"config.json: {said}; lmcast defines {', '.join(NAMES)}")
    return str(name)


def get(name: str) -> Arch | Multimodal:
    """Return the architecture of that model_type; KeyError if there is none."""
    if name not in NAMES:
        raise KeyError(name)
    found: Arch | Multimodal = import_module(f"lmcast.graphs.archs.{name}").ARCH
    return found
