"""The names of a text model's tensors, in checkpoints of its own and in multimodal ones."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The prefixes of tensor names in a multimodal checkpoint."""

    trunk: str  # in place of the 'model.' of a text checkpoint
    head: str  # before its 'lm_head'
    beside: str  # before the modules of the other models

    def __call__(self, name: str) -> str:
        """Return the name of what is `name` in a text checkpoint."""
        if name.startswith("model."):
            return self.trunk + name.removeprefix("model.")
        return self.head + name

    def in_text(self, names: Collection[str]) -> list[str]:
        """Return the text checkpoint's names of those of these tensors that belong to its trunk."""
        return [f"model.{n.removeprefix(self.trunk)}" for n in names if n.startswith(self.trunk)]


# Files of the hub, also what save_pretrained of transformers 5 writes; and the names of Hugging
# Face's modules since 4.52, which other tools write.
HUB = Layout("language_model.model.", "language_model.", "")
MODULES = Layout("model.language_model.", "", "model.")


def spellings(module: str) -> Iterator[str]:
    """Yield the names that a list may have for a module of a text: its own, then the others.

    Tools list modules as the classes they loaded had them, which need not be how they are stored.
    """
    text = module
    for layout in (HUB, MODULES):
        if module.startswith(layout.trunk):
            text = f"model.{module.removeprefix(layout.trunk)}"
    if module == HUB("lm_head"):
        text = "lm_head"
    yield from dict.fromkeys((module, text, HUB(text), MODULES(text)))
