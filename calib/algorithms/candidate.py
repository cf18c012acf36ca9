"""What an algorithm proposes for a layer, and how far the layer's outputs are then off."""

from dataclasses import dataclass

from torch import Tensor

from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.graphs.weights.quantized import Quantized
from lmcast.plugins.quantize.quantize_input import hadamard, quantize_input


@dataclass(frozen=True)
class Candidate:
    """A quantized weight N,K, whose layer is QuantizedLinear.

    Its columns are divided by `smooth` (K fp32, None for ones), and turned as the inputs are.
    """

    quantized: Quantized
    smooth: Tensor | None = None


def output_error(
    weight: Tensor,
    candidate: Candidate,
    x: Tensor,
    inputs: InputFormat,
    scale: Tensor | None = None,
    reference: Tensor | None = None,
) -> float:
    """Return the squared error of a layer's output on rows x n,K, relative to its squared size.

    weight N,K fp32: as it was. scale: of inputs that are static. reference n,K: what x would be had
    nothing before the layer been quantized, whose outputs are then the wanted ones. 0 where nothing
    is wanted and nothing found, infinite where only nothing is wanted.
    """
    wanted = (x if reference is None else reference) @ weight.T
    found = rounded(x, inputs, candidate.smooth, scale) @ candidate.quantized.dequantize().T
    size, error = float(wanted.square().sum()), float((found - wanted).square().sum())
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return error / size


def rounded(
    x: Tensor, inputs: InputFormat, smooth: Tensor | None, scale: Tensor | None = None
) -> Tensor:
    """Return what the product of a QuantizedLinear sees of its inputs ...,K."""
    if smooth is not None:
        x = x * smooth
    if inputs.format is None:
        return x
    near: Tensor = quantize_input(x, scale, inputs.format, inputs.rotation)
    return near


def rotated_columns(matrix: Tensor, inputs: InputFormat) -> Tensor:
    """Return a matrix ...,K whose columns are turned as inputs are before they are rounded."""
    if not inputs.rotation:
        return matrix
    turn = hadamard(inputs.rotation).to(matrix.device)
    blocks: Tensor = matrix.unflatten(-1, (-1, inputs.rotation)) @ turn
    return blocks.flatten(-2)


def fitted(weight: Tensor, inputs: InputFormat, smooth: Tensor | None) -> Tensor:
    """Return what a layer that rounds its inputs so must hold of its weight N,K."""
    return rotated_columns(weight if smooth is None else weight / smooth, inputs)
