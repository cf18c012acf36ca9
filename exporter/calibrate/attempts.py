"""Calibrations of one checkpoint, each a full pass: one, or several until a budget is met."""

import dataclasses
import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import Tensor

from lmcast.calib import budget
from lmcast.calib.budget import Options, Plan
from lmcast.calib.presets import Preset
from lmcast.calib.recipe import Quality
from lmcast.exporter.calibrate.layer import Settings
from lmcast.exporter.calibrate.report import report
from lmcast.exporter.calibrate.run import Run
from lmcast.exporter.calibrate.sensitivity import sensitivity
from lmcast.exporter.calibrate.work import Work
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.engine.lock import Place
from lmcast.exporter.progress import Progress
from lmcast.exporter.prove.recorded import record
from lmcast.exporter.weights.recipe_files import contents, identity
from lmcast.graphs import Definition
from lmcast.plugins.errors import CheckFailed, InputError

OBSERVER = "maximum"
ROUNDING = 1e-9  # of bits, from sums in fp64


class CalibrationError(InputError):
    """A calibration that is impossible as asked."""


@dataclass(frozen=True)
class Subject:
    """What is calibrated, and how. sample: ids C,T int64 to calibrate on, and held out; text:
    where they are from."""

    found: Definition
    source: Checkpoint
    identities: list[SourceFile]
    sample: tuple[Tensor, Tensor]
    text: str
    recipe: str | None
    preset: Preset | None
    observer: str | None
    fewest_tokens: int
    head: bool
    kv: str | None

    def key(self, formats: Mapping[str, str | None]) -> dict[str, Any]:
        """Return everything that the results of layers depend on."""
        return {
            "lmcast": version("lmcast"),
            "source": [*identity(self.identities), *contents(self.identities)],
            "config": repr(self.found.config),
            "recipe": self.preset and dataclasses.asdict(self.preset),
            "text": [
                [*ids.shape, hashlib.sha256(ids.numpy().tobytes()).hexdigest()]
                for ids in self.sample
            ],
            "options": [self.observer, self.fewest_tokens, self.head, self.kv, dict(formats)],
        }


@dataclass(frozen=True)
class Attempt:
    """A finished calibration, whose layers are in `work`."""

    work: Work
    parts: int
    report: dict[str, Any]
    quality: Quality  # of the variant that would be written

    @property
    def kl(self) -> float:
        """The divergence of the variant that would be written."""
        found: float = self.report["models"][self.report["written"]]["kl"]
        return found


class Attempts:
    """Calibrates a subject, also several times.

    Used in a with statement: what a killed run has finished stays, as in Work.
    """

    def __init__(self, subject: Subject, place: Place, progress: Progress):
        self.subject, self.place, self.progress = subject, place, progress
        self._works, self._number = ExitStack(), 0

    def __enter__(self) -> "Attempts":
        return self

    def __exit__(self, *given: Any) -> None:
        self._works.__exit__(*given)
        if given[0] is None:
            self._end()

    def once(self, formats: Mapping[str, str | None] | None = None) -> Attempt:
        """Calibrate; formats: of weights that have another than the recipe's, None for
        unquantized."""
        subject, formats = self.subject, formats or {}
        work = self._work(self._number)
        self._number += 1
        self._works.enter_context(work)
        work.begin(subject.key(formats))
        settings = Settings(
            subject.preset,
            subject.observer or OBSERVER,
            subject.fewest_tokens,
            work.folder,
            formats,
            subject.head,
            subject.kv,
        )
        run = Run(subject.found, subject.source, subject.sample, settings, work)
        measured = run.all(self.progress)
        work.tidy()
        made = report(subject.recipe, subject.preset, run, measured)
        quality = record(subject.sample[1], measured[made["written"]], subject.text)
        return Attempt(work, run.parts, made, quality)

    def at_bits(self, bits: float) -> Attempt:
        """Calibrate with formats of at most `bits` per weight on average, scales included."""
        options = self._options()
        numbers = self._numbers(options)
        least, most = (
            8 * budget.size(plan(options)) / numbers for plan in (budget.narrowest, budget.widest)
        )
        if not least - ROUNDING <= bits <= most + ROUNDING:
            raise CalibrationError(
                f"{bits:g} bits a weight: recipe {self.subject.recipe} needs {least:.3f} with every"
                f" weight in its narrowest format, and no more than {most:.3f} with none"
                f" quantized; accepted: between the two"
            )
        plan = budget.allocate(options, bits * numbers / 8)
        attempt = self.once(_formats(plan))
        passes = [{"bits": 8 * budget.size(plan) / numbers, "kl": attempt.kl}]
        return self._spent(attempt, plan, options, passes, {"asked_bits": bits})

    def within(self, kl: float) -> Attempt:
        """Calibrate with the fewest bits whose measured divergence is at most `kl`.

        At most budget.PASSES calibrations. Raises CheckFailed where none of them reaches it.
        """
        options, attempts = self._options(), list[Attempt]()
        numbers = self._numbers(options)

        def measure(plan: Plan) -> float:
            bits = 8 * budget.size(plan) / numbers
            self.progress.say(
                f"pass {len(attempts) + 1} of at most {budget.PASSES}: {bits:.2f} bits a weight"
            )
            attempts.append(self.once(_formats(plan)))
            return attempts[-1].kl

        plan, tried = budget.least(options, kl, measure)
        passes = [{"bits": 8 * budget.size(t.plan) / numbers, "kl": t.kl} for t in tried]
        if plan is None:
            nearest = min(passes, key=lambda each: each["kl"])
            self._end()
            raise CheckFailed(
                f"the KL per token is {nearest['kl']:.4g} nats at {nearest['bits']:.2f} bits a"
                f" weight, the least of {len(passes)} passes, above the {kl:g} allowed; nothing"
                " is written"
            )
        best = next(a for a, t in zip(attempts, tried, strict=True) if t.plan is plan)
        return self._spent(best, plan, options, passes, {"asked_kl": kl})

    def _work(self, number: int) -> Work:
        return Work(self.place, self.subject.source, self.subject.identities, number)

    def _end(self) -> None:
        """Remove what attempts have left, also those of a run of other arguments, killed before."""
        for number in range(budget.PASSES):
            self._work(number).end()

    def _options(self) -> Options:
        subject = self.subject
        assert subject.preset is not None, "a budget of no recipe"
        options = sensitivity(
            subject.found,
            subject.source,
            subject.sample[1],
            subject.preset,
            subject.observer or OBSERVER,
            self.place.beside("sensitivity"),
            self.progress,
        )
        if not options:
            raise CalibrationError("no weight of this model can be quantized so: a budget is void")
        return options

    def _numbers(self, options: Options) -> int:
        model = self.subject.found.model
        return sum(model.get_parameter(name).numel() for name in options)

    def _spent(
        self,
        attempt: Attempt,
        plan: Plan,
        options: Options,
        passes: list[dict[str, float]],
        asked: Mapping[str, float],
    ) -> Attempt:
        """Add to a report what a budget was spent on."""
        spent = {
            **asked,
            "bits": 8 * budget.size(plan) / self._numbers(options),
            "passes": passes,
            "weights": _formats(plan),
        }
        return dataclasses.replace(attempt, report=attempt.report | {"budget": spent})


def _formats(plan: Plan) -> dict[str, str | None]:
    return {name: option.format for name, option in plan.items()}
