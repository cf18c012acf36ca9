"""A candidate quantization of a layer, and the error of the layer's outputs with it."""

from dataclasses import dataclass

from torch import Tensor

from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.graphs.weights.quantized import Quantized
from lmcast.plugins.quantize.quantize_input import hadamard, quantize_input


@dataclass(frozen=True)
class Candidate:
    """A quantized weight N,K for a QuantizedLinear.

    Its columns are divided by `smooth` (K fp32, None for ones), and rotated as the inputs are.
    """

    quantized: Quantized
    smooth: Tensor | None = None


@dataclass(frozen=True)
class Outputs:
    """What a layer is to give, for candidates to be compared with.

    wanted: n,N. x: n,K, inputs of the layer in the quantized model. inputs: how they are rounded.
    scale: of static inputs.
    """

    wanted: Tensor
    x: Tensor
    inputs: InputFormat
    scale: Tensor | None

    @classmethod
    def of(
        cls,
        weight: Tensor,
        x: Tensor,
        inputs: InputFormat,
        scale: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> "Outputs":
        """Take an unquantized weight N,K fp32, and x n,K.

        reference: n,K or None, the same inputs in the unquantized model, whose outputs are then the
            wanted ones.
        """
        return cls((x if reference is None else reference) @ weight.T, x, inputs, scale)

    def error(self, candidate: Candidate) -> float:
        """Return the squared error of the outputs, relative to their squared size.

        0 where wanted and actual outputs are all 0, infinite where only the wanted ones are.
        """
        seen = rounded(self.x, self.inputs, candidate.smooth, self.scale)
        size = float(self.wanted.square().sum())
        found = seen @ candidate.quantized.dequantize().T
        error = float(found.sub_(self.wanted).square_().sum())
        if size == 0:
            return 0.0 if error == 0 else float("inf")
        return error / size


def rounded(
    x: Tensor, inputs: InputFormat, smooth: Tensor | None, scale: Tensor | None = None
) -> Tensor:
    """Return the inputs ...,K as the product of a QuantizedLinear sees them: smoothed, then
    rounded."""
    if smooth is not None:
        x = x * smooth
    if inputs.format is None:
        return x
    near: Tensor = quantize_input(x, scale, inputs.format, inputs.rotation)
    return near


def rotated_columns(matrix: Tensor, inputs: InputFormat) -> Tensor:
    """Rotate the columns of a matrix ...,K as inputs are rotated before they are rounded."""
    if not inputs.rotation:
        return matrix
    turn = hadamard(inputs.rotation).to(matrix.device)
    blocks: Tensor = matrix.unflatten(-1, (-1, inputs.rotation)) @ turn
    return blocks.flatten(-2)


def fitted(weight: Tensor, inputs: InputFormat, smooth: Tensor | None) -> Tensor:
    """Return the weight N,K of a layer whose inputs are smoothed and rotated like this."""
    return rotated_columns(weight if smooth is None else weight / smooth, inputs)
