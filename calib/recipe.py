"""Recipes: which weights of a model are quantized and how, the rounding of inputs, FP8 caches."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lmcast.graphs import Definition
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.kv_cache_format import Fp8Cache
from lmcast.graphs.blocks.quantized import InputFormat, QuantizedLinear
from lmcast.graphs.weights.bind import wide
from lmcast.graphs.weights.elements import ELEMENTS
from lmcast.graphs.weights.quantized import Blocks, Scheme
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.graphs.weights.sources import Packed, Source, View
from lmcast.plugins.errors import InputError

FP8_CACHE = "fp8"  # the one format of a cache


class RecipeError(InputError):
    """A recipe that is not whole, or of another checkpoint."""


@dataclass(frozen=True)
class Recipe:
    """The result of `lmcast calibrate`.

    weights: parameter of the model -> how it is stored.
    inputs: linear layer -> how its inputs are rounded.
    caches: attention -> the format of its cached keys and values, FP8_CACHE.
    report: the measurements, for a person.

    The values are in tensors beside it. A quantized parameter P has those named `tensors(P)`; a
    layer L with InputFormat.smooth or .static has `L.smooth` and `L.input_scale`; a cache has
    `L.cache.key_scale` and `L.cache.value_scale`; plain parameters that calibration changed are
    there under their own names.
    """

    weights: Mapping[str, Scheme]
    inputs: Mapping[str, InputFormat]
    caches: Mapping[str, str] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        weights = {
            name: {
                **dataclasses.asdict(s),
                "element": s.element.name,
                "block": list(s.block),
                "scale": _name(s.scale),
            }
            for name, s in self.weights.items()
        }
        inputs = {name: dataclasses.asdict(given) for name, given in self.inputs.items()}
        caches, report = dict(self.caches), dict(self.report)
        return {"weights": weights, "inputs": inputs, "caches": caches, "report": report}


def read_recipe(fields: Mapping[str, Any]) -> Recipe:
    """Return a recipe from its JSON; raises RecipeError where it is not one."""
    try:
        weights = {
            name: Scheme(
                **s
                | {
                    "element": ELEMENTS[s["element"]],
                    "block": tuple(s["block"]),
                    "scale": getattr(torch, s["scale"]),
                }
            )
            for name, s in fields["weights"].items()
        }
        inputs = {name: InputFormat(**given) for name, given in fields["inputs"].items()}
        caches = dict(fields.get("caches", {}))  # those of an earlier lmcast have none
        return Recipe(weights, inputs, caches, fields["report"])
    except (KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"the recipe is damaged ({error}); calibrate again") from None


def tensors(parameter: str, scheme: Scheme) -> Blocks:
    """Return the names of the tensors of a quantized parameter in a recipe."""
    shared = Part.SHARED.of(parameter) if scheme.shared else None
    return Blocks(scheme, Part.CODES.of(parameter), Part.SCALES.of(parameter), shared)


def apply(found: Definition, recipe: Recipe, names: frozenset[str]) -> Definition:
    """Return a definition with a recipe applied: its weights come from the recipe where it has
    them.

    names: the tensors of the recipe, which must be among those of the checkpoint.

    Raises RecipeError where the recipe belongs to another model.
    """
    model = copy.deepcopy(found.model.to("meta"))
    for name, inputs in recipe.inputs.items():
        _replace(model, name, inputs)
    for name, format in recipe.caches.items():
        hold(model, name, format)
    sources: dict[str, Source] = {}
    for name, _ in model.named_parameters():
        if name in recipe.weights:
            layout = tensors(name, recipe.weights[name])
            if missing := set(layout.tensors) - names:
                raise RecipeError(f"the recipe has no tensor {min(missing)}; calibrate again")
            sources[name] = Packed(View(name), layout)
        elif name in names:
            sources[name] = View(name)
        elif name in found.binding.sources:
            sources[name] = found.binding.sources[name]
        else:
            raise RecipeError(f"the recipe has no tensor {name}; calibrate again")
    if unknown := recipe.weights.keys() - sources.keys():
        raise RecipeError(f"the recipe is of another model: {min(unknown)} is no weight of this")
    kept = found.binding.wide | frozenset(wide(model))
    binding = dataclasses.replace(found.binding, sources=sources, wide=kept)
    return dataclasses.replace(found, model=model, binding=binding)


def _replace(model: nn.Module, name: str, inputs: InputFormat) -> None:
    parent, _, leaf = name.rpartition(".")
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        raise RecipeError(f"the recipe is of another model: it has no layer {name}") from None
    if not isinstance(linear, nn.Linear):
        raise RecipeError(f"the recipe rounds inputs of {name}, which is no linear layer")
    setattr(model.get_submodule(parent), leaf, QuantizedLinear(linear, inputs))


def hold(model: nn.Module, name: str, format: str) -> Fp8Cache:
    """Make attention cache keys and values in FP8; return the cache, whose scales are not set yet.

    Raises RecipeError where the model has no such attention.
    """
    if format != FP8_CACHE:
        raise RecipeError(f"the recipe has a cache of {name} in {format!r:.40}; accepted: fp8")
    try:
        mixer = model.get_submodule(name)
    except AttributeError:
        raise RecipeError(f"the recipe is of another model: it has no layer {name}") from None
    if not isinstance(mixer, Attention):
        raise RecipeError(f"the recipe has a cache of {name}, which holds no keys and values")
    cache = Fp8Cache(mixer.k.weight.device)
    try:
        mixer.hold(cache)
    except ValueError as error:
        raise RecipeError(f"the recipe has a cache of {name}: {error}") from None
    return cache


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
