"""Feed-forward blocks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Hugging Face's activation table, without the two that carry parameters (prelu, xielu).
ActivationName = Literal[
    "silu", "swish", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python",
    "gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish",
    "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "sqrtsoftplus", "tanh",
]  # fmt: skip


def clipped_gelu(x: Tensor) -> Tensor:
    return F.gelu(x).clamp(-10, 10)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def hardswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def laplace(x: Tensor) -> Tensor:
    """The normal distribution function of MEGA (arXiv 2209.10655)."""
    return 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2))))


def sqrtsoftplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


def identity(x: Tensor) -> Tensor:
    return x


_tanh_gelu = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[ActivationName, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_10": clipped_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "hardswish": hardswish,
    "laplace": laplace,
    "leaky_relu": F.leaky_relu,
    "linear": identity,
    "mish": F.mish,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu2": relu2,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": sqrtsoftplus,
    "tanh": torch.tanh,
}


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))`; `act` is a name of ACTIVATIONS."""

    def __init__(self, dim: int, inner: int, *, act: ActivationName = "silu", bias: bool = False):
        super().__init__()
        self.gate = nn.Linear(dim, inner, bias=bias)
        self.up = nn.Linear(dim, inner, bias=bias)
        self.down = nn.Linear(inner, dim, bias=bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.act](self.gate(x)) * self.up(x))


class PlainMLP(nn.Module):
    """`down(act(up(x)))`; `act` is a name of ACTIVATIONS."""

    def __init__(self, dim: int, inner: int, *, act: ActivationName, bias: bool = False):
        super().__init__()
        self.up = nn.Linear(dim, inner, bias=bias)
        self.down = nn.Linear(inner, dim, bias=bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.act](self.up(x)))
