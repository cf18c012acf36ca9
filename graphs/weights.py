"""From a checkpoint's tensors to our parameters, by table, strict on both sides."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lmcast.graphs.inert import LEFTOVERS
from lmcast.plugins.errors import InputError


class WeightError(InputError):
    """Tensors that do not fit the definition."""


@dataclass(frozen=True)
class Alias:
    """A parameter that is one tensor of the checkpoint as it stands."""

    tensor: str


@dataclass(frozen=True)
class Binding:
    """Where every parameter comes from.

    `copies` are tensors stored again under a tie: each must equal the other, value by value.
    `ignored` are tensors of modules that this definition does not build.
    """

    sources: Mapping[str, Alias]
    copies: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]


# The names that most decoder checkpoints share; an architecture adds to or overrides these.
COMMON = {
    "embed": "model.embed_tokens",
    "final.norm": "model.norm",
    "final.head": "lm_head",
    "layers.{i}.pre_mixer": "model.layers.{i}.input_layernorm",
    "layers.{i}.pre_ffn": "model.layers.{i}.post_attention_layernorm",
    **{f"layers.{{i}}.mixer.{x}": f"model.layers.{{i}}.self_attn.{x}_proj" for x in "qkvo"},
    **{f"layers.{{i}}.ffn.{x}": f"model.layers.{{i}}.mlp.{x}_proj" for x in ("gate", "up", "down")},
}


def bind(
    model: nn.Module, table: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> Binding:
    """Give every parameter of `model` a source among tensors of these names and shapes.

    Raises WeightError on a missing or misshaped tensor, and on a surplus one under a module that
    the model has: the definition would be wrong.
    """
    sources: dict[str, Alias] = {}
    for name, parameter in model.named_parameters():
        ours, _, leaf = name.rpartition(".")
        tensor = f"{their_path(ours, table)}.{leaf}"
        if tensor not in shapes:
            near = [n for n in shapes if n.rpartition(".")[0] == tensor.rpartition(".")[0]]
            raise WeightError(
                f"tensor {tensor} is missing (for {name} {list(parameter.shape)});"
                f" the checkpoint has {near or 'nothing under that name'}"
            )
        if tuple(shapes[tensor]) != tuple(parameter.shape):
            raise WeightError(
                f"tensor {tensor} has shape {list(shapes[tensor])};"
                f" config.json asks for {list(parameter.shape)}"
            )
        sources[name] = Alias(tensor)

    used = {source.tensor for source in sources.values()}
    copies = tuple(sorted(_copies(model, table, sources, shapes)))
    rest = sorted(shapes.keys() - used - {copy for copy, _ in copies})
    rest = [name for name in rest if not LEFTOVERS.search(name)]
    built = _built(used)
    for name in rest:
        if any(path in built for path in _ancestors(name)):
            raise WeightError(
                f"tensor {name} {list(shapes[name])} belongs to a module of this architecture, but"
                " nothing reads it: config.json does not describe this checkpoint"
            )
    return Binding(sources, copies, tuple(rest))


def their_path(ours: str, table: Mapping[str, str]) -> str:
    """Return the checkpoint's path of one of our modules, as the table has it."""
    index = re.search(r"\.(\d+)(?=\.|$)", ours)
    plain = ours if index is None else ours[: index.start()] + ".{i}" + ours[index.end() :]
    if plain not in table:
        raise AssertionError(f"the weight table has no entry for {plain}")
    return table[plain] if index is None else table[plain].replace("{i}", index[1])


def _copies(
    model: nn.Module,
    table: Mapping[str, str],
    sources: Mapping[str, Alias],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[tuple[str, str]]:
    """Return (stored copy, original) of parameters that modules share."""
    first = {id(p): name for name, p in model.named_parameters()}
    found = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        original = first[id(parameter)]
        # A tied head holds the module it shares: final.head.embed.weight stands for final.head.
        module = name.rpartition(".")[0].rpartition(".")[0]
        if name == original or module not in table:
            continue
        copy = f"{their_path(module, table)}.{name.rpartition('.')[2]}"
        if copy in shapes:
            found.append((copy, sources[original].tensor))
    return found


def _ancestors(name: str) -> list[str]:
    """Return the module paths above a tensor, without the outermost ('model')."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1) if n > 1 or len(parts) == 1]


def _built(used: set[str]) -> set[str]:
    return {path for name in used for path in _ancestors(name)}
