"""bitsandbytes' LLM.int8(): rows of int8 by their largest absolute value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.reading import ConfigError, parse
from lmcast.graphs.layouts.stored import require_shape
from lmcast.graphs.layouts.tensors import UNDONE, Found, Tensors, by_part, require_listed
from lmcast.graphs.weights.elements import INT8
from lmcast.graphs.weights.quantized import Quantized, ReadRows, Scheme, Shapes, WeightError

MOST = 127  # the code of the largest absolute value
ROWS = 0  # the number of the only order of columns that files have
FOUR = ("_load_in_4bit", "load_in_4bit")
# What inputs are multiplied in, and what concerns 4 bits alone.
_INERT = """
_load_in_8bit bnb_4bit_compute_dtype bnb_4bit_quant_storage bnb_4bit_quant_type
bnb_4bit_use_double_quant llm_int8_enable_fp32_cpu_offload llm_int8_threshold
"""
INERT = _INERT.split()


@dataclass(frozen=True, kw_only=True)
class Int8Settings:
    """A quantization_config of 8 bits; which modules are quantized, their tensors tell."""

    quant_method: Literal["bitsandbytes"] = "bitsandbytes"
    load_in_8bit: Literal[True]
    llm_int8_has_fp16_weight: Literal[False] = False
    llm_int8_skip_modules: tuple[str, ...] | None = None

    def find(self, tensors: Tensors) -> Found:
        """Return the weights of all modules that have scales."""
        modules = tensors.modules("SCB")
        if not modules:
            raise ConfigError("load_in_8bit is true, but no tensor has scales (X.SCB)")
        left = self.llm_int8_skip_modules or ()
        require_listed(modules, tensors, "llm_int8_skip_modules", left, by_part(left))
        return Found({f"{x}.weight": _layout(tensors, x) for x in modules})


def is_own(raw: Mapping[str, Any]) -> bool:
    """Tell whether a section is of bitsandbytes, which need not name its quant_method."""
    return bool({"load_in_4bit", "load_in_8bit"} & raw.keys())


def read(raw: Mapping[str, Any], at: str, inert: Inert) -> Int8Settings:
    """Parse a quantization_config; raises ConfigError for keys and values that are not read."""
    path = at.rpartition(": ")[2]
    if any(raw.get(key) for key in FOUR):
        raise ConfigError(f"{at}load_in_4bit is true; accepted: 8 bits; {UNDONE}")
    rest = {key: value for key, value in raw.items() if key not in FOUR}
    known = {**inert, **at_any_value(f"{path}{key}" for key in INERT)}
    return parse(Int8Settings, rest, at, known)


def _layout(tensors: Tensors, module: str) -> "Int8Rows":
    packed, scales, order = (f"{module}.{x}" for x in ("weight", "SCB", "weight_format"))
    tensors.dtype(packed, (torch.int8,), module)
    scale = tensors.dtype(scales, (torch.float32,), packed)
    tensors.dtype(order, (torch.uint8,), packed)
    if len(tensors.shapes[packed]) != 2:
        shown = list(tensors.shapes[packed])
        raise WeightError(f"tensor {packed} has shape {shown}; accepted: a matrix")
    return Int8Rows(Scheme(INT8, (1, 0), scale), packed, scales, order)


@dataclass(frozen=True)
class Int8Rows:
    """Codes N,K; scales N, each 127 times what its row counts in; the order of the columns."""

    scheme: Scheme
    packed: str
    scales: str
    order: str

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.packed, self.scales, self.order)

    @property
    def format(self) -> Scheme:
        return self.scheme

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        shape = shapes[self.packed]
        require_shape(self.scales, shapes, [shape[:1]], self.packed, "rows")
        require_shape(self.order, shapes, [(), (1,)], self.packed, "one order")
        return shape

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        return self.codes(read, begin, end).dequantize()

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        if (order := int(read(self.order, 0, None))) != ROWS:
            raise WeightError(
                f"tensor {self.order} is {order}, an order of columns of a GPU; accepted: {ROWS};"
                f" {UNDONE}"
            )
        codes = read(self.packed, begin, end).view(torch.uint8)
        return Quantized(self.scheme, codes, read(self.scales, begin, end)[:, None] / MOST)
