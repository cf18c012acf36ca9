"""The catalogue of architectures: one module per model_type."""

from importlib import import_module

from lmcast.graphs.arch import Arch

NAMES = (
    "gemma2",
    "gemma3_text",
    "llama",
    "ministral3",
    "mistral",
    "olmo2",
    "olmo3",
    "qwen3",
    "smollm3",
)


def get(name: str) -> Arch:
    """Return the architecture of that model_type; KeyError if there is none."""
    if name not in NAMES:
        raise KeyError(name)
    return import_module(f"lmcast.graphs.archs.{name}").ARCH
