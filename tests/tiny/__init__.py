"""Tiny random checkpoints written by Hugging Face, and what Hugging Face computes with them."""

import json
import zlib
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmcast import graphs
from lmcast.graphs import Definition, fill
from lmcast.graphs.blocks.decoder import Decoder
from tiny import configs as tiny_configs
from tiny import delta_nets as tiny_delta_nets
from tiny import gemma3n as tiny_gemma3n
from tiny import gemma3n_files, grok2_oracle, minimax_files
from tiny import grok2 as tiny_grok2
from tiny import kimi_linear as tiny_kimi_linear
from tiny import latents as tiny_latents
from tiny import mamba as tiny_mamba
from tiny import minimax as tiny_minimax
from tiny import moe as tiny_moe
from tiny import moe_attention as tiny_moe_attention
from tiny import multimodal as tiny_multimodal
from tiny import nemotron as tiny_nemotron
from tiny.configs import COMMON_KEYS, SIZES, VOCABULARY

# Each has VARIANTS, settings for Hugging Face's config class, and RELEASED, config.json as written.
TABLES = (
    tiny_configs,
    tiny_delta_nets,
    tiny_gemma3n,
    tiny_grok2,
    tiny_kimi_linear,
    tiny_latents,
    tiny_mamba,
    tiny_minimax,
    tiny_moe,
    tiny_moe_attention,
    tiny_multimodal,
    tiny_nemotron,
)

# Families that no Hugging Face class defines, or none that can be built here, and what does: with
# write(config, directory, seed) and logits(directory, ids, dtype).
OWN = {
    "gemma3n": gemma3n_files,
    "grok2": grok2_oracle,
    **dict.fromkeys(tiny_minimax.FAMILIES, minimax_files),
}
# Families whose tensors have other names on the hub than save_pretrained gives them.
HUB_NAMES = {
    "kimi_k25": tiny_latents.on_the_hub,
    "kimi_linear": tiny_kimi_linear.on_the_hub,
}
# Architecture -> the classes of Hugging Face that define it.
FAMILIES = {
    **tiny_delta_nets.FAMILIES,
    **tiny_gemma3n.FAMILIES,
    **tiny_grok2.FAMILIES,
    **tiny_kimi_linear.FAMILIES,
    **tiny_latents.FAMILIES,
    **tiny_mamba.FAMILIES,
    **tiny_minimax.FAMILIES,
    **tiny_moe.FAMILIES,
    **tiny_moe_attention.FAMILIES,
    **tiny_multimodal.FAMILIES,
    **tiny_nemotron.FAMILIES,
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "ministral3": ("Ministral3Config", "Ministral3ForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"),
}


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


def _cases(architecture: str, variants: dict[str, dict[str, Any]], written: bool) -> list[Case]:
    return [
        Case(f"{architecture}/{name}", architecture, *FAMILIES[architecture], settings, written)
        for name, settings in variants.items()
    ]


CASES: tuple[Case, ...] = tuple(
    case
    for tables in TABLES
    for table, written in ((tables.VARIANTS, False), (tables.RELEASED, True))
    for architecture, variants in table.items()
    for case in _cases(architecture, variants, written)
)


def case(name: str) -> Case:
    """Return the case of that name, as 'llama/plain'."""
    (found,) = (case for case in CASES if case.name == name)
    return found


def make(case: Case, directory: Path) -> Path:
    """Write config.json and model.safetensors into `directory`; the same bytes every time."""
    if case.architecture in OWN:
        seed = zlib.crc32(case.name.encode())
        return OWN[case.architecture].write(case.settings, directory, seed)
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
    if case.architecture in OWN:
        return OWN[case.architecture].logits(directory, ids, dtype)
    with torch.no_grad():
        return oracle_model(case, directory, dtype)(ids, use_cache=False).logits


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and all tensors of a checkpoint in one file."""
    config = json.loads((directory / "config.json").read_text())
    return config, load_file(directory / "model.safetensors")


def defined(config: dict[str, Any], tensors: dict[str, Tensor]) -> Definition:
    return graphs.defined(config, tensors)


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


def gap(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def prompt(batch: int = 2, tokens: int = 37, seed: int = 0) -> Tensor:
    """Return ids batch,tokens int64, longer than the windows of the cases."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, tokens), generator=generator)
