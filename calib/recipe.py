"""Recipes: which weights of a model are quantized and how, the rounding of inputs, FP8 caches."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import nn

from lmcast.calib.formats import WEIGHTS
from lmcast.graphs import Definition
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.kv_cache_format import Fp8Cache
from lmcast.graphs.blocks.quantized import InputFormat, QuantizedLinear
from lmcast.graphs.weights.bind import wide
from lmcast.graphs.weights.quantized import Blocks, Scheme
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.graphs.weights.sources import Packed, Source, View
from lmcast.plugins import records
from lmcast.plugins.annotations import Range
from lmcast.plugins.errors import InputError
from lmcast.plugins.quantize.quantize_input import BLOCKS
from lmcast.plugins.records import Count, Name, Nats, RecordError

FP8_CACHE = "fp8"  # the one format of a cache
SCALED = ("fp8", "int8", "nvfp4")  # formats of inputs that take a static scale


class RecipeError(InputError):
    """A recipe that is not whole, or of another checkpoint."""


@dataclass(frozen=True)
class Quality:
    """What a recipe has lost: its divergence from its checkpoint, both run eagerly.

    text: where the tokens are from, for a person. ids: C chunks of T tokens, each run from position
    0. dtype: that both were computed in. kl: KL(checkpoint || recipe) in nats, mean over tokens.
    """

    text: Name
    ids: tuple[tuple[Count, ...], ...]
    dtype: Literal["float32"]
    kl: Nats

    def __post_init__(self) -> None:
        if len({len(chunk) for chunk in self.ids}) != 1 or not self.ids[0]:
            raise RecordError("ids is no list of chunks of one length; accepted: at least one each")

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))


@dataclass(frozen=True)
class Recipe:
    """The result of `lmcast calibrate`.

    weights: parameter of the model -> how it is stored.
    inputs: linear layer -> how its inputs are rounded.
    caches: attention -> the format of its cached keys and values, FP8_CACHE.
    report: the measurements, for a person.
    quality: one of them, to be repeated; None of a recipe that was not made by calibration.

    The values are in tensors beside it. A quantized parameter P has those named `tensors(P)`; a
    layer L with InputFormat.smooth or .static has `L.smooth` and `L.input_scale`; a cache has
    `L.cache.key_scale` and `L.cache.value_scale`; plain parameters that calibration changed are
    there under their own names.
    """

    weights: Mapping[str, Scheme]
    inputs: Mapping[str, InputFormat]
    caches: Mapping[str, str] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    quality: Quality | None = None

    def as_json(self) -> dict[str, Any]:
        weights = {n: dataclasses.asdict(_Scheme.of(s)) for n, s in self.weights.items()}
        inputs = {name: dataclasses.asdict(given) for name, given in self.inputs.items()}
        return {
            "weights": weights,
            "inputs": inputs,
            "caches": dict(self.caches),
            "report": dict(self.report),
            "quality": self.quality and dataclasses.asdict(self.quality),
        }


@dataclass(frozen=True)
class _Scheme:
    """A scheme in JSON: names in place of records."""

    element: str
    block: tuple[Count, Count]
    scale: str
    shared: bool
    zeros: bool

    @classmethod
    def of(cls, s: Scheme) -> "_Scheme":
        scale = str(s.scale).removeprefix("torch.")
        return cls(s.element.name, s.block, scale, s.shared, s.zeros)


@dataclass(frozen=True)
class _Inputs:
    """An InputFormat in JSON."""

    format: str | None
    rotation: Annotated[int, Range(0, 1 << 16)]
    static: bool
    smooth: bool

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in BLOCKS:
            raise RecordError(f"format is {self.format!r:.40}; accepted: {', '.join(BLOCKS)}, null")
        if self.rotation & (self.rotation - 1):
            raise RecordError(f"rotation is {self.rotation}; accepted: a power of two, and 0")
        if self.static and self.format not in SCALED:
            raise RecordError(
                f"static is true for format {self.format}; accepted: for {', '.join(SCALED)}"
            )


@dataclass(frozen=True)
class _Json:
    """A recipe in JSON."""

    weights: Mapping[str, _Scheme]
    inputs: Mapping[str, _Inputs]
    caches: Mapping[str, str]
    report: Mapping[str, Any]
    quality: Quality | None = None


def read_recipe(fields: Mapping[str, Any]) -> Recipe:
    """Return a recipe from its JSON; raises RecipeError where it is not one that is written."""
    known = {_Scheme.of(format.scheme): format.scheme for format in WEIGHTS.values()}
    try:
        given = records.read(_Json, fields)
    except RecordError as error:
        raise RecipeError(f"{error}: damaged, calibrate again") from None
    for name, scheme in given.weights.items():
        if scheme not in known:
            raise RecipeError(
                f"weights.{name:.80} is {dataclasses.asdict(scheme)}; accepted: the formats"
                f" {', '.join(WEIGHTS)}: damaged, calibrate again"
            )
    weights = {name: known[scheme] for name, scheme in given.weights.items()}
    inputs = {n: InputFormat(**dataclasses.asdict(i)) for n, i in given.inputs.items()}
    return Recipe(weights, inputs, given.caches, given.report, given.quality)


def tensors(parameter: str, scheme: Scheme) -> Blocks:
    """Return the names of the tensors of a quantized parameter in a recipe."""
    shared = Part.SHARED.of(parameter) if scheme.shared else None
    return Blocks(scheme, Part.CODES.of(parameter), Part.SCALES.of(parameter), shared)


def require_tensors(
    recipe: Recipe, found: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    """Refuse tensors, dtype and shape by name, that are not as their formats have them: codes in
    bytes, scales of blocks in the dtype of the scheme, all else in fp32; raises RecipeError."""
    shapes = {name: shape for name, (_, shape) in found.items()}
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, scheme in recipe.weights.items():
        layout = tensors(name, scheme)
        codes = shapes.get(layout.packed, ())
        if len(codes) < 2:
            raise RecipeError(
                f"{layout.packed}, the codes of a matrix or of several, is missing or has shape"
                f" {list(codes)}"
            )
        shape = (*codes[:-1], codes[-1] * 8 // scheme.bits)
        expected[layout.packed] = torch.uint8, scheme.codes_shape(shape)
        expected[layout.scales] = scheme.scale, scheme.scales_shape(shape)
        if layout.shared is not None:
            expected[layout.shared] = torch.float32, (*shape[:-2], 1, 1) if shape[:-2] else ()
    for name, (dtype, shape) in found.items():
        accepted = expected.get(name, (torch.float32, shape))
        if (dtype, shape) != accepted:
            raise RecipeError(
                f"{name:.80} is {dtype} {list(shape)}; accepted: {accepted[0]} {list(accepted[1])}"
            )


def apply(found: Definition, recipe: Recipe, names: frozenset[str]) -> Definition:
    """Return a definition with a recipe applied: its weights come from the recipe where it has
    them.

    names: the tensors of the recipe, which must be among those of the checkpoint.

    Raises RecipeError where the recipe belongs to another model, and for a tensor of it that
    nothing reads.
    """
    model = copy.deepcopy(found.model.to("meta"))
    for name, inputs in recipe.inputs.items():
        _replace(model, name, inputs)
    for name, format in recipe.caches.items():
        hold(model, name, format)
    sources: dict[str, Source] = {}
    used = set[str]()
    for name, _ in model.named_parameters():
        if name in recipe.weights:
            layout = tensors(name, recipe.weights[name])
            if missing := set(layout.tensors) - names:
                raise RecipeError(f"the recipe has no tensor {min(missing)}; calibrate again")
            sources[name] = Packed(View(name), layout)
            used |= set(layout.tensors)
        elif name in names:
            sources[name] = View(name)
            used.add(name)
        elif name in found.binding.sources:
            sources[name] = found.binding.sources[name]
        else:
            raise RecipeError(f"the recipe has no tensor {name}; calibrate again")
    if unknown := recipe.weights.keys() - sources.keys():
        raise RecipeError(f"the recipe is of another model: {min(unknown)} is no weight of this")
    if surplus := names - used:
        raise RecipeError(
            f"the recipe has the tensor {min(surplus):.80}, which nothing reads; calibrate again"
        )
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
    for size in (inputs.rotation, BLOCKS[inputs.format] if inputs.format else 0):
        if size and linear.in_features % size:
            raise RecipeError(
                f"the recipe rounds inputs of {name} in runs of {size}; accepted: what divides its"
                f" {linear.in_features}"
            )
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
