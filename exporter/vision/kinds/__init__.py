"""The catalogue of processors: one module per family."""

from importlib import import_module

from lmcast.exporter.vision.processor import Kind

NAMES = ("gemma3", "gemma3n", "kimi_k25", "llama4", "mistral3", "qwen3_5")


def get(name: str) -> Kind:
    """Return the kind of that name; KeyError if there is none."""
    if name not in NAMES:
        raise KeyError(name)
    found: Kind = import_module(f"lmcast.exporter.vision.kinds.{name}").KIND
    return found


def of_model(model_type: str) -> Kind | None:
    """Return the kind that reads the processor of a model_type, None where none does."""
    return next((kind for kind in map(get, NAMES) if model_type in kind.models), None)
