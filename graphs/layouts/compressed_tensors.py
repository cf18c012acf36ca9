"""compressed-tensors (llm-compressor): groups of modules, each with one of several formats."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.reading import ConfigError, Size, parse
from lmcast.graphs.layouts.stored import (
    MX,
    NV,
    bytes_of,
    require_shape,
    rule,
    scale_shapes,
    stored,
)  # fmt: skip
from lmcast.graphs.layouts.tensors import (
    E8M0,
    FLOATS,
    Found,
    Tensors,
    by_regex,
    listed_as,
    require_listed,
)  # fmt: skip
from lmcast.graphs.weights.elements import E2M1, E4M3, INT4, INT8, halves
from lmcast.graphs.weights.quantized import (
    Block,
    Layout,
    Quantized,
    ReadRows,
    Scheme,
    Shapes,
    WeightError,
)

T = TypeVar("T")
Format = Literal[
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision",
]  # fmt: skip
PACKED, PLAIN = "weight_packed", "weight"
# Format -> bits, type and what is shared how, as its compressor demands them; None: as given.
FIXED: Mapping[str, tuple[int | None, str | None, str | None, int | None]] = {
    "pack-quantized": (None, "int", None, None),
    "int-quantized": (None, "int", None, None),  # a byte each, also those of 4 bits
    "float-quantized": (8, "float", None, None),
    "naive-quantized": (8, None, None, None),
    "nvfp4-pack-quantized": (4, "float", "tensor_group", 16),
    "mxfp4-pack-quantized": (4, "float", "group", 32),
    "mxfp8-quantized": (8, "float", "group", 32),
}
INERT = ("observer", "observer_kwargs", "scale_dtype", "zp_dtype", "is_mx")  # said by the tensors


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How the weights of a group are quantized."""

    num_bits: Literal[4, 8]
    type: Literal["int", "float"]
    strategy: Literal["tensor", "channel", "group", "block", "tensor_group"]
    symmetric: bool = True
    group_size: int | None = None
    block_structure: tuple[Size, ...] | None = None
    dynamic: Literal[False] = False
    actorder: Literal["weight", "static"] | None = None  # neither moves a column

    @property
    def block(self) -> Block:
        """Return how many rows and columns share a scale."""
        if self.strategy in ("tensor", "channel"):
            return (0, 0) if self.strategy == "tensor" else (1, 0)
        if self.strategy == "block":
            rows, columns = self.block_structure or (0, 0)
            return rows, columns
        return 1, self.group_size or 0

    def __post_init__(self) -> None:
        sizes = self.block_structure
        if self.strategy == "block" and (sizes is None or len(sizes) != 2):
            raise ValueError(f"block_structure is {sizes}; accepted for blocks: two numbers")
        if self.strategy.endswith("group") and (self.group_size is None or self.group_size < 1):
            raise ValueError(f"group_size is {self.group_size}; accepted for groups: from 1")
        if self.strategy == "channel" and self.group_size not in (None, -1):
            raise ValueError(f"group_size is {self.group_size}, but strategy is 'channel'")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Modules, and how their weights are quantized; activations stay as they are."""

    targets: tuple[str, ...]
    weights: Weights
    input_activations: dict | None = None
    output_activations: dict | None = None
    format: Format | None = None


@dataclass(frozen=True, kw_only=True)
class TransformTarget:
    """Weights that a transform was applied to; they are stored transformed."""

    location: Literal["weight_input", "weight_output"]
    targets: tuple[str, ...]
    ignore: tuple[str, ...] = ()
    inverse: bool = False


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A rotation of weights, with its inverse in others, as SpinQuant's R1 and R2."""

    apply: tuple[TransformTarget, ...]
    type: str
    head_dim: int | None = None
    precision: str | None = None
    randomize: bool = False
    requires_grad: bool = False


@dataclass(frozen=True, kw_only=True)
class CompressedTensors:
    """A quantization_config of compressed-tensors."""

    quant_method: Literal["compressed-tensors"]
    config_groups: tuple[Group, ...]
    format: Format
    quantization_status: Literal["compressed", "frozen"] = "compressed"  # older files: frozen
    kv_cache_scheme: dict | None = None
    ignore: tuple[str, ...] | None = None
    version: str | None = None
    global_compression_ratio: float | None = None

    def __post_init__(self) -> None:
        for group in self.config_groups:
            self.format_of(group)

    def format_of(self, group: Group) -> str:
        """Return the format of a group; raises ValueError where its numbers are not of it."""
        name = group.format or self.format
        if name not in FIXED:
            raise ValueError(f"format is {name!r}; then every group must have its own")
        given = group.weights
        keys = ("num_bits", "type", "strategy", "group_size")
        for key, wanted in zip(keys, FIXED[name], strict=True):
            found = vars(given)[key]
            if wanted is not None and found != wanted:
                raise ValueError(f"{key} is {found!r}; accepted in format {name!r}: {wanted!r}")
        if not given.symmetric and name != "pack-quantized":
            raise ValueError(f"symmetric is False; accepted in format {name!r}: True")
        if name == "pack-quantized" and given.strategy not in ("group", "channel"):
            raise ValueError(
                f"strategy is {given.strategy!r}; accepted in format {name!r}: 'group', 'channel'"
            )
        return name

    def find(self, tensors: Tensors) -> Found:
        """Return the weights of all modules that have scales."""
        packed, plain = tensors.modules(PACKED), tensors.modules("weight_scale")
        modules = list(dict.fromkeys((*packed, *plain)))
        if not modules:
            raise ConfigError(
                "quant_method is 'compressed-tensors', but no tensor has scales (X.weight_scale)"
            )
        general = next((g for g in self.config_groups if "Linear" in g.targets), None)
        listed = self.ignore or ()
        if general:
            require_listed(modules, tensors, "ignore", listed, by_regex(listed))
        named = [(group, by_regex(group.targets)) for group in self.config_groups]

        def find(module: str) -> Group | None:
            return next((group for group, has in named if has(module) is not None), None)

        layouts = {
            f"{x}.weight": self._layout(tensors, x, listed_as(x, find) or general) for x in modules
        }
        return Found(layouts, tensors.activations(layouts))

    def _layout(self, tensors: Tensors, module: str, group: Group | None) -> Layout:
        if group is None:
            raise ConfigError(f"config_groups has no target for {module}, which is quantized")
        form, weights = self.format_of(group), group.weights
        match form:
            case "pack-quantized":
                return _packed(tensors, module, weights)
            case "nvfp4-pack-quantized":
                shared, scales = "weight_global_scale", (torch.float8_e4m3fn,)
                return stored(
                    tensors, module, E2M1, NV, PACKED, accepted=scales, shared=shared,
                    divides=True,
                )  # fmt: skip
            case "mxfp4-pack-quantized":
                return stored(tensors, module, E2M1, MX, PACKED, accepted=E8M0)
            case "mxfp8-quantized":
                return stored(tensors, module, E4M3, MX, accepted=E8M0)
        element = INT8 if weights.type == "int" else E4M3
        return stored(tensors, module, element, weights.block)


def read(raw: Mapping[str, Any], at: str, inert: Inert) -> CompressedTensors:
    """Parse a quantization_config; raises ConfigError for keys and values that are not read."""
    groups, transforms = raw.get("config_groups"), raw.get("transform_config")
    if not groups:
        raise ConfigError(f"{at}config_groups is {groups!r:.80}; accepted: an object")
    parsed = _each(Group, groups, f"{at}config_groups", inert, INERT)
    raw = {**raw, "config_groups": parsed}
    if isinstance(transforms, Mapping) and transforms.keys() == {"config_groups"}:
        _each(Transform, transforms["config_groups"], f"{at}transform_config.config_groups", inert)
        del raw["transform_config"]
    return parse(CompressedTensors, raw, at, inert)


def _each(
    kind: type[T], groups: object, at: str, inert: Inert, ignored: Collection[str] = ()
) -> list[T]:
    """Return the values of an object by name; ignored: keys of their weights that say nothing."""
    if not isinstance(groups, Mapping):
        raise ConfigError(f"{at} is {groups!r:.80}; accepted: an object")
    parsed = []
    for name, group in groups.items():
        within = f"{at}.{name}."
        path = within.rpartition(": ")[2]
        if not isinstance(group, Mapping):
            raise ConfigError(f"{within[:-1]} is {group!r:.80}; accepted: an object")
        parsed.append(
            parse(
                kind,
                group,
                within,
                {**inert, **at_any_value(f"{path}weights.{k}" for k in ignored)},
            )
        )
    return parsed


# Integers: words of 32 bits along a row, the first number lowest, half of their range added.


@dataclass(frozen=True)
class Words:
    """Integers N,K in words N,K * bits / 32; zeros: likewise, but packed along N."""

    scheme: Scheme
    packed: str
    scales: str
    size: str  # holds N and K
    stored: tuple[int, int]  # N and K as the words have them
    zeros: str | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.packed, self.scales, self.size, *([self.zeros] if self.zeros else []))

    @property
    def format(self) -> Scheme:
        return self.scheme

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        shape = self.stored
        how = rule(self.scheme.block)
        accepted = scale_shapes(self.scheme, shape)
        require_shape(self.scales, shapes, accepted, self.packed, how)
        require_shape(self.size, shapes, [(2,)], self.packed, "two axes")
        if self.zeros:
            high, wide = self.scheme.scales_shape(shape)
            packed = -(-high * self.scheme.bits // 32)
            require_shape(self.zeros, shapes, [(packed, wide)], self.packed, how)
        return shape

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        return self.codes(read, begin, end).dequantize()

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        size = read(self.size, 0, None).tolist()
        if size != list(self.stored):
            raise WeightError(
                f"tensor {self.size} says {size}, but {self.packed} has {list(self.stored)} numbers"
            )
        codes = bytes_of(read(self.packed, begin, end)) ^ self.scheme.element.signs
        scales = read(self.scales, begin, end)
        across = self.scheme.scales_shape(self.stored)[1]
        zeros = self._zeros(read, begin, end) if self.zeros else None
        return Quantized(self.scheme, codes, scales.reshape(-1, across), zeros=zeros)

    def _zeros(self, read: ReadRows, begin: int, end: int) -> Tensor:
        assert self.zeros is not None
        packed = bytes_of(read(self.zeros, 0, None).T)  # G,N * bits / 8
        numbers = (halves(packed) if self.scheme.bits == 4 else packed).short()
        half = 1 << (self.scheme.bits - 1)
        return numbers.T[begin:end] - half


def _packed(tensors: Tensors, module: str, weights: Weights) -> Words:
    packed, scales, size = (f"{module}.weight_{x}" for x in ("packed", "scale", "shape"))
    tensors.dtype(packed, (torch.int32,), module)
    scale = tensors.dtype(scales, FLOATS, packed)
    tensors.dtype(size, (torch.int64, torch.int32), packed)
    zeros = None if weights.symmetric else f"{module}.weight_zero_point"
    if zeros is not None:
        tensors.dtype(zeros, (torch.int32,), packed)
    if len(tensors.shapes[packed]) != 2:
        shown = list(tensors.shapes[packed])
        raise WeightError(f"tensor {packed} has shape {shown}; accepted: a matrix")
    rows, words = tensors.shapes[packed]
    element = INT4 if weights.num_bits == 4 else INT8
    scheme = Scheme(element, weights.block, scale, zeros=zeros is not None)
    return Words(scheme, packed, scales, size, (rows, words * 32 // scheme.bits), zeros)
