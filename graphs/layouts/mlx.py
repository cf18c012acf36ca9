"""MLX (mlx-lm): unsigned integers in words along the inputs, w = number * scale + bias."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lmcast.graphs.config.inert import Inert
from lmcast.graphs.config.reading import ConfigError, parse
from lmcast.graphs.layouts.stored import bytes_of, require_shape, rule
from lmcast.graphs.layouts.tensors import FLOATS, Found, Tensors, listed_as
from lmcast.graphs.weights.elements import INT4, INT8, halves
from lmcast.graphs.weights.quantized import (
    Layout,
    Quantized,
    ReadRows,
    Scheme,
    Shapes,
    WeightError,
)

# mlx-lm writes the tensors of these as Hugging Face does, but for stacks of experts. Of others it
# changes names, layouts and, as the norms of Qwen3-Next, values.
_ARCHITECTURES = """
gemma2 gemma3_text glm4_moe granite llama mistral olmo2 olmo3 phi3 qwen2 qwen3 qwen3_moe smollm3
"""
ARCHITECTURES = frozenset(_ARCHITECTURES.split())
KEY = "quantization"  # its own key of config.json; it writes the same as quantization_config too
DEFAULT = ("group_size", "bits", "mode")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How a module is quantized."""

    group_size: Literal[32, 64, 128]
    bits: Literal[4, 8]
    mode: Literal["affine"] = "affine"


@dataclass(frozen=True, kw_only=True)
class Mlx:
    """A quantization section of MLX; own: of modules that differ, None where one is not
    quantized."""

    of_all: Layer
    own: tuple[tuple[str, Layer | None], ...] = ()

    def find(self, tensors: Tensors) -> Found:
        """Return the weights of all modules that have biases of groups."""
        modules = tensors.modules("biases")
        if not modules:
            raise ConfigError(
                "it is a quantization of MLX, but no tensor is quantized (X.scales, X.biases)"
            )
        listed, layouts = dict(self.own), dict[str, Layout]()
        for module in modules:
            name = listed_as(module, lambda x: x if x in listed else None)
            layer = self.of_all if name is None else listed[name]
            if layer is None:
                raise ConfigError(f"{module} is false, but its weight is quantized; one is wrong")
            layouts[f"{module}.weight"] = _layout(tensors, module, layer)
        return Found(layouts)


def is_own(raw: Mapping[str, Any]) -> bool:
    """Tell whether MLX wrote a section, which names no quant_method."""
    rest = {key: value for key, value in raw.items() if key not in DEFAULT}
    modules = (
        "." in key or key == "lm_head" or isinstance(value, Mapping) for key, value in rest.items()
    )
    return {"group_size", "bits"} <= raw.keys() and all(modules)


def read(raw: Mapping[str, Any], at: str, inert: Inert) -> Mlx:
    """Parse a section; raises ConfigError for keys and values that are not read."""
    general = {key: raw[key] for key in DEFAULT if key in raw}
    of_all = parse(Layer, general, at, inert)
    own: list[tuple[str, Layer | None]] = []
    for module in sorted(raw.keys() - general.keys()):
        given = raw[module]
        if isinstance(given, Mapping):
            own.append((module, parse(Layer, {**general, **given}, f"{at}{module}.", inert)))
        elif isinstance(given, bool):
            own.append((module, of_all if given else None))
        else:
            raise ConfigError(f"{at}{module} is {given!r:.80}; accepted: an object, true or false")
    return Mlx(of_all=of_all, own=tuple(own))


def _layout(tensors: Tensors, module: str, layer: Layer) -> "Affine":
    packed, scales, biases = (f"{module}.{x}" for x in ("weight", "scales", "biases"))
    tensors.dtype(packed, (torch.uint32,), module)
    scale = tensors.dtype(scales, FLOATS, packed)
    tensors.dtype(biases, (scale,), packed)
    shown = list(tensors.shapes[packed])
    if len(shown) not in (2, 3):
        raise WeightError(f"tensor {packed} has shape {shown}; accepted: a matrix or a stack")
    scheme = Scheme(INT4 if layer.bits == 4 else INT8, (1, layer.group_size), scale)
    return Affine(scheme, packed, scales, biases)


@dataclass(frozen=True)
class Affine:
    """Words ...,N,K * bits / 32, scales and biases ...,N,G."""

    format: Scheme
    packed: str
    scales: str
    biases: str

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.packed, self.scales, self.biases)

    @property
    def scheme(self) -> Scheme | None:
        return None  # biases are no multiples of scales

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        *rows, words = shapes[self.packed]
        shape = (*rows, words * 32 // self.format.bits)
        accepted = [self.format.scales_shape(shape)]
        for name in (self.scales, self.biases):
            require_shape(name, shapes, accepted, self.packed, rule(self.format.block))
        return shape

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        words, scales, biases = (read(name, begin, end) for name in self.tensors)
        packed = bytes_of(words)
        numbers = (halves(packed) if self.format.bits == 4 else packed).float()  # ...,N,K
        groups = numbers.unflatten(-1, (scales.shape[-1], -1))
        return groups.mul_(scales.float()[..., None]).add_(biases.float()[..., None]).flatten(-2)

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        raise AssertionError("only values are available")
