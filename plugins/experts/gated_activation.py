"""The activation of a gated feed-forward, of what one product has made: gates and ups side by side.

Letters: I inner width; `...` stands for any leading axes.
"""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.experts.moe_experts import ACTIVATIONS
from lmcast.plugins.onnx_builder import Attribute, Builder, Value
from lmcast.plugins.plugin import Close, Plugin, rounded, triton


def eager(both: Tensor, activation: str) -> Tensor:
    """Multiply ups with the activation of their gates.

    both: ...,2I, gates before ups.
    activation: a name of moe_experts.ACTIVATIONS that takes no numbers.

    Returns ...,I.
    """
    gate, up = both.chunk(2, -1)
    return ACTIVATIONS[activation][0](gate, up, 0.0, 0.0)


def shapes(both: Tensor, *_: object) -> Tensor:
    return both.new_empty((*both.shape[:-1], both.shape[-1] // 2))


def body(op: Builder, both: Value, activation: Attribute) -> Value:
    gate, up = op.several("Split", 2, both, axis=-1, num_outputs=2)
    return ACTIVATIONS[activation.value][1](op, gate, up, 0.0, 0.0)


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    return [  # ONNX's own evaluator has no Gelu
        (torch.randn(2, 3, 20), "silu"),
        (torch.randn(1, 1, 256), "relu"),  # decode
        (torch.randn(1, 5, 2100), "silu"),  # more than a program takes, and no power of two
    ]


gated_activation = Plugin(
    name="gated_activation",
    eager=eager,
    shapes=shapes,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # Relative: an activation and a product, each rounded; of the exponential and the error function
    # a few epsilons more. Eager in 16 bits rounds the activation, the kernel does not.
    close={torch.float32: Close(2e-6, 2e-6), **rounded(2)},
)
