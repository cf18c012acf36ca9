"""Static scales against the same choices made on the values themselves."""

import math

import pytest
import torch
from torch import Tensor

from lmcast.calib.observers import MOST, PERCENTILE, THRESHOLDS, static_scale
from lmcast.calib.statistics import InputStatistics, StatisticsError
from lmcast.plugins.quantize.quantize_input import quantize_input


def values() -> Tensor:
    """Mostly normal, and a few that are far out."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, 64, generator=random)
    x[::100, 3] = 40.0
    return x


def counted(x: Tensor) -> InputStatistics:
    statistics = InputStatistics(x.shape[1])
    for part in x.split(150):
        statistics.add(part)
    return statistics


@pytest.mark.parametrize("format", MOST)
def test_maximum(format: str):
    x = values()
    assert static_scale(counted(x), format, "maximum") == float(x.abs().max()) / MOST[format]


def test_percentile():
    x = values().abs().flatten()
    found = static_scale(counted(values()), "int8", "percentile") * MOST["int8"]
    wanted = float(x.sort().values[math.ceil(PERCENTILE * len(x)) - 1])
    assert wanted <= found <= wanted * (1 + 1 / 128)  # the upper end of its bin


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_mse(format: str):
    x = values()

    def error(scale: float) -> float:
        rounded = quantize_input(x, torch.tensor(scale), format, 0)
        return float((rounded - x).double().square().sum())

    most = float(x.abs().max()) / MOST[format]
    least = min(error(most * part) for part in THRESHOLDS)
    # Bins have 7 bits: errors of their middles differ a little from those of what lies in them.
    assert error(static_scale(counted(x), format, "mse")) <= 1.01 * least
    assert least <= error(most)


def test_entropy():
    """The divergence, from lists of the bins' values; these values are the middles of bins."""
    x = (1 + (torch.arange(128) + 0.5) / 128) * 2.0 ** torch.arange(-6, 3)[:, None]
    x = x.flatten()
    counts = torch.exp(-x.square()).mul(2000).round().long() + 1
    rows = x.repeat_interleave(counts)[:, None]
    most = float(x.max()) / MOST["int8"]

    def divergence(scale: float) -> float:
        inside = [(v, n) for v, n in zip(x.tolist(), counts.tolist(), strict=True)
                  if v <= scale * 127]  # fmt: skip
        outside = int(counts.sum()) - sum(n for _, n in inside)
        levels: dict[int, list[int]] = {}
        for v, n in inside:
            levels.setdefault(min(round(v / scale), 127), []).append(n)
        q = [
            sum(levels[min(round(v / scale), 127)]) / len(levels[min(round(v / scale), 127)])
            for v, _ in inside
        ]
        p = [n for _, n in inside]
        p[-1] += outside
        return sum(
            a / sum(p) * math.log(a / sum(p) * sum(q) / b) for a, b in zip(p, q, strict=True)
        )

    best = min(divergence(most * part) for part in THRESHOLDS)
    found = static_scale(counted(rows), "int8", "entropy")
    assert divergence(found) == pytest.approx(best, rel=1e-3)
    assert found < most


def test_far_values_are_clipped_only_where_that_pays():
    x = values()
    for observer in ("mse", "entropy"):
        assert static_scale(counted(x), "int8", observer) <= float(x.abs().max()) / 127
    even = torch.rand(400, 64, generator=torch.Generator().manual_seed(1))
    assert static_scale(counted(even), "int8", "mse") > 0.95 * float(even.max()) / 127


@pytest.mark.parametrize("observer", ["maximum", "percentile", "mse", "entropy"])
def test_zeros_and_a_constant(observer: str):
    assert static_scale(counted(torch.zeros(3, 4)), "fp8", observer) > 0
    scale = static_scale(counted(torch.full((3, 4), 2.5)), "fp8", observer)
    rounded = quantize_input(torch.full((1, 4), 2.5), torch.tensor(scale), "fp8", 0)
    assert (rounded - 2.5).abs().max() <= 2.5 / 16


def test_refused():
    with pytest.raises(StatisticsError, match="never seen"):
        static_scale(InputStatistics(4), "fp8", "maximum")
    with pytest.raises(StatisticsError, match="observer 'median' of fp8 inputs; accepted: maximum"):
        static_scale(counted(values()), "fp8", "median")
    with pytest.raises(StatisticsError, match="accepted: maximum, percentile"):
        static_scale(counted(values()), "nvfp4", "mse")
