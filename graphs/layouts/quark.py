"""AMD Quark: MXFP4 with one setting for all weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.reading import ConfigError, parse
from lmcast.graphs.layouts.stored import MX, stored
from lmcast.graphs.layouts.tensors import E8M0, Found, Tensors, by_wildcard, require_listed
from lmcast.graphs.weights.elements import E2M1

# How scales were chosen, and what activations are rounded to.
_OUTER = """
export kv_cache_post_rope kv_cache_quant_config quant_mode softmax_quant_spec version
"""
_INNER = """
ch_axis is_dynamic is_scale_quant mx_element_dtype observer_cls round_method
scale_calculation_mode scale_type symmetric zero_point_type
"""
OUTER, INNER = _OUTER.split(), _INNER.split()


@dataclass(frozen=True, kw_only=True)
class Weight:
    """How all weights are quantized."""

    dtype: Literal["fp4"]
    qscheme: Literal["per_group"]
    group_size: Literal[32]
    scale_format: Literal["e8m0"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """How modules are quantized; inputs and outputs stay as they are."""

    weight: Weight
    input_tensors: dict | None = None
    output_tensors: dict | None = None
    bias: None = None
    target_device: None = None


@dataclass(frozen=True, kw_only=True)
class Quark:
    """A quantization_config of Quark."""

    quant_method: Literal["quark"]
    global_quant_config: Group
    layer_quant_config: tuple[Group, ...] = ()
    exclude: tuple[str, ...] | None = None

    def find(self, tensors: Tensors) -> Found:
        """Return the weights of all modules that have scales."""
        modules = tensors.modules("weight_scale")
        if not modules:
            raise ConfigError("quant_method is 'quark', but no tensor has scales (X.weight_scale)")
        left = self.exclude or ()
        require_listed(modules, tensors, "exclude", left, by_wildcard(left))
        layouts = {f"{x}.weight": stored(tensors, x, E2M1, MX, accepted=E8M0) for x in modules}
        return Found(layouts, tensors.activations(layouts))


def read(raw: Mapping[str, Any], at: str, inert: Inert) -> Quark:
    """Parse a quantization_config; raises ConfigError for keys and values that are not read."""
    path = at.rpartition(": ")[2]
    outer = {**inert, **at_any_value(f"{path}{key}" for key in OUTER)}
    groups = raw.get("layer_quant_config") or {}
    if not isinstance(groups, Mapping):
        raise ConfigError(f"{at}layer_quant_config is {groups!r:.80}; accepted: an object")
    named = {f"layer_quant_config.{name}": group for name, group in groups.items()}
    parsed = {}
    for name, group in {**named, "global_quant_config": raw.get("global_quant_config")}.items():
        if not isinstance(group, Mapping):
            raise ConfigError(f"{at}{name} is {group!r:.80}; accepted: an object")
        within = {**outer, **at_any_value(f"{path}{name}.weight.{key}" for key in INNER)}
        parsed[name] = parse(Group, group, f"{at}{name}.", within)
    general = parsed.pop("global_quant_config")
    own = {**raw, "global_quant_config": general, "layer_quant_config": tuple(parsed.values())}
    return parse(Quark, own, at, outer)
