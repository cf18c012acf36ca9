"""Static scales of inputs, from what calibration saw of them.

A threshold is the largest magnitude that a scale can express; every observer chooses one.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lmcast.calib.statistics import BINS, InputStatistics, StatisticsError
from lmcast.plugins.numbers import E2M1_MOST, E4M3_MOST, round_e4m3

PERCENTILE = 0.9999  # of the magnitudes lie below the threshold
THRESHOLDS = [step / 100 for step in range(5, 101)]  # of the largest magnitude: what is tried
# What a scale of 1 can express. nvfp4: its static scale is what block scales are divided by.
MOST = {"fp8": E4M3_MOST, "int8": 127.0, "nvfp4": E2M1_MOST * E4M3_MOST}
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
    if observer not in OBSERVERS or format not in MOST:
        raise StatisticsError(
            f"observer {observer!r} of {format!r} inputs; accepted: {', '.join(OBSERVERS)} of"
            f" {', '.join(MOST)}"
        )
    largest = float(statistics.most.max())
    if largest == 0:
        return 1.0  # any scale expresses 0
    if observer == "maximum":
        return largest / MOST[format]
    if observer == "percentile":
        return min(_percentile(statistics.histogram), largest) / MOST[format]
    if format not in ROUND:
        raise StatisticsError(
            f"observer {observer!r} of {format} inputs; accepted: maximum, percentile"
        )
    tried = [largest * part / MOST[format] for part in THRESHOLDS]
    costs = [OBSERVERS[observer](statistics.histogram, scale, format) for scale in tried]
    return tried[costs.index(min(costs))]


def magnitudes() -> Tensor:
    """Return the middle of every bin of a histogram, fp32; of the first, which has zeros, 0."""
    low = (torch.arange(BINS, dtype=torch.int32) << 16).view(torch.float32)
    middle = (torch.arange(BINS, dtype=torch.int32) << 16 | 1 << 15).view(torch.float32)
    return torch.where(low > 0, middle, 0)


def _percentile(histogram: Tensor) -> float:
    """Return the upper end of the bin that PERCENTILE of the magnitudes are not above."""
    below = histogram.cumsum(0)
    bin = int((below < PERCENTILE * int(below[-1])).sum())
    return float((torch.tensor(bin + 1, dtype=torch.int32) << 16).view(torch.float32))


def _mse(histogram: Tensor, scale: float, format: str) -> float:
    size = magnitudes()
    error = ROUND[format](size / scale) * scale - size
    seen = histogram > 0  # bins of Inf and NaN are empty
    return float((error[seen].double().square() * histogram[seen]).sum())


def _entropy(histogram: Tensor, scale: float, format: str) -> float:
    """Return the divergence from the magnitudes of what is left of them.

    As in TensorRT's calibration (Migacz, GTC 2017): what is above the threshold is counted in its
    bin; every value of the format is spread evenly over the bins that round to it.
    """
    seen = (histogram > 0).nonzero()[:, 0]
    size, counts = magnitudes()[seen], histogram[seen].double()
    within = size <= scale * MOST[format]
    if not within.any():
        return float("inf")
    wanted = counts[within].clone()
    wanted[-1] += counts[~within].sum()
    _, level = ROUND[format](size[within] / scale).unique(return_inverse=True)
    total = torch.zeros(int(level.max()) + 1, dtype=torch.float64)
    found = total.index_add(0, level, counts[within])[level] / level.bincount()[level]
    p, q = wanted / wanted.sum(), found / found.sum()
    return float((p * (p / q).log()).sum())


OBSERVERS: Mapping[str, Callable[[Tensor, float, str], float]] = {"mse": _mse, "entropy": _entropy}
