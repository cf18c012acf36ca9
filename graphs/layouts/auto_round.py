"""AutoRound: the tensors of GPTQ or of AWQ, with settings of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.reading import ConfigError, parse
from lmcast.graphs.layouts.awq import Awq
from lmcast.graphs.layouts.gptq import TUNING, Gptq
from lmcast.graphs.layouts.tensors import Found, Tensors, by_patterns, listed_as
from lmcast.graphs.weights.quantized import Layout

# How words are packed: GPTQ's first version stores zero points one less than they are.
GPTQ, GPTQ_V2, AWQ = "gptq", "gptq_v2", "awq"
PACKINGS: Mapping[str, str] = {
    "auto_round:auto_gptq": GPTQ,
    "auto_round:gptq": GPTQ,
    "auto_round": GPTQ_V2,
    "auto_round:gptqmodel": GPTQ_V2,
    "auto_round:auto_awq": AWQ,
    "auto_round:awq": AWQ,
}
OF_INPUTS = ("act_data_type", "act_dynamic", "act_group_size", "act_sym")
WHOLE = 16  # bits from which weights or inputs are not quantized


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An entry of extra_config: what of a module differs from the others; None: nothing."""

    bits: int | None = None
    group_size: int | None = None
    sym: bool | None = None
    data_type: Literal["int", "float", "fp"] | None = None
    act_bits: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits < WHOLE and self.data_type in ("float", "fp"):
            raise ValueError(
                f"data_type is {self.data_type!r} with {self.bits} bits; accepted: int"
            )


@dataclass(frozen=True, kw_only=True)
class AutoRound:
    """A quantization_config of AutoRound; which modules are quantized, their tensors tell."""

    quant_method: Literal["auto-round"]
    bits: Literal[4, 8]
    group_size: int  # -1: a row
    sym: bool = True
    data_type: Literal["int"] = "int"
    packing_format: str = "auto_round:gptq"
    extra_config: tuple[tuple, ...] = ()  # name or pattern, Layer
    modules_to_not_convert: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.packing_format not in PACKINGS:
            raise ValueError(
                f"packing_format is {self.packing_format!r}; accepted: {', '.join(PACKINGS)}"
            )

    def find(self, tensors: Tensors) -> Found:
        """Return the weights of all modules that have words."""
        modules = tensors.modules("qweight")
        if not modules:
            raise ConfigError(
                "quant_method is 'auto-round', but no tensor is quantized (X.qweight)"
            )
        named: dict[str, Layer] = dict(self.extra_config)
        by_part = by_patterns({name: name for name in named}, within=True)

        def entry(module: str) -> str | None:  # by its name, else the first pattern in it
            return module if module in named else by_part(module)

        layouts: dict[str, Layout] = {}
        settings: dict[str | None, Awq | Gptq] = {}  # by entry
        for module in modules:
            name = listed_as(module, entry)
            if name not in settings:
                settings[name] = self._of(Layer() if name is None else named[name], module)
            layouts[f"{module}.weight"] = settings[name].layout(tensors, module)
        return Found(layouts)

    def _of(self, own: Layer, module: str) -> Awq | Gptq:
        """Return the settings of AWQ or GPTQ that say the same of a module."""
        bits = self.bits if own.bits is None else own.bits
        group = self.group_size if own.group_size is None else own.group_size
        sym = self.sym if own.sym is None else own.sym
        if bits >= WHOLE:
            raise ConfigError(f"extra_config has {module} in {bits} bits, but it is quantized")
        given: dict[str, Any] = {"bits": bits, "group_size": group}
        at = f"{module}: "
        packing = PACKINGS[self.packing_format]
        if packing == AWQ:
            return parse(Awq, given | {"quant_method": AWQ, "zero_point": True}, at)
        given |= {"quant_method": GPTQ, "sym": sym, "checkpoint_format": packing}
        return parse(Gptq, given, at)


def read(raw: Mapping[str, Any], at: str, inert: Inert) -> AutoRound:
    """Parse a quantization_config; raises ConfigError for keys and values that are not read."""
    path = at.rpartition(": ")[2]
    extra = raw.get("extra_config") or {}
    if not isinstance(extra, Mapping):
        raise ConfigError(f"{at}extra_config is {extra!r:.80}; accepted: an object")
    parsed = []
    for name, layer in extra.items():
        within = f"extra_config.{name}."
        if not isinstance(layer, Mapping):
            raise ConfigError(f"{at}{within[:-1]} is {layer!r:.80}; accepted: an object")
        known = {**inert, **at_any_value(f"{path}{within}{key}" for key in OF_INPUTS)}
        parsed.append((name, parse(Layer, layer, f"{at}{within}", known)))
    known = {**inert, **at_any_value(f"{path}{key}" for key in TUNING)}
    return parse(AutoRound, {**raw, "extra_config": parsed}, at, known)
