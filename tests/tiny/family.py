"""The record of a family: all that tests know of it, and by which it gets all of its tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

Settings = dict[str, Any]
# Keys of config.json and their values; tiny.llama.DROP as a value takes the key away.
Change = dict[str, Any]


class Oracle(Protocol):
    """A module that defines a family where no class of Hugging Face does, or none that builds."""

    def write(self, config: Settings, directory: Path, seed: int) -> Path:
        """Write config.json and model.safetensors with random weights; return `directory`."""

    def logits(self, directory: Path, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return logits B,T,V of ids B,T int64, computed in `dtype`."""


@dataclass(frozen=True, kw_only=True, eq=False)  # by identity: settings cannot be hashed
class Family:
    """Architectures that are tested together: their checkpoints, and what holds of their configs.

    classes: each architecture's config class and model class in Hugging Face, empty where `oracles`
    has a definition. variants: architecture -> name -> settings for the config class. released: the
    same, but config.json as written, in the spelling of the hub. In what follows a case is named
    "architecture/name". shown: changes that must move the logits. silent: changes that must not,
    against the config itself or against the second change. refused: changes, and what the error
    must say after "config.json: ". by_length: cases whose frequencies depend on the length of a
    call, so that steps differ from one pass by definition. parameters: cases whose every parameter
    must show in the logits, and the ends of the names of those that cannot.
    """

    classes: Mapping[str, tuple[str, str]]
    variants: Mapping[str, Mapping[str, Settings]]
    released: Mapping[str, Mapping[str, Settings]]
    oracles: Mapping[str, Oracle] = field(default_factory=dict)  # where Hugging Face has none
    # Tensors that have other names on the hub than save_pretrained gives them: architecture -> how.
    hub_names: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    shown: Sequence[tuple[str, Change]] = ()
    silent: Sequence[tuple[str, Change] | tuple[str, Change, Change]] = ()
    refused: Sequence[tuple[str, Change, str]] = ()
    by_length: Sequence[str] = ()
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
