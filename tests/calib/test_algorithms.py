"""Algorithms against plain rounding, against their definitions, and on inputs that tell nothing."""

import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lmcast.calib.algorithms import ALGORITHMS, Candidate, Outputs
from lmcast.calib.algorithms.candidate import fitted, rotated_columns
from lmcast.calib.algorithms.columns import Columns
from lmcast.calib.algorithms.gptq import gptq
from lmcast.calib.algorithms.problem import LEAST_DAMPING, Problem
from lmcast.calib.algorithms.root import root
from lmcast.calib.formats import WEIGHTS, WeightFormat
from lmcast.calib.presets import PRESETS
from lmcast.calib.statistics import ROWS, InputStatistics, StatisticsError
from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.plugins.quantize.quantize_input import BLOCKS

WIDTH, OUTPUTS = 128, 24
PLAIN = InputFormat()
CASES = [
    ("mxfp4", PLAIN),
    ("mxfp4", InputFormat("mxfp8")),
    ("mxfp4", InputFormat("mxfp4", rotation=32)),
    ("nvfp4", InputFormat("nvfp4")),
    ("int4", PLAIN),
    ("int4-128", PLAIN),
    ("int8", InputFormat("int8")),
    ("fp8-channel", PLAIN),
    ("fp8", PLAIN),
    ("fp8-block", PLAIN),
]


def layer(tokens: int = 768) -> tuple[Tensor, Tensor]:
    """A weight, and inputs whose channels differ in size and depend on one another."""
    random = torch.Generator().manual_seed(0)
    mixed = torch.randn(tokens, WIDTH // 4, generator=random)
    mixed = mixed @ torch.randn(WIDTH // 4, WIDTH, generator=random) / 4
    x = (mixed + torch.randn(tokens, WIDTH, generator=random)) * torch.exp(
        torch.randn(WIDTH, generator=random)
    )
    return torch.randn(OUTPUTS, WIDTH, generator=random) / 8, x


def counted(x: Tensor, reference: Tensor | None = None) -> InputStatistics:
    statistics = InputStatistics(x.shape[1])
    statistics.add(x, reference)
    return statistics


def output_error(weight: Tensor, candidate: Candidate, *given: Any) -> float:
    return Outputs.of(weight, *given).error(candidate)


def gram(problem: Problem) -> Tensor:
    return problem.rows(torch.arange(WIDTH), slice(0, WIDTH))


def target(problem: Problem) -> Tensor:
    if problem.pull is None:
        return problem.weight
    moved = torch.linalg.solve(gram(problem).double(), problem.pull.T.double()).T
    return problem.weight + moved.float()


def objective(problem: Problem, values: Tensor) -> float:
    off = values - target(problem)
    return float(((off @ gram(problem)) * off).sum())


@pytest.mark.parametrize(("name", "inputs"), CASES)
def test_less_is_lost_than_by_rounding(name: str, inputs: InputFormat):
    weight, x = layer()
    seen, unseen = x[:512], x[512:]
    problem = Problem(weight, counted(seen), inputs)
    errors = {
        of: output_error(weight, a.run(problem, WEIGHTS[name]), unseen, inputs)
        for of, a in ALGORITHMS.items()
    }
    plain = errors.pop("rtn")
    assert plain > 0
    # Where no factor helps, none is taken: then awq and smoothquant are rtn.
    assert all(error <= plain for error in errors.values()), (plain, errors)
    assert errors["gptq+refine"] < plain and min(errors.values()) < 0.9 * plain


PAPER = [("int8", False), ("int8", True), ("mxfp4", False), ("mxfp4", True), ("nvfp4", True)]


@pytest.mark.parametrize(("name", "drifts"), PAPER)
def test_gptq_is_what_the_paper_says(name: str, drifts: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[Columns.__module__], "LAZY", 48)  # several runs of columns
    weight, x = layer()
    problem = Problem(weight[:6], counted(x, drifted(x) if drifts else None), PLAIN)
    found = gptq(problem, WEIGHTS[name]).dequantize()
    same = (found == naive(problem, WEIGHTS[name])).all(1)
    # Where another target is solved for, in fp32, a row may have two scales that cost the same.
    assert int(same.sum()) >= len(same) - drifts


def drifted(x: Tensor) -> Tensor:
    return x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def naive(problem: Problem, format: WeightFormat) -> Tensor:
    """Optimal brain quantization in the order of GPTQ, row by row, with fp64 inverses.

    The scale of a block is that of those tried with which the block's columns cost least.
    """
    energy, wide = problem.energy, format.scheme.block[1]
    blocks = (
        [list(range(i, i + wide)) for i in range(0, WIDTH, wide)] if wide else [[*range(WIDTH)]]
    )
    blocks = [sorted(block, key=lambda k: -float(energy[k])) for block in blocks]
    blocks.sort(key=lambda block: -float(energy[block].mean()))
    shared = format.scales(target(problem))[1]
    fixed = None if wide else format.search(target(problem), energy)[:, 0].float()
    out = torch.empty_like(problem.weight)
    for row, weight in enumerate(target(problem)):
        rest, inverse = weight.double(), torch.linalg.inv(gram(problem).double())
        for block in blocks:
            if fixed is not None:
                tried = fixed[row : row + 1]
            else:
                one = torch.ones(()) if shared is None else shared
                own = format.rule(rest[block].abs().max().float().reshape(1), one)
                tried = torch.cat([s.float() * one for s in (own, *format.candidates(own))])
            runs = [eliminate(rest, inverse, block, factor, format) for factor in tried]
            _, values, rest, inverse = min(runs, key=lambda run: run[0])
            out[row, block] = values
    return out


def eliminate(
    rest: Tensor, inverse: Tensor, block: list[int], factor: Tensor, format: WeightFormat
) -> tuple[float, Tensor, Tensor, Tensor]:
    rest, cost, values = rest.clone(), 0.0, []
    for k in block:
        near = format.round(rest[k].float().reshape(1), factor.reshape(1))[0]
        error = rest[k] - near
        cost += float(error**2 / inverse[k, k])
        rest = rest - error / inverse[k, k] * inverse[k]
        inverse = inverse - torch.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        values.append(near)
    return cost, torch.stack(values), rest, inverse


@pytest.mark.parametrize("name", ["mxfp4", "int4", "int8"])
def test_every_sweep_finds_less_error(name: str):
    weight, x = layer()
    problem = Problem(weight, counted(x), PLAIN)
    errors = [objective(problem, gptq(problem, WEIGHTS[name], n).dequantize()) for n in range(4)]
    # What is stored is rounded once more than what was summed.
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(errors))
    assert errors[-1] < errors[0]


def test_rows_in_threads_are_rows(monkeypatch: pytest.MonkeyPatch):
    weight, x = layer()
    problem = Problem(weight, counted(x), PLAIN)
    alone = gptq(problem, WEIGHTS["mxfp4"], 1)
    monkeypatch.setattr(sys.modules[gptq.__module__], "LEAST_ROWS", 5)  # of OUTPUTS rows
    together = gptq(problem, WEIGHTS["mxfp4"], 1)
    assert together.codes.equal(alone.codes)


def test_roots_are_in_fp64_where_fp32_has_none():
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))
    plain = counted(layer()[1]).gram + torch.eye(WIDTH)
    few = layer()[1][:64].double()  # of half as many rows as columns, and hardly damped
    steep = (few.T @ few / few.square().mean() + 5e-6 * torch.eye(WIDTH)).float()
    assert torch.linalg.cholesky_ex(steep).info > 0
    for found in (plain, steep):
        back = order.flip(0)
        upper = root(lambda found=found, back=back: found[back][:, back])
        assert upper.equal(upper.triu())
        wanted = found[order][:, order]
        off = float((upper.double() @ upper.T.double() - wanted).abs().max())
        assert off <= 1e-6 * float(wanted.abs().max())


def test_the_target_makes_good_what_inputs_have_lost():
    weight, reference = layer()
    x = drifted(reference)
    problem = Problem(weight, counted(x, reference), PLAIN)
    # The normal equations of x T^T = reference W^T, where damping draws T towards W.
    energy = x.square().sum(0)
    damping = energy * (WIDTH / len(x)) ** 0.5 + LEAST_DAMPING * energy.mean()
    wanted = weight @ (reference.T @ x + damping.diag())
    scale = wanted.abs().max()
    torch.testing.assert_close(target(problem) @ gram(problem) / scale, wanted / scale)
    lost = [(x @ w.T - reference @ weight.T).square().sum() for w in (target(problem), weight)]
    assert lost[0] < 0.9 * lost[1]


def test_smoothing_and_turning_change_nothing_but_rounding():
    weight, x = layer()
    smooth, inputs = torch.rand(WIDTH) + 0.5, InputFormat("mxfp4", rotation=32, smooth=True)
    seen = rotated_columns(x * smooth, inputs)
    torch.testing.assert_close(
        seen @ fitted(weight, inputs, smooth).T, x @ weight.T, atol=1e-4, rtol=1e-4
    )


def test_static_inputs_have_their_scale_in_the_error():
    weight, x = layer()
    inputs = InputFormat("int8", static=True)
    candidate = ALGORITHMS["rtn"].run(Problem(weight, counted(x), inputs), WEIGHTS["int8"])
    fine, coarse = (
        output_error(weight, candidate, x, inputs, torch.tensor(float(x.abs().max()) / most))
        for most in (127, 12)
    )
    assert fine < 0.1 * coarse


DEGENERATE = {
    "no token": torch.zeros(0, WIDTH),
    "one token": layer()[1][:1],
    "fewer tokens than channels": layer()[1][:20],
    "zeros": torch.zeros(9, WIDTH),
    "channels of zeros": layer()[1] * (torch.arange(WIDTH) % 3 == 0),
    "a constant": torch.ones(50, WIDTH),
    "one channel": layer()[1] * (torch.arange(WIDTH) == 5),
    "an outlier": layer()[1] * torch.where(torch.arange(WIDTH) == 5, 1e4, 1.0),
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("preset", ["mxfp4", "mxfp4-w4a4", "nvfp4", "int8-w8a8", "int4-128"])
def test_degenerate_inputs(kind: str, preset: str):
    weight, x, chosen = layer()[0], DEGENERATE[kind], PRESETS[preset]
    weight[3], weight[:, 40:44] = 0, 0
    format, inputs = WEIGHTS[chosen.weights], chosen.inputs
    problem = Problem(weight, counted(x, x), inputs)
    plain = ALGORITHMS["rtn"].run(problem, format)
    for name in chosen.ladder:
        candidate = ALGORITHMS[name].run(problem, format)
        values = candidate.quantized.dequantize()
        assert values.shape == weight.shape and values.isfinite().all()
        assert candidate.smooth is None or candidate.smooth.isfinite().all()
        # Alone, clipping knows nothing of inputs that always come together.
        if "gptq" in name:
            error = output_error(weight, candidate, x, inputs)
            assert error <= output_error(weight, plain, x, inputs), name


def test_the_error_of_nothing():
    weight, x = layer()
    candidate = ALGORITHMS["rtn"].run(Problem(weight, counted(x), PLAIN), WEIGHTS["int8"])
    assert output_error(weight, candidate, torch.zeros(2, WIDTH), PLAIN) == 0
    assert output_error(torch.zeros_like(weight), candidate, x, PLAIN) == float("inf")
    nothing = Candidate(WEIGHTS["int8"].pack(torch.zeros_like(weight)))
    assert output_error(weight, nothing, x, PLAIN) == pytest.approx(1)


def test_presets_name_what_there_is():
    for preset in PRESETS.values():
        assert preset.weights in WEIGHTS and preset.inputs.format in {None, *BLOCKS}
        assert preset.ladder[0] == "rtn" and set(preset.ladder) <= ALGORITHMS.keys()


def test_statistics_do_not_depend_on_batches():
    _, x = layer(3 * ROWS + 100)
    whole = counted(x, 2 * x)
    parts, other = InputStatistics(WIDTH), InputStatistics(WIDTH)
    for begin in range(0, 600, 77):
        parts.add(x[begin : min(begin + 77, 600)], 2 * x[begin : min(begin + 77, 600)])
    other.add(x[600:], 2 * x[600:])
    parts.merge(other)
    assert parts.count == whole.count and parts.histogram.equal(whole.histogram)
    assert whole.drift is not None and parts.drift is not None
    for name in ("gram", "drift", "most", "total"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-2)
    assert ROWS <= len(whole.rows) <= 2 * ROWS
    assert whole.rows.equal(x[::2])


def test_inputs_that_are_not_finite_are_refused():
    with pytest.raises(StatisticsError, match="not finite"):
        counted(torch.tensor([[1.0, torch.nan]]))
