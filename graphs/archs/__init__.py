"""The catalogue of architectures: one module per model_type."""

from importlib import import_module

from lmcast.graphs.arch import Arch
from lmcast.graphs.multimodal import Multimodal

NAMES = (
    "gemma2",
    "gemma3",
    "gemma3_text",
    "llama",
    "ministral3",
    "mistral",
    "mistral3",
    "olmo2",
    "olmo3",
    "qwen3",
    "qwen3_moe",
    "smollm3",
)


def get(name: str) -> Arch | Multimodal:
    """Return the architecture of that model_type; KeyError if there is none."""
    if name not in NAMES:
        raise KeyError(name)
    found: Arch | Multimodal = import_module(f"lmcast.graphs.archs.{name}").ARCH
    return found
