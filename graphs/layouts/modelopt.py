"""NVIDIA ModelOpt: one algorithm for all modules, or one for each that is listed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.reading import ConfigError, Size, parse
from lmcast.graphs.layouts.stored import MX, NV, require_shape, stored
from lmcast.graphs.layouts.tensors import (
    E8M0,
    FLOATS,
    Found,
    Tensors,
    by_wildcard,
    listed_as,
    require_listed,
)
from lmcast.graphs.weights.elements import E2M1, E4M3, INT4, halves, pairs
from lmcast.graphs.weights.quantized import Layout, Quantized, ReadRows, Scheme, Shapes, WeightError

METHOD, MIXED, AWQ = "modelopt", "MIXED_PRECISION", "W4A16_AWQ"
# Algorithm -> the sizes that its groups may have; None: it has none. Others are refused.
ALGORITHMS: Mapping[str, tuple[int, ...] | None] = {
    "FP8": None,
    "FP8_PER_CHANNEL_PER_TOKEN": None,
    "FP8_PB_WO": (128,),
    "NVFP4": (16,), "W4A16_NVFP4": (16,), "NVFP4_AWQ": (16,),
    "MXFP4": (32,), "W4A8_MXFP4_FP8": (32,), "MXFP8": (32,),
    AWQ: (32, 64, 128, 256),
}  # fmt: skip
USUAL = {AWQ: 128}  # where no group_size is given
INERT = ("producer", "kv_cache_quant_algo")
IGNORED = "exclude_modules"  # what hf_quant_config.json, and some of config.json, call `ignore`


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An entry of quantized_layers."""

    quant_algo: str
    group_size: Size | None = None
    awq_block_size: Size | None = None
    has_zero_point: Literal[False] = False
    pre_quant_scale: bool = False

    def __post_init__(self) -> None:
        name = self.name
        if name not in ALGORITHMS:
            known = ", ".join((*ALGORITHMS, MIXED))
            raise ValueError(f"quant_algo is {self.quant_algo!r}; accepted: {known}")
        for size in (self.group_size, self.awq_block_size):
            if size is not None and not self.has(size):
                accepted = ALGORITHMS[name] or "none"
                raise ValueError(f"group_size is {size}; accepted for {name}: {accepted}")

    @property
    def name(self) -> str:
        """The algorithm in the letters that ALGORITHMS has; files have either."""
        return self.quant_algo.upper()

    def has(self, size: int) -> bool:
        """Tell whether groups may be so large."""
        return size in (ALGORITHMS[self.name] or ())

    @property
    def group(self) -> int:
        """Return how many columns share a scale, where groups have no one size."""
        return self.group_size or self.awq_block_size or USUAL[AWQ]


@dataclass(frozen=True, kw_only=True)
class ModelOpt:
    """A quantization_config of ModelOpt, or the same from hf_quant_config.json."""

    quant_method: Literal["modelopt"]
    quant_algo: str
    ignore: tuple[str, ...] = ()
    group_size: Size | None = None
    has_zero_point: Literal[False] = False
    pre_quant_scale: bool = False
    quantized_layers: tuple[tuple, ...] = ()  # name, Layer
    kv_cache_scheme: dict | str | None = None
    config_groups: dict | None = None

    def __post_init__(self) -> None:
        if self.quant_algo.upper() == MIXED:  # quantized_layers says the same
            return
        whole = self.of_all()
        for name, group in (self.config_groups or {}).items():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if not isinstance(weights, Mapping):
                raise ValueError(f"config_groups.{name} is {group!r:.80}; accepted: with weights")
            size = weights.get("group_size")
            fits = size == self.group_size if self.group_size else whole.has(size or 0)
            if size is not None and not fits:
                raise ValueError(
                    f"config_groups.{name}.weights.group_size is {size}, which is not that of"
                    f" {self.quant_algo}, {self.group_size or ALGORITHMS[whole.name]}"
                )

    def of_all(self) -> Layer:
        """Return how every module is quantized."""
        return Layer(quant_algo=self.quant_algo, group_size=self.group_size)

    def find(self, tensors: Tensors) -> Found:
        """Return the weights of all modules that have scales."""
        modules = tensors.modules("weight_scale")
        if not modules:
            raise ConfigError("quant_method is 'modelopt', but no tensor has scales (weight_scale)")
        if self.quant_algo.upper() != MIXED:
            require_listed(modules, tensors, "ignore", self.ignore, by_wildcard(self.ignore))
            layers = dict.fromkeys(modules, self.of_all())
        else:
            layers = self._listed(modules, tensors)
        layouts = {f"{x}.weight": _layout(tensors, x, layer) for x, layer in layers.items()}
        return Found(layouts, tensors.activations(layouts))

    def _listed(self, modules: Sequence[str], tensors: Tensors) -> dict[str, Layer]:
        """Return how each of several modules is quantized: as the nearest entry says of it or of
        a module above it."""
        listed, entries = dict(self.quantized_layers), {}

        def nearest(module: str) -> str | None:
            return next((path for path in _upwards(module) if path in listed), None)

        for module in modules:
            entry = listed_as(module, nearest)
            if entry is None:
                raise ConfigError(
                    f"quantized_layers does not list {module}, nor a module above it, but it is"
                    " quantized (it has a weight_scale); one is wrong"
                )
            entries[module] = entry
        if stray := sorted(listed.keys() - set(entries.values())):
            raise ConfigError(
                f"quantized_layers lists {stray[0]}, but nothing at or below it is quantized (no"
                " X.weight_scale); one is wrong"
            )
        ignored = by_wildcard(self.ignore)
        for name, shape in tensors.shapes.items():
            module = name.removesuffix(".weight")
            if module == name or module in entries or len(shape) != 2:
                continue
            above = listed_as(module, nearest)
            if above and listed_as(module, ignored) is None:
                raise ConfigError(
                    f"quantized_layers lists {above}, but the weight of {module} is plain; one is"
                    " wrong"
                )
        return {module: listed[entry] for module, entry in entries.items()}


def _upwards(module: str) -> Iterator[str]:
    """Yield the path of a module, and of every module above it."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _layout(tensors: Tensors, module: str, layer: Layer) -> Layout:
    smooth = "pre_quant_scale" if f"{module}.pre_quant_scale" in tensors.shapes else None
    match layer.name:
        case "FP8":
            return stored(tensors, module, E4M3, (0, 0))
        case "FP8_PER_CHANNEL_PER_TOKEN":
            return stored(tensors, module, E4M3, (1, 0))
        case "FP8_PB_WO":
            return stored(tensors, module, E4M3, (128, 128))
        case "NVFP4" | "W4A16_NVFP4" | "NVFP4_AWQ":
            return stored(
                tensors, module, E2M1, NV, accepted=(torch.float8_e4m3fn,),
                shared="weight_scale_2", smooth=smooth,
            )  # fmt: skip
        case "MXFP8":
            return stored(tensors, module, E4M3, MX, accepted=E8M0)
        case "MXFP4" | "W4A8_MXFP4_FP8":
            return stored(tensors, module, E2M1, MX, accepted=E8M0)
    packed, scales = f"{module}.weight", f"{module}.weight_scale"
    tensors.dtype(packed, (torch.uint8,), module)
    scheme = Scheme(INT4, (1, layer.group), tensors.dtype(scales, FLOATS, packed))
    if smooth is not None:
        tensors.dtype(f"{module}.{smooth}", FLOATS, packed)
    return RowPairs(scheme, packed, scales, None if smooth is None else f"{module}.{smooth}")


@dataclass(frozen=True)
class RowPairs:
    """INT4 with two rows to a byte: N/2,K with row 2i in the low half; scales N,G.

    smooth: K factors of the inputs, multiplied into the weight.
    """

    format: Scheme
    packed: str
    scales: str
    smooth: str | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.packed, self.scales, *([self.smooth] if self.smooth else []))

    @property
    def scheme(self) -> Scheme | None:
        return None if self.smooth else self.format

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        if len(shapes[self.packed]) != 2:
            raise WeightError(
                f"tensor {self.packed} has shape {list(shapes[self.packed])}; accepted: a matrix"
            )
        high, columns = shapes[self.packed]
        shape = (2 * high, columns)
        how = f"groups of {self.format.block[1]}"
        accepted = self.format.scales_shape(shape)
        require_shape(self.scales, shapes, [accepted], self.packed, how)
        if self.smooth:
            require_shape(self.smooth, shapes, [(columns,)], self.packed, "one for each column")
        return shape

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        out = self.codes(read, begin, end).dequantize()
        return out if self.smooth is None else out.mul_(read(self.smooth, 0, None).float())

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        first = begin // 2
        packed = read(self.packed, first, -(-end // 2))  # of bytes, K
        rows = halves(packed.T).T[begin - 2 * first : end - 2 * first]  # n,K
        return Quantized(self.format, pairs(rows), read(self.scales, begin, end))


def is_own(raw: Mapping[str, Any]) -> bool:
    """Tell whether ModelOpt wrote a quantization_config, which need not name its quant_method."""
    producer = raw.get("producer")
    return isinstance(producer, Mapping) and producer.get("name") == METHOD


def read(raw: Mapping[str, Any], at: str, inert: Inert) -> ModelOpt:
    """Parse a quantization_config; raises ConfigError for keys and values that are not read."""
    path = at.rpartition(": ")[2]
    raw = _spelled(raw, at)
    layers = raw.get("quantized_layers") or {}
    if not isinstance(layers, Mapping):
        raise ConfigError(f"{at}quantized_layers is {layers!r:.80}; accepted: an object")
    parsed = []
    for name, layer in layers.items():
        within = f"{at}quantized_layers.{name}."
        if not isinstance(layer, Mapping):
            raise ConfigError(f"{within[:-1]} is {layer!r:.80}; accepted: an object")
        parsed.append((name, parse(Layer, layer, within, inert)))
    known = {**inert, **at_any_value(f"{path}{key}" for key in INERT)}
    return parse(ModelOpt, {**raw, "quantized_layers": parsed}, at, known)


def _spelled(raw: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Return a section with its quant_method, and its list of plain modules as `ignore`."""
    section = {"quant_method": METHOD, **raw}
    listed = section.pop(IGNORED, None)
    if section.get("ignore") is None:
        section["ignore"] = listed or []
    elif listed not in (None, section["ignore"]):
        raise ConfigError(f"{at}ignore and {IGNORED} differ; make them equal, or leave one")
    return section


def of_file(raw: Mapping[str, Any], shown: str) -> dict[str, Any]:
    """Return the quantization_config that says what a hf_quant_config.json says.

    `shown` is the file's name in messages. Raises ConfigError for what is not read.
    """
    inner = raw.get("quantization")
    if not isinstance(inner, Mapping):
        raise ConfigError(f"{shown}: quantization is {inner!r:.80}; accepted: an object")
    method = raw.get("quant_method", METHOD)
    if method != METHOD:
        raise ConfigError(f"{shown}: quant_method is {method!r:.80}; accepted: {METHOD!r}")
    beyond = sorted(raw.keys() - {"quantization", "producer", "quant_method"})
    if beyond:
        raise ConfigError(f"{shown}: sets {', '.join(beyond)}, which nothing reads")
    return _spelled(inner, f"{shown}: quantization.")


def agreed(given: object, other: Mapping[str, Any], shown: tuple[str, str]) -> dict[str, Any]:
    """Return one section of two that must say the same, by the names of their files.

    Raises ConfigError naming the key where they differ.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{shown[0]}: quantization_config is {given!r:.80}; accepted: an object, as"
            f" {shown[1]} has"
        )
    given = _spelled(given, f"{shown[0]}: quantization_config.")
    for key in ("quant_method", "quant_algo", "ignore", "quantized_layers", "group_size"):
        one, two = given.get(key), other.get(key)
        one, two = (sorted(x, key=str) if isinstance(x, list) else x for x in (one, two))
        if key in ("group_size", "quantized_layers") and None in (one, two):
            continue
        if one != two:
            raise ConfigError(
                f"{shown[1]}: {key} is {two!r:.80}, but quantization_config of {shown[0]} has"
                f" {one!r:.80}; one of the two is wrong"
            )
    return {**other, **given}
