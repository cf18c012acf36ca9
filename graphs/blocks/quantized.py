"""A linear layer with low-precision inputs: they are rounded before the product."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.weights.bind import Wide
from lmcast.plugins.quantize.quantize_input import hadamard, quantize_input


@dataclass(frozen=True)
class InputFormat:
    """How the inputs of a linear layer are rounded.

    format: a name of quantize_input, None for not at all.
    rotation: runs of this many inputs are first multiplied with a Hadamard matrix; 0: none.
    static: with a measured scale, instead of one from each token.
    smooth: each input channel is first multiplied with a factor of its own.
    """

    format: str | None = None
    rotation: int = 0
    static: bool = False
    smooth: bool = False


class QuantizedLinear(Wide):
    """`linear(quantize(x * smooth), weight) + bias`, with the parameters of the given layer."""

    wide = ("input_scale",)

    def __init__(self, linear: nn.Linear, inputs: InputFormat):
        super().__init__()
        self.weight, self.bias, self.inputs = linear.weight, linear.bias, inputs
        device, width = linear.weight.device, linear.weight.shape[1]
        self.smooth = nn.Parameter(torch.empty(width, device=device)) if inputs.smooth else None
        scale = nn.Parameter(torch.empty((), device=device)) if inputs.static else None
        self.input_scale = scale

    def forward(self, x: Tensor) -> Tensor:
        if self.smooth is not None:
            x = x * self.smooth
        if self.inputs.format is not None:
            x = quantize_input(x, self.input_scale, self.inputs.format, self.inputs.rotation)
        elif self.inputs.rotation:
            size = self.inputs.rotation
            x = (x.unflatten(-1, (-1, size)) @ hadamard(size).to(x)).flatten(-2)
        return F.linear(x, self.weight, self.bias)
