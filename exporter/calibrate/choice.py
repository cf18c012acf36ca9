"""The choice between algorithms for a weight: the least error on held-out text.

Letters: n rows, K columns.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmcast.calib.algorithms import ALGORITHMS, Candidate, Outputs, Problem
from lmcast.calib.formats import WEIGHTS
from lmcast.calib.observers import static_scale
from lmcast.calib.presets import Preset
from lmcast.calib.statistics import InputStatistics
from lmcast.graphs.blocks.quantized import InputFormat

HELD_ROWS = 512  # that candidates are compared on: the error of a layer is a sum over many outputs


@dataclass(frozen=True)
class Held:
    """Held-out inputs n,K, and the same inputs in the unquantized model."""

    x: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True)
class Proposal:
    """The result of an algorithm; error: of the outputs on held-out rows, relative."""

    algorithm: str
    candidate: Candidate
    error: float


@dataclass(frozen=True)
class Choice:
    """base: of the first algorithm of the ladder. scale: of static inputs."""

    kept: Proposal
    base: Proposal
    inputs: InputFormat
    scale: Tensor | None


def choose(
    weight: Tensor,
    statistics: InputStatistics,
    held: Held,
    preset: Preset,
    observer: str,
) -> Choice:
    """Run the algorithms of a preset on a weight N,K fp32, and keep the best, the first of
    equals."""
    format, inputs = WEIGHTS[preset.weights], preset.inputs
    scale = None
    if inputs.format is not None and inputs.static:
        scale = torch.tensor(static_scale(statistics, inputs.format, observer))
    outputs = Outputs.of(weight, held.x, inputs, scale, held.reference)
    problem, base, kept = Problem(weight, statistics, inputs), None, None
    for name in preset.ladder:
        candidate = ALGORITHMS[name].run(problem, format)
        proposal = Proposal(name, candidate, error := outputs.error(candidate))
        base = base or proposal
        # A NaN is not less than anything.
        kept = proposal if kept is None or error < kept.error else kept
    assert base is not None and kept is not None, "a preset with an empty ladder"
    return Choice(kept, base, inputs, scale)


def weight_only(preset: Preset) -> Preset:
    """Return a preset for weights whose inputs are neither rounded nor smoothed: experts."""
    ladder = tuple(name for name in preset.ladder if ALGORITHMS[name].smoothing is None)
    return replace(preset, inputs=InputFormat(), ladder=ladder)
