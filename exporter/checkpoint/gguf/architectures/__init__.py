"""The architectures of GGUF: a record each, by what general.architecture says."""

from lmcast.exporter.checkpoint.gguf.architecture import Architecture
from lmcast.exporter.checkpoint.gguf.architectures import (
    deltas,
    gemma,
    hybrids,
    latents,
    llama,
    mixtures,
    olmo,
    phi,
    qwen,
)
from lmcast.exporter.checkpoint.gguf.model import Model

# Of several of one name the first whose `when` holds.
CATALOGUE: tuple[Architecture, ...] = (
    *llama.ARCHITECTURES,
    *qwen.ARCHITECTURES,
    *gemma.ARCHITECTURES,
    *olmo.ARCHITECTURES,
    *phi.ARCHITECTURES,
    *mixtures.ARCHITECTURES,
    *latents.ARCHITECTURES,
    *deltas.ARCHITECTURES,
    *hybrids.ARCHITECTURES,
)
NAMES = tuple(dict.fromkeys(arch.name for arch in CATALOGUE))


def find(m: Model) -> Architecture:
    """Return the record of a file's architecture, or raise CheckpointError."""
    name = m.metadata.architecture
    for arch in CATALOGUE:
        if arch.name == name and arch.when(m):
            return arch
    known = "is of a kind that is not read" if name in NAMES else f"is {name!r}"
    raise m.error(
        f"general.architecture {known}; accepted: {', '.join(NAMES)}. Use the original Hugging Face"
        " checkpoint instead"
    )
