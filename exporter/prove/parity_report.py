"""The report of a parity: how far an engine may err, and how it is shown."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lmcast.exporter.engine.description import REPORT, Subject
from lmcast.exporter.prove.bisect import Bisection, Divergence
from lmcast.exporter.prove.picked import Picked
from lmcast.exporter.prove.rounding_cost import RoundingCost
from lmcast.exporter.prove.scenarios import EXACT
from lmcast.exporter.prove.texts import TextCheck

# The engine may err from fp64 this many times as much as eager PyTorch does in the same format:
# both round every operation, in another order.
TIMES = 4.0
# Added to that: where eager happens to be exact, the engine still rounds. In fp32 the bound of the
# project; in the others two to three epsilons, 9.8e-4 and 7.8e-3, of a logit near 1.
FLOOR = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 2e-2}

# A bound says nothing where it is more than this part of what logits are off by that say nothing:
# half, so that those of another model fail too, though single ones of theirs happen to be near.
TELLING = 0.5

# Of a recorded divergence: calibration may have run on a machine that sums in another order, where
# values near a tie round the other way. Of all recipes on tiny models, over 64 tokens, engines that
# round as eager PyTorch does were up to 6 % apart from it; over the 2,048 of a record it is less.
TIES = 1.1
# Of a square root of KL: logits that are off by e at most change it by e / sqrt(2) at most, and
# those of the eager models, in fp32, by the floor of that.
EAGER = FLOOR["float32"] / math.sqrt(2)


def bound(eager_error: float, format: str) -> float:
    """Return what an engine may be off by where eager is off by so much."""
    return TIMES * eager_error + FLOOR[format]


@dataclass(frozen=True)
class Result:
    """One way of running the engine, compared at every position with logits."""

    scenario: str
    positions: int
    error: float  # largest |engine - fp64| of a logit
    eager_error: float  # largest |eager - fp64| at the same positions
    bound: float
    top1: float  # share of positions with the same most likely token
    kl: float  # mean Kullback-Leibler divergence from fp64, in nats
    nothing: float  # largest error of logits that say nothing
    errors: tuple[tuple[int, int, float], ...] = ()  # row, position, largest error of a logit
    seconds: float = 0.0  # that the engine ran

    @property
    def measured(self) -> dict[str, Any]:
        """The numbers, but for those of single positions, and for the time."""
        every = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in every.items() if name not in ("errors", "seconds")}

    @property
    def passed(self) -> bool:
        # A NaN compares false, so it fails.
        return self.error <= self.bound

    @property
    def tells(self) -> bool:
        """Whether passing proves anything: whether logits that say nothing would not."""
        return self.bound <= TELLING * self.nothing

    def problem(self, proven: bool) -> str | None:
        """Return what is wrong, None where nothing is. proven: another way tells in its place."""
        if not self.passed:
            return f"error {self.error:.6g} is above {self.bound:.6g}"
        if not (self.tells or proven):
            return (
                f"vacuous: a bound of {self.bound:.3g} passes logits that say nothing, which are"
                f" off by {self.nothing:.3g}, as rounding decides what is computed of these tokens;"
                " compare others, or in float32"
            )
        return None

    @property
    def times(self) -> float:
        """The engine's error in units of eager's own."""
        return self.error / self.eager_error if self.eager_error else math.inf


@dataclass(frozen=True)
class QualityCheck:
    """What an engine has lost, against what calibration has recorded of its recipe; divergences
    are in nats, means over tokens.

    text, tokens: of the record. kl: KL(unquantized checkpoint || engine). recorded: KL(unquantized
    checkpoint || recipe), then. from_recipe: KL(recipe run eagerly || engine): what kernels and the
    number format of the engine make of the recipe, now.
    """

    text: str
    tokens: int
    kl: float
    recorded: float
    from_recipe: float

    @property
    def bound(self) -> float:
        """What the engine may lose: the recipe as it was, and from there what its arithmetic does.

        Square roots of divergences add as distances do: KL is half the square of Fisher's metric
        between distributions that are near. Measured on tiny models in 12 recipes, fp32 and fp16,
        with kernels that round and without: no engine is above that sum. That it is arithmetic
        alone which lies between engine and recipe, parity has shown before.
        """
        arithmetic = math.sqrt(self.from_recipe) + EAGER
        return (math.sqrt(TIES * self.recorded) + arithmetic) ** 2

    @property
    def passed(self) -> bool:
        return self.kl <= self.bound

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "bound": self.bound, "passed": self.passed}

    def problem(self) -> str | None:
        """Return what is wrong, None where nothing is."""
        if self.passed:
            return None
        return (
            f"KL {self.kl:.3g} nats from the unquantized checkpoint is above {self.bound:.3g}: the"
            f" recipe had {self.recorded:.3g} when it was made"
        )

    def table(self) -> str:
        """Return the same for a person."""
        return (
            f"{'quality':14}KL {self.kl:.3g} nats from the unquantized checkpoint, bound"
            f" {self.bound:.3g}  {'ok' if self.passed else 'FAILED'}\n"
            f"{'':14}the recipe had {self.recorded:.3g} when it was made, over {self.tokens:,}"
            f" tokens of {self.text}"
        )


@dataclass(frozen=True)
class Change:
    """A measured number beside that of a baseline. most: what it may be, by the rule of
    baseline.py."""

    scenario: str
    number: str
    before: float
    now: float
    most: float

    def problem(self) -> str | None:
        """Return in what it has become worse, None where it has not."""
        if self.now <= self.most:
            return None
        times = f", {self.now / self.before:.3g} times as much" if self.before else ""
        return (
            f"{self.number} is {self.now:.3g} where the baseline has {self.before:.3g}{times}; at"
            f" most {self.most:.3g} is that of the same arithmetic in another order"
        )

    def text(self) -> str:
        """Return it in a line."""
        found = self.problem()
        told = f"{self.number} {self.before:.3g} -> {self.now:.3g}, at most {self.most:.3g}"
        return f"{self.scenario} since the baseline: {f'WORSE: {found}' if found else told}"


@dataclass(frozen=True)
class Case:
    """One thing that was checked, as CI shows it. values: what was measured of it."""

    name: str
    part: str  # what it is of: 'parity', 'tokenizer', 'chat template', 'generation', 'baseline'
    problem: str | None
    seconds: float = 0.0
    values: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All comparisons of one engine."""

    dtype: str
    tokens: int
    beyond_window: bool | None  # None: no layer has a window
    results: tuple[Result, ...]
    bisection: Bisection | None = None
    ran: str = "graph"  # or 'plan', or another program's: what of the engine was compared
    texts: tuple[TextCheck, ...] = ()  # none at export, which has just written them
    quality: QualityCheck | None = None  # on request
    rounding: RoundingCost | None = None  # at export, of kernels that round
    subject: Subject | None = None
    baseline: tuple[Change, ...] | None = None  # None: none was given
    picked: Picked | None = None  # by another program, on request
    layers: tuple[Divergence, ...] = ()  # on request: what each layer is off by, of one row

    @property
    def proven(self) -> bool:
        """Whether the graph without rounding to low precision is compared, by a bound that tells:
        its rounding, which the others have as well, may then decide all."""
        return any(result.scenario == EXACT and result.tells for result in self.results)

    @property
    def computes(self) -> bool:
        return all(result.problem(self.proven) is None for result in self.results)

    @property
    def passed(self) -> bool:
        lossy = self.quality is not None and not self.quality.passed
        worse = any(change.problem() for change in self.baseline or ())
        other = self.picked is not None and self.picked.problem is not None
        good = self.computes and not lossy and not worse and not other
        return good and all(check.problem is None for check in self.texts)

    def worst(self) -> str:
        """Return the comparison furthest over its bound, in words."""
        result = max(
            self.results, key=lambda r: r.error / r.bound if r.error == r.error else math.inf
        )
        if result.passed:
            result = next(r for r in self.results if r.problem(self.proven))
            return f"{result.scenario}: {result.problem(self.proven)}"
        return f"{result.scenario}: error {result.error:.3g}, bound {result.bound:.3g}"

    def cases(self) -> Iterator[Case]:
        """Yield all that was checked."""
        for r in self.results:
            values = _plain(r.measured)
            yield Case(r.scenario, "parity", r.problem(self.proven), r.seconds, values)
        for check in self.texts:
            yield Case(check.name, check.part, check.problem, check.seconds)
        if self.quality is not None:
            yield Case("quality", "parity", self.quality.problem(), 0.0,
                       _plain(self.quality.as_json()))  # fmt: skip
        if self.picked is not None and self.picked.version is not None:
            values = _plain(asdict(self.picked))
            yield Case(f"{self.picked.program} itself", "parity", self.picked.problem, 0.0, values)
        for change in self.baseline or ():
            name, values = f"{change.scenario}: {change.number}", _plain(asdict(change))
            yield Case(name, "baseline", change.problem(), 0.0, values)

    def as_json(self, timed: bool = True) -> dict[str, Any]:
        """Return all but single positions and layers; timed: with what differs from run to run."""
        seconds = {case.name: case.seconds for case in self.cases() if case.seconds}
        baseline = None if self.baseline is None else [asdict(change) for change in self.baseline]
        picked = None if self.picked is None else asdict(self.picked)
        beside = {"baseline": baseline, "picked": picked, "seconds": seconds} if timed else {}
        return beside | {
            "version": REPORT,
            "subject": None if self.subject is None else asdict(self.subject),
            "ran": self.ran,
            "dtype": self.dtype,
            "tokens": self.tokens,
            "beyond_window": self.beyond_window,
            "passed": self.passed,
            "times_allowed": TIMES,
            "floor": FLOOR[self.dtype],
            "texts": {check.name: check.problem or "equal" for check in self.texts},
            "bisection": None if self.bisection is None else self.bisection.as_json(),
            "quality": None if self.quality is None else self.quality.as_json(),
            "rounding": None if self.rounding is None else asdict(self.rounding),
            "results": [
                {
                    **r.measured,
                    "passed": r.passed,
                    "vacuous": not r.tells,
                    "times_eager": None if math.isinf(r.times) else r.times,
                }
                for r in self.results
            ],
        }

    def table(self) -> str:
        """Return the report for a person."""
        lines = [
            f"{'':14}{'positions':>10}{'error':>10}{'eager':>10}{'x eager':>9}{'bound':>10}"
            f"{'top-1':>8}{'KL':>10}"
        ]
        for r in self.results:
            lines.append(
                f"{r.scenario:14}{r.positions:>10}{r.error:>10.1e}{r.eager_error:>10.1e}{r.times:>9.2f}"
                f"{r.bound:>10.1e}{r.top1:>8.1%}{r.kl:>10.1e}  {self._verdict(r)}"
            )
        if any(result.passed and not result.tells for result in self.results):
            lines.append("VACUOUS: a bound that logits that say nothing would pass too")
        lines += [check.text() for check in self.texts]
        if self.quality is not None:
            lines.append(self.quality.table())
        if self.picked is not None:
            lines.append(self.picked.text())
        lines += [change.text() for change in self.baseline or ()]
        if self.beyond_window is False:
            lines.append(
                "the window of this model was not exceeded; give --tokens or longer --prompts"
            )
        if self.bisection is not None:
            lines.append(self.bisection.text())
        return "\n".join(lines)

    def _verdict(self, result: Result) -> str:
        if not result.passed:
            return "FAILED"
        if result.tells:
            return "ok"
        return "VACUOUS, see exact" if self.proven else "VACUOUS: FAILED"


def _plain(values: Mapping[str, Any]) -> dict[str, float | int | str]:
    """Return the numbers and words among values, but for the scenario: so a case is called."""
    plain = {k: v for k, v in values.items() if isinstance(v, float | int | str)}
    return {name: value for name, value in plain.items() if name != "scenario"}
