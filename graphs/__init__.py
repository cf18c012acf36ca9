"""Reference architectures in pure PyTorch."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from os import PathLike
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmcast.graphs import archs
from lmcast.graphs.archs.multimodal import TIE, Multimodal, as_stored
from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.tower import Tower
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.config.reading import ConfigError, UnreadKeys
from lmcast.graphs.definition import (
    PICTURES,
    SOUNDS,
    Definition,
    Model,
    TowerDefinition,
    of_tower,
)
from lmcast.graphs.layouts.catalogue import take
from lmcast.graphs.layouts.tensors import Found, Tensors
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.bind import WeightError, bind, not_a_copy, require_zeros, spared
from lmcast.graphs.weights.sources import View, alike, load_into, plain
from lmcast.plugins.annotations import OneOf
from lmcast.plugins.arguments import checked
from lmcast.plugins.errors import InputError

__all__ = [
    "ConfigError", "Definition", "TowerDefinition", "WeightError", "define", "defined", "fill",
    "load", "of_tower",
]  # fmt: skip

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@checked
def define(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    inert: Collection[str] = (),
    dtypes: Mapping[str, torch.dtype] | None = None,
    untie: bool = False,
    text_only: bool = False,
) -> Definition:
    """Read a config.json and bind tensors of these names and shapes to its model on meta.

    inert: config keys to ignore. dtypes: of the tensors, without which no quantized checkpoint is
    understood. untie: take the head that is stored, although config.json ties it to the embedding.
    text_only: leave out a tower, and whatever config.json says of it. Raises ConfigError or
    WeightError naming what does not fit.
    """
    name = archs.known(config)
    tensors = Tensors(shapes, dtypes or {})
    reading = _read(name, config, tensors, inert, text_only)
    arch, typed, quantized, within = reading.arch, reading.config, reading.quantized, reading.within
    shapes = quantized.shapes(shapes)
    if untie:
        typed = untied(typed, within)
    layers = typed.num_hidden_layers
    if layers > len(shapes):
        raise ConfigError(
            f"config.json: {within}num_hidden_layers is {layers},"
            f" but the checkpoint has {len(shapes)} tensors"
        )
    model = _on_meta(arch.build, typed, f"{arch.name}: config.json: {within}")
    towers = {}  # before the text, which has some of their weights, and has no other way out
    for called, (kind, own) in reading.towers.items():
        with _or_text_only():
            kind.require_stored(own, shapes)
            tower = _on_meta(partial(_tower, kind, typed), own, f"{arch.name}: config.json: ")
            bound = kind.bind(own, tower, shapes, quantized.layouts, quantized.beside)
        towers[called] = TowerDefinition(kind, own, tower, bound)
    if not within:
        arch = as_stored(arch, typed, shapes)
    table = arch.table(typed)
    beside = arch.modules_beside(typed, shapes) + spared(model, table, arch.spare, layers)
    beside += tuple(quantized.beside)
    binding = bind(model, table, shapes, beside, quantized.layouts)
    return Definition(arch, typed, model, binding, towers)


def _tower(kind: TowerArch, text: Any, config: Any) -> Tower:
    return kind.build(config, text)


_DRAWS = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)


class _Undrawn(TorchFunctionMode):
    """Initializes no parameters: on meta they have no values, and to draw none takes a quarter of
    what makes a model, and of the first one three seconds of imports."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        return given["tensor"] if func in _DRAWS else func(*args, **given)


def _on_meta(build: Callable[[Any], Model], config: Any, at: str) -> Model:
    """Return the model of a Config on meta; raises ConfigError where that describes none.

    at: what begins messages: the architecture, and the path of its keys.
    """
    try:
        with torch.device("meta"), _Undrawn():
            return build(config).eval()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{at}{error}") from None
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise ConfigError(
            f"{at}{'it' if at.endswith(' ') else ''} asks for a weight beyond any memory: {error}"
        ) from None


TEXT_ONLY = "; or give --text-only, which leaves out all but the text"


@contextmanager
def _or_text_only() -> Iterator[None]:
    """Say of what is wrong with a tower that the text can do without."""
    try:
        yield
    except UnreadKeys:
        raise
    except (ConfigError, WeightError) as error:
        known = "--text-only" in str(error)
        raise type(error)(f"{error}{'' if known else TEXT_ONLY}") from None


@dataclass(frozen=True)
class _Reading:
    """What a config.json says.

    arch, config: of the text. within: the path of its keys. towers: by name, kinds and Configs.
    """

    arch: Arch
    config: Any
    quantized: Found
    within: str
    towers: Mapping[str, tuple[TowerArch, Any]]


def _read(
    name: str,
    config: Mapping[str, Any],
    tensors: Tensors,
    inert: Collection[str],
    text_only: bool,
) -> _Reading:
    """Return how a checkpoint is built.

    Raises ConfigError; where it is for keys that nothing reads, all of the file are named at once.
    """
    unread: dict[str, Any] = {}
    while True:
        ignored = {*inert, *unread}
        try:
            arch, within = archs.get(name), ""
            multimodal, towers = isinstance(arch, Multimodal), dict[str, tuple[TowerArch, Any]]()
            quantized, raw = take(name, config, tensors, multimodal, at_any_value(ignored))
            if isinstance(arch, Multimodal):
                shapes = quantized.shapes(tensors.shapes)
                kinds = {} if text_only else {PICTURES: arch.tower, SOUNDS: arch.audio}
                for called, kind in kinds.items():
                    if kind is not None:
                        with _or_text_only():
                            stored = kind.as_stored(shapes)
                            towers[called] = stored, stored.read(raw, name, ignored)
                of_text = arch.text(raw, shapes, ignored, tuple(towers.values()))
                arch, raw, within = *of_text, "text_config."
            text, typed = arch, arch.read(raw, ignored, within)
        except UnreadKeys as error:
            if error.keys.keys() <= ignored:
                raise
            unread |= error.keys
        except InputError:
            if not unread:
                raise
            break
        else:
            break
    if unread:
        beside = any(not key.startswith("text_config.") for key in unread)
        way_out = TEXT_ONLY if beside and multimodal and not text_only else ""
        raise ConfigError(f"{name}: {UnreadKeys('config.json: ', unread)}{way_out}")
    return _Reading(text, typed, quantized, within, towers)


def untied(config: Any, within: str = "") -> Any:
    """Return a Config whose head is a weight of its own; raises ConfigError where it is so."""
    if not vars(config).get(TIE):
        raise ConfigError(
            f"config.json: {within}{TIE} is not true here, so that the head is a weight of its own;"
            " leave out --untie"
        )
    return replace(config, **{TIE: False})


class HasShape(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...


@checked
def defined(
    config: Mapping[str, Any],
    tensors: Mapping[str, HasShape],
    inert: Collection[str] = (),
    untie: bool = False,
    text_only: bool = False,
) -> Definition:
    """Read a config.json and bind the tensors of a checkpoint to its model on meta, as `define`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return define(config, shapes, inert, dtypes, untie, text_only)


def fill(
    found: Definition | TowerDefinition,
    part: nn.Module,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
) -> None:
    """Load weights into the meta parameters of `part`, in place, as `dtype`.

    part: a module of found.model, or the model itself. read: tensor name -> stored values.
    `.to("meta")` empties a part again.
    """
    names = {id(parameter): name for name, parameter in found.model.named_parameters()}
    places = _places(part)
    for parameter in list(part.parameters()):
        name = names[id(parameter)]
        source = found.binding.sources[name]
        if isinstance(source, View) and source.whole:
            stored = plain(source.tensor, read)
            value = stored.to(found.binding.dtype(name, stored.dtype, dtype))
        else:
            value = torch.empty(parameter.shape, dtype=dtype)
            load_into(value, source, read)
        filled = nn.Parameter(value, requires_grad=False)
        for owner, leaf in places[id(parameter)]:
            setattr(owner, leaf, filled)


def _places(module: nn.Module) -> Mapping[int, Sequence[tuple[nn.Module, str]]]:
    """Return, by identity of a parameter, the modules that hold it and its name there; several if
    tied."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for leaf, held in owner.named_parameters(recurse=False):
            found.setdefault(id(held), []).append((owner, leaf))
    return found


@checked
def load(
    checkpoint: str | PathLike[str],
    dtype: Annotated[torch.dtype, OneOf(FLOATS)] = torch.float32,
    *,
    untie: bool = False,
) -> Decoder:
    """Return the eager model of a checkpoint: `model(input_ids B,T int64) -> logits B,T,V`.

    Weights are converted to `dtype`. untie: as for `define`. Raises InputError where the checkpoint
    is not understood.
    """
    (reader,) = entry_points(group="lmcast.checkpoints", name="open")
    source = reader.load()(checkpoint)
    found = defined(source.config, source.tensors, untie=untie, text_only=True)
    for copy, original in found.binding.copies:
        if not alike(source.read(copy), source.read(original)):
            raise WeightError(not_a_copy(copy, original))
    for name in found.binding.zeros:
        require_zeros(name, source.read(name))
    fill(found, found.model, source.read, dtype)
    return found.model
