"""Smoothing: a factor for every input channel, which the weight's columns are divided by."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lmcast.calib.algorithms.candidate import Candidate, Outputs, fitted, rounded
from lmcast.calib.algorithms.scales import searched
from lmcast.calib.formats import WeightFormat
from lmcast.calib.statistics import InputStatistics
from lmcast.graphs.blocks.quantized import InputFormat

Smoothing = Callable[[Tensor, InputStatistics, WeightFormat, InputFormat], Tensor | None]
GRID = [step / 10 for step in range(1, 11)]
# Of a layer, evenly spread, that factors are compared on. On all of them the error on text that was
# not seen was no less in INT4, and 2 % less in MXFP4, for five times the time (QUALITY.md).
OUTPUTS = 128
LEAST = 1e-5  # of the largest magnitude: channels that are nearly always 0 get no larger factor


def awq(
    weight: Tensor, statistics: InputStatistics, format: WeightFormat, inputs: InputFormat
) -> Tensor | None:
    """Activation-aware scaling (Lin et al. 2023): channels of large inputs get finer weights."""
    size = _bounded(statistics.mean)
    return _best((size**-power for power in GRID), weight, statistics, format, inputs)


def smoothquant(
    weight: Tensor, statistics: InputStatistics, format: WeightFormat, inputs: InputFormat
) -> Tensor | None:
    """SmoothQuant (Xiao et al. 2022): ranges move from the inputs to the weights."""
    most, largest = _bounded(statistics.most), _bounded(weight.abs().amax(0))
    tried = (largest ** (1 - power) / most**power for power in GRID)
    return _best(tried, weight, statistics, format, inputs)


def balanced(
    weight: Tensor, statistics: InputStatistics, format: WeightFormat, inputs: InputFormat
) -> Tensor | None:
    """Root mean squares instead of ranges: where inputs are rotated, sums of channels matter."""
    size = _bounded(statistics.gram.diagonal().sqrt())
    length = _bounded(weight.square().sum(0).sqrt())
    tried = ((length / size) ** power for power in GRID)
    return _best(tried, weight, statistics, format, inputs)


def _best(
    tried: Iterable[Tensor],
    weight: Tensor,
    statistics: InputStatistics,
    format: WeightFormat,
    inputs: InputFormat,
) -> Tensor | None:
    """Return the factors with the least error on the sampled inputs, None for ones."""
    some = weight[:: -(-len(weight) // OUTPUTS)]
    outputs = Outputs.of(some, statistics.rows, inputs)

    def error(smooth: Tensor | None) -> float:
        held = fitted(some, inputs, smooth)
        seen = rounded(statistics.rows, inputs, smooth)
        quantized = format.pack(held, *searched(held, format, seen.square().sum(0)))
        return outputs.error(Candidate(quantized, smooth))

    best, least = None, error(None)
    for factors in tried:
        smooth = factors / torch.sqrt(factors.amax() * factors.amin())
        if (found := error(smooth)) < least:
            best, least = smooth, found
    return best


def _bounded(size: Tensor) -> Tensor:
    most = size.amax()
    return size.clamp(min=float(most) * LEAST) if most > 0 else torch.ones_like(size)
