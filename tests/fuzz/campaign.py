"""Many trials of one part, numbered: a number and a seed make the same trial again."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fuzz.trial import SLACK, Limits, Part, attempt, minimize, peak_of_good_input

ONCE = 10  # faults of one kind that are made smaller and printed; others are counted


@dataclass
class Report:
    """What the trials of a part came to. faults: kind -> how often; shown: the first of each."""

    part: str
    seed: int
    trials: int = 0
    accepted: int = 0
    refused: int = 0
    base: int = 0  # bytes of memory of good input
    peak: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [
            f"{self.part}, seed {self.seed}: {self.trials} trials in {self.seconds:.0f} s,"
            f" {self.refused} refused, {self.accepted} accepted,"
            f" {self.base >> 20} MiB of memory for good input, {self.peak >> 20} at most;"
            f" {self.faults.total()} faults"
        ]
        return "\n".join([*lines, *self.shown])

    def fields(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return vars(self) | {"faults": dict(self.faults)}


def edits_of(part: Part, seed: int, number: int) -> Sequence[Any]:
    """Return the edits of the trial of this number."""
    return part.edits(random.Random(f"{part.name} {seed} {number}"))


def campaign(
    part: Part, folder: Path, seed: int, *, until: float | None = None, trials: int | None = None
) -> Report:
    """Run trials until a time of time.monotonic(), or so many; print nothing.

    folder: an empty one.
    """
    numbers = count() if trials is None else iter(range(trials))
    return _run(part, folder, seed, numbers, until)


def one(part: Part, folder: Path, seed: int, number: int) -> Report:
    """Run one trial; the report shows it whether it has a fault or not."""
    report = _run(part, folder, seed, iter([number]), None)
    report.shown += [f"  {edit}" for edit in edits_of(part, seed, number)]
    return report


def _run(
    part: Part, folder: Path, seed: int, numbers: Iterator[int], until: float | None
) -> Report:
    started = time.monotonic()
    (folder / "base").mkdir()
    part.prepare(folder / "base")
    report = Report(part.name, seed)
    report.base = peak_of_good_input(part, folder / "good", Limits())
    limits = Limits(memory=2 * report.base + SLACK)
    for number in numbers:
        if until is not None and time.monotonic() >= until:
            break
        _trial(part, edits_of(part, seed, number), folder / "trial", limits, number, report)
    report.seconds = time.monotonic() - started
    return report


def _trial(
    part: Part, edits: Sequence[Any], work: Path, limits: Limits, number: int, report: Report
) -> None:
    outcome = attempt(part, edits, work / "first", limits)
    report.trials += 1
    report.peak = max(report.peak, outcome.peak)
    if outcome.fault is not None:
        kind = outcome.fault.split(":")[0]
        report.faults[kind] += 1
        if report.faults[kind] <= ONCE:
            least = minimize(part, edits, work, limits, outcome.fault)
            listed = "; ".join(map(str, least))
            report.shown.append(f"  trial {number}: {outcome.fault} [{listed}]")
    elif outcome.refusal is not None:
        report.refused += 1
    else:
        report.accepted += 1
    _remove(work)


def _remove(work: Path) -> None:
    """Remove a trial's folder, whatever it did to the rights of its own."""
    for path in [work, *work.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(work)
