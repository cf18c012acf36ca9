"""Tiny random checkpoints written by Hugging Face, and what Hugging Face computes with them."""

import json
import zlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmcast import graphs
from lmcast.graphs import Definition, fill
from lmcast.graphs.blocks.decoder import Decoder
from tiny.configs import COMMON_KEYS, SIZES, VOCABULARY
from tiny.family import Change, Family
from tiny.llama import DROP

# The records of all files here that end in one.
FAMILIES: tuple[Family, ...] = tuple(
    vars(module)["FAMILY"]
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem != "__init__"
    for module in [import_module(f"tiny.{path.stem}")]
    if "FAMILY" in vars(module)
)
CLASSES = {name: both for family in FAMILIES for name, both in family.classes.items()}
ORACLES = {name: oracle for family in FAMILIES for name, oracle in family.oracles.items()}
HUB_NAMES = {name: named for family in FAMILIES for name, named in family.hub_names.items()}


@dataclass(frozen=True, eq=False)  # by identity: settings cannot be hashed
class Case:
    """One variant of one architecture.

    `settings` go to Hugging Face's config class, which writes config.json; `as_written` makes them
    config.json itself, to be read by both sides in the spelling they have here.
    """

    name: str
    architecture: str
    config_class: str
    model_class: str
    settings: dict[str, Any]
    as_written: bool = False


def _cases(family: Family, architecture: str) -> Iterator[Case]:
    for table, as_written in ((family.variants, False), (family.released, True)):
        for name, settings in table.get(architecture, {}).items():
            yield Case(
                f"{architecture}/{name}", architecture, *CLASSES[architecture], settings, as_written
            )


CASES: tuple[Case, ...] = tuple(
    case
    for family in FAMILIES
    for architecture in family.classes
    for case in _cases(family, architecture)
)


def case(name: str) -> Case:
    """Return the case of that name, as 'llama/plain'."""
    (found,) = (case for case in CASES if case.name == name)
    return found


def make(case: Case, directory: Path) -> Path:
    """Write config.json and model.safetensors into `directory`; the same bytes every time."""
    if case.architecture in ORACLES:
        seed = zlib.crc32(case.name.encode())
        return ORACLES[case.architecture].write(case.settings, directory, seed)
    import transformers

    config_class = getattr(transformers, case.config_class)
    given = deepcopy(case.settings)  # Hugging Face writes into what is nested
    settings = given if "text_config" in given else {**SIZES, **given}
    if case.as_written:
        model_class = case.model_class
        written = {"architectures": [model_class], "model_type": case.architecture, **COMMON_KEYS}
        settings = {**written, **settings}
        # By its own name the class would not know the layout that the files of the hub have.
        own = {key: value for key, value in settings.items() if key != "model_type"}
        config = config_class.from_dict(deepcopy(own))
    else:
        config = config_class(**settings)
    for part in (config, getattr(config, "text_config", None)):
        # What a class has by default, of the vocabulary of a release, ends no text of this one.
        if isinstance(end := getattr(part, "eos_token_id", None), int) and end >= VOCABULARY:
            part.eos_token_id = None
    with torch.random.fork_rng():
        torch.manual_seed(0)  # Hugging Face draws sinks at random, and randomise adds to them
        model = getattr(transformers, case.model_class)(config)
    randomise(model, zlib.crc32(case.name.encode()))
    model.save_pretrained(directory)
    if case.architecture in HUB_NAMES:
        file, named = directory / "model.safetensors", HUB_NAMES[case.architecture]
        save_file({named(n): t for n, t in load_file(file).items()}, file, {"format": "pt"})
    if case.as_written:
        (directory / "config.json").write_text(json.dumps(settings, indent=2))
    return directory


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter values that show in the logits, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:  # norms keep their centre, 0 or 1; biases have 0
                parameter += 0.3 * noise
            elif "embed" in name:
                parameter.copy_(0.5 * noise)
            elif parameter.dim() == 3:  # a stack of matrices, of which either axis may be the inner
                parameter.copy_(1.5 * noise / (parameter.shape[1] * parameter.shape[2]) ** 0.25)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("bias"):  # of routers: selects experts, and is trained
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))


@cache
def _loaded(case: Case, directory: Path) -> Any:
    import transformers

    cls = getattr(transformers, case.model_class)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    written = json.loads((directory / "config.json").read_text())
    if written.pop("model_type") != cls.config_class.model_type:  # a name that remote code goes by
        eager["config"] = cls.config_class.from_dict(written)
    return cls.from_pretrained(directory, dtype=torch.float32, **eager).eval()


@cache
def oracle_model(case: Case, directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return Hugging Face's model with eager attention, converted from fp32 to `dtype`."""
    return deepcopy(_loaded(case, directory)).to(dtype)


def oracle(case: Case, directory: Path, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the logits B,T,V of Hugging Face's eager code in one fresh pass; ids B,T int64."""
    if case.architecture in ORACLES:
        return ORACLES[case.architecture].logits(directory, ids, dtype)
    with torch.no_grad():
        return oracle_model(case, directory, dtype)(ids, use_cache=False).logits


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and all tensors of a checkpoint in one file."""
    config = json.loads((directory / "config.json").read_text())
    return config, load_file(directory / "model.safetensors")


def defined(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    untie: bool = False,
    text_only: bool | None = None,
) -> Definition:
    """text_only: None: but where the text embeds ids of pictures by tables of their tower."""
    alone = config.get("model_type") != "gemma3n" if text_only is None else text_only
    return graphs.defined(config, tensors, untie=untie, text_only=alone)


def ours(
    config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> Decoder:
    """Return our eager model of a config and tensors."""
    found = defined(config, tensors)
    fill(found, found.model, tensors.__getitem__, dtype)
    return found.model


@torch.no_grad()
def logits(config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """Return what our eager model makes of `prompt()`."""
    return ours(config, tensors)(prompt())


def changed(config: dict[str, Any], change: Change) -> dict[str, Any]:
    """Return a config with keys set, or taken away by DROP."""
    return {key: value for key, value in (config | change).items() if value is not DROP}


def gap(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def prompt(batch: int = 2, tokens: int = 37, seed: int = 0) -> Tensor:
    """Return ids batch,tokens int64, longer than the windows of the cases."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, tokens), generator=generator)
