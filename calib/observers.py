"""Observers: static scales of inputs from their statistics.

A threshold is the largest magnitude that a scale can express; every observer chooses one.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lmcast.calib.statistics import BINS, InputStatistics, StatisticsError
from lmcast.plugins.rounding import E2M1_MOST, E4M3_MOST, round_e4m3

PERCENTILE = 0.9999  # of the magnitudes lie below the threshold
THRESHOLDS = [step / 100 for step in range(100, 4, -1)]  # of the largest magnitude: what is tried
# What a scale of 1 can express. nvfp4: its static scale is what block scales are divided by.
MOST = {"fp8": E4M3_MOST, "int8": 127.0, "nvfp4": E2M1_MOST * E4M3_MOST}
SIMPLE = ("maximum", "percentile")
OBSERVERS = (*SIMPLE, "mse", "entropy")
ROUND: Mapping[str, Callable[[Tensor], Tensor]] = {
    "fp8": round_e4m3,
    "int8": lambda x: x.round().clamp(max=127),  # of magnitudes
}


def static_scale(statistics: InputStatistics, format: str, observer: str) -> float:
    """Return the scale of inputs for quantize_input.

    observer: 'maximum', 'percentile', 'mse' (least squared error) or 'entropy' (least Kullback-
    Leibler divergence of the rounded from the true magnitudes). Raises StatisticsError for inputs
    that were never seen, and for mse and entropy of nvfp4, whose error no single scale decides.
    """
    if not statistics.count:
        raise StatisticsError("inputs of a layer were never seen; calibrate with more text")
    accepted = OBSERVERS if format in ROUND else SIMPLE
    if format not in MOST or observer not in accepted:
        raise StatisticsError(
            f"observer {observer!r} of {format} inputs; accepted: {', '.join(accepted)} of"
            f" {', '.join(MOST)}"
        )
    largest = float(statistics.most.max())
    if largest == 0:
        return 1.0  # any scale expresses 0
    if observer == "maximum":
        return largest / MOST[format]
    if observer == "percentile":
        return min(_percentile(statistics.histogram), largest) / MOST[format]
    cost = {"mse": _mse, "entropy": _entropy}[observer]
    seen = statistics.histogram.nonzero()[:, 0]  # bins of Inf and NaN are empty
    size, counts = magnitudes()[seen].clamp(max=largest), statistics.histogram[seen].double()
    tried = [largest * part / MOST[format] for part in THRESHOLDS]
    return min(tried, key=lambda scale: cost(size, counts, scale, format))


def magnitudes() -> Tensor:
    """Return the middle of every bin of a histogram, fp32; of the first, which has zeros, 0."""
    low = (torch.arange(BINS, dtype=torch.int32) << 16).view(torch.float32)
    middle = (torch.arange(BINS, dtype=torch.int32) << 16 | 1 << 15).view(torch.float32)
    return torch.where(low > 0, middle, 0)


def _percentile(histogram: Tensor) -> float:
    """Return the PERCENTILE of the magnitudes, as the upper end of a bin."""
    below = histogram.cumsum(0)
    bin = int((below < PERCENTILE * int(below[-1])).sum())
    return float((torch.tensor(bin + 1, dtype=torch.int32) << 16).view(torch.float32))


def _mse(size: Tensor, counts: Tensor, scale: float, format: str) -> float:
    """Return the squared error of a histogram of magnitudes."""
    error = ROUND[format](size / scale) * scale - size
    return float((error.double().square() * counts).sum())


def _entropy(size: Tensor, counts: Tensor, scale: float, format: str) -> float:
    """Return the Kullback-Leibler divergence of the rounded magnitudes from the true ones.

    As in TensorRT's calibration (Migacz, GTC 2017): magnitudes above the threshold count as the
    largest below it, and a value of the format stands evenly for all bins that round to it.
    """
    within = size <= scale * MOST[format] * (1 + 1e-6)  # the threshold itself, however rounded
    if not within.any():
        return float("inf")
    wanted = counts[within].clone()
    wanted[-1] += counts[~within].sum()
    _, level = ROUND[format](size[within] / scale).unique(return_inverse=True)
    total = torch.zeros(int(level.max()) + 1, dtype=torch.float64)
    found = total.index_add(0, level, counts[within])[level] / level.bincount()[level]
    p, q = wanted / wanted.sum(), found / found.sum()
    return float((p * (p / q).log()).sum())
