"""AWQ (AutoAWQ's gemm): 4-bit integers packed into words along the outputs, input-first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.reading import ConfigError, parse
from lmcast.graphs.layouts.gptq import TUNING
from lmcast.graphs.layouts.stored import bytes_of, require_shape
from lmcast.graphs.layouts.tensors import FLOATS, Found, Tensors
from lmcast.graphs.weights.elements import INT4, halves, pairs
from lmcast.graphs.weights.quantized import Quantized, ReadRows, Scheme, Shapes, WeightError

# Where in a word its numbers 0 to 7 lie, counted in halves of bytes from the lowest.
PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
EIGHT = 8  # the middle of four bits
# sym: zero points are stored, whatever they are.
INERT = ("do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse", "sym", *TUNING)


@dataclass(frozen=True, kw_only=True)
class Awq:
    """A quantization_config of AWQ; which modules are quantized, their tensors tell."""

    quant_method: Literal["awq"]
    bits: Literal[4]
    group_size: int  # -1: a row
    zero_point: Literal[True]
    version: Literal["gemm", "GEMM"] = "gemm"
    data_type: Literal["int"] = "int"
    modules_to_not_convert: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.group_size < 1 and self.group_size != -1:
            raise ValueError(f"group_size is {self.group_size}; accepted: -1 or from 1")

    def find(self, tensors: Tensors) -> Found:
        """Return the weights of all modules that have words."""
        modules = tensors.modules("qweight")
        if not modules:
            raise ConfigError("quant_method is 'awq', but no tensor is quantized (X.qweight)")
        entries = self.modules_to_not_convert or ()
        for module in modules:
            # By whole parts of its path: 'gate' is a router's, and no gate_proj is meant.
            left = next((x for x in entries if f".{x.strip('.')}." in f".{module}."), None)
            if left is not None:
                raise ConfigError(
                    f"modules_to_not_convert has {left!r}, but {module} is quantized; one is wrong"
                )
        return Found({f"{x}.weight": self.layout(tensors, x) for x in modules})

    def layout(self, tensors: Tensors, module: str) -> "OutputWords":
        """Return how a module's weight is stored; raises WeightError where its tensors do not
        fit."""
        packed, zeros, scales = (f"{module}.{x}" for x in ("qweight", "qzeros", "scales"))
        for name in (packed, zeros):
            tensors.dtype(name, (torch.int32,), packed)
        if len(tensors.shapes[packed]) != 2:
            raise WeightError(
                f"tensor {packed} has shape {list(tensors.shapes[packed])}; accepted: a matrix"
            )
        group = 0 if self.group_size == -1 else self.group_size
        scale = tensors.dtype(scales, FLOATS, packed)
        return OutputWords(Scheme(INT4, (1, group), scale, zeros=True), packed, zeros, scales)


def read(raw: Mapping[str, Any], at: str, inert: Inert) -> Awq:
    """Parse a quantization_config; raises ConfigError for keys and values that are not read."""
    path = at.rpartition(": ")[2]
    return parse(Awq, raw, at, {**inert, **at_any_value(f"{path}{key}" for key in INERT)})


@dataclass(frozen=True)
class OutputWords:
    """Words K,N/8, their numbers out of order; zeros likewise G,N/8; scales G,N."""

    scheme: Scheme
    packed: str
    zeros: str
    scales: str

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.packed, self.zeros, self.scales)

    @property
    def format(self) -> Scheme:
        return self.scheme

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        columns, words = shapes[self.packed]
        rows = words * 8
        high = self.scheme.scales_shape((rows, columns))[1]
        how = f"groups of {self.scheme.block[1] or columns}"
        require_shape(self.scales, shapes, [(high, rows)], self.packed, how)
        require_shape(self.zeros, shapes, [(high, words)], self.packed, how)
        return rows, columns

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        return self.codes(read, begin, end).dequantize()

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        numbers = _numbers(read(self.packed, 0, None), begin, end)  # n,K
        zeros = _numbers(read(self.zeros, 0, None), begin, end).short() - EIGHT
        scales = read(self.scales, 0, None)[:, begin:end].T
        return Quantized(self.scheme, pairs(numbers) ^ INT4.signs, scales, zeros=zeros)


def _numbers(words: Tensor, begin: int, end: int) -> Tensor:
    """Return the numbers of rows of a weight from words K,N/8: n,K."""
    first = begin // 8
    packed = halves(bytes_of(words[:, first : -(-end // 8)])).unflatten(-1, (-1, 8))
    numbers = packed[..., PLACES].flatten(-2)  # K,N
    return numbers[:, begin - 8 * first : end - 8 * first].T
