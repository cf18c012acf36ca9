"""The catalogue of algorithms that choose the codes of a weight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lmcast.calib.algorithms.candidate import Candidate, Outputs
from lmcast.calib.algorithms.gptq import gptq, refined
from lmcast.calib.algorithms.problem import Problem
from lmcast.calib.algorithms.scales import searched
from lmcast.calib.algorithms.smoothing import Smoothing, awq, balanced, smoothquant
from lmcast.calib.formats import WeightFormat
from lmcast.graphs.weights.quantized import Quantized

__all__ = ["ALGORITHMS", "Algorithm", "Candidate", "Outputs", "Problem"]


def nearest(problem: Problem, format: WeightFormat) -> Quantized:
    return format.pack(problem.weight)


def clipped(problem: Problem, format: WeightFormat) -> Quantized:
    scales, shared = searched(problem.weight, format, problem.energy)
    return format.pack(problem.weight, scales, shared)


@dataclass(frozen=True)
class Algorithm:
    """How to smooth, then how to choose codes."""

    name: str
    rounding: Callable[[Problem, WeightFormat], Quantized]
    smoothing: Smoothing | None = None

    def run(self, problem: Problem, format: WeightFormat) -> Candidate:
        """Return codes for the weight of a problem without smoothing.

        The candidate's `smooth` is None where smoothing does not help: InputFormat.smooth of the
        layer says whether it has any. `inputs.static` is not used here.
        """
        given = problem.original, problem.statistics, format, problem.inputs
        smooth = self.smoothing and self.smoothing(*given)
        return Candidate(self.rounding(problem.smoothed(smooth), format), smooth)


ALGORITHMS: Mapping[str, Algorithm] = {
    a.name: a
    for a in (
        Algorithm("rtn", nearest),
        Algorithm("clip", clipped),
        Algorithm("awq", nearest, awq),
        Algorithm("awq+clip", clipped, awq),
        Algorithm("smoothquant", nearest, smoothquant),
        Algorithm("balance+clip", clipped, balanced),
        Algorithm("gptq", gptq),
        Algorithm("gptq+refine", refined),
        Algorithm("awq+gptq", gptq, awq),
        Algorithm("awq+gptq+refine", refined, awq),
        Algorithm("smoothquant+gptq+refine", refined, smoothquant),
        Algorithm("balance+gptq+refine", refined, balanced),
    )
}
