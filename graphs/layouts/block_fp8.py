"""DeepSeek's FP8: E4M3 with a scale per block of a matrix, or one for all of it."""

from dataclasses import dataclass
from typing import Literal

import torch

from lmcast.graphs.config.reading import ConfigError
from lmcast.graphs.layouts.stored import Stored, stored
from lmcast.graphs.layouts.tensors import Found, Tensors
from lmcast.graphs.weights.elements import E4M3
from lmcast.graphs.weights.quantized import Block, WeightError

SCALE = "_scale_inv"  # behind the name of a tensor; it multiplies, whatever it is called
SCALES = (torch.float32, torch.bfloat16, torch.float8_e8m0fnu)


@dataclass(frozen=True, kw_only=True)
class Fp8Settings:
    """A quantization_config of FP8; which tensors are stored so, their scales tell."""

    quant_method: Literal["fp8"]
    fmt: Literal["e4m3", "float8_e4m3fn"] = "e4m3"
    weight_block_size: tuple[int, ...] | None = None  # without one, a tensor has one scale
    scale_fmt: Literal["float", "ue8m0"] = "float"  # a promise: also fp32 holds powers of two
    expert_dtype: Literal["fp8"] = "fp8"
    activation_scheme: Literal["dynamic", "static"] = "dynamic"  # static: their scales are stored
    modules_to_not_convert: tuple[str, ...] | None = None
    ignored_layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        block = self.weight_block_size
        if block is not None and (len(block) != 2 or min(block) < 1):
            raise ValueError(f"weight_block_size is {list(block)}; accepted: two numbers from 1")

    def find(self, tensors: Tensors) -> Found:
        """Return the weights that have scales behind them."""
        given = self.weight_block_size
        block: Block = (0, 0) if given is None else (given[0], given[1])
        names = [n.removesuffix(SCALE) for n in tensors.shapes if n.endswith(SCALE)]
        if not names:
            raise ConfigError(
                f"quant_method is 'fp8', but no tensor has scales (NAME{SCALE});"
                " take quantization_config out if the weights are plain numbers"
            )
        layouts = {name: _layout(tensors, name, block) for name in names}
        static = self.activation_scheme == "static"
        return Found(layouts, tensors.activations(layouts) if static else frozenset())


def _layout(tensors: Tensors, name: str, block: Block) -> Stored:
    if name not in tensors.shapes:
        raise WeightError(f"tensor {name}{SCALE} is a scale, but {name} is missing")
    module, _, leaf = name.rpartition(".")
    return stored(tensors, module, E4M3, block, leaf, f"{leaf}{SCALE}", SCALES)
