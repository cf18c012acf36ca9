"""A report of before, and what has become worse since: parity itself allows four times eager's
error, within which an engine can lose most of what it had.

What the same arithmetic is off by depends on the order of its sums: on the machine, the threads,
the version of ONNX Runtime. Of tiny models of ten families, engines for `cpu` and for `onnx`, whose
kernels sum in different orders, were compared in all scenarios over 24 and 40 tokens, in fp32 and
fp16, 81 times: their largest errors were up to 2.9 times apart, and the square roots of their KL,
which are means and vary less, up to 1.6 times. Beyond the next whole number it is something else
that has changed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

from lmcast.exporter.checkpoint.files import read_capped
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.engine.description import REPORT, Compared, Computed, Subject
from lmcast.exporter.prove.parity_report import Change, Report, Result
from lmcast.exporter.runtime.engine import Engine
from lmcast.plugins import records
from lmcast.plugins.errors import InputError
from lmcast.plugins.records import Name, Positive, RecordError

MOST_BYTES = 16 << 20  # of a report: kilobytes
EPSILON = {"float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}
TIMES_ERROR, TIMES_DISTANCE = 3.0, 2.0  # a distance is a square root of KL
AGAIN = "write another with `lmcast parity --json FILE`"


class BaselineError(InputError):
    """A baseline that cannot be read, or is of something else."""


@dataclass(frozen=True)
class Baseline:
    """What is read of a report of before. quality: of `lmcast parity --quality`."""

    version: int
    subject: Subject
    dtype: Computed
    ran: Name
    tokens: Positive
    results: tuple[Compared, ...]
    quality: Mapping[str, Any] | None = None


def subject_of(engine: Engine, prompts: Sequence[Sequence[int]] | None) -> Subject:
    """Return what a parity of an engine is of; prompts: token ids, None: drawn."""
    about, manifest = engine.manifest.about, engine.manifest
    files = sorted((file.size, file.header_sha256) for file in about.source)
    return Subject(
        lmcast=manifest.lmcast,
        checkpoint=_digest([about.config, files]),
        target=about.target,
        weights={name: stored.tensors for name, stored in sorted(about.weights.items())},
        recipe=None if about.recipe is None else about.recipe.sha256,
        activations=about.activations,
        exact=engine.exact,
        prompts=None if prompts is None else _digest([list(row) for row in prompts]),
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_baseline(path: Path) -> Baseline:
    """Return a report of `lmcast parity --json`, or parity.json of an engine; raises
    BaselineError."""
    body = parse_object(read_capped(path, MOST_BYTES), path)
    wanted = records.fields_of(Baseline)
    if not {"results", "times_allowed"} <= body.keys():
        raise BaselineError(f"{path}: is no report of parity; {AGAIN}")
    if (version := body.get("version")) != REPORT:
        by = "an earlier lmcast" if version is None else f"another lmcast: version {version!r:.40}"
        raise BaselineError(f"{path}: was written by {by}, accepted: version {REPORT}; {AGAIN}")
    try:
        return records.read(Baseline, {k: v for k, v in body.items() if k in wanted})
    except RecordError as error:
        raise BaselineError(f"{path}: {error}; {AGAIN}") from None


def require_same(
    path: Path, baseline: Baseline, engine: Engine, subject: Subject, ran: str
) -> None:
    """Refuse a baseline of something else than what is to be compared; raises BaselineError."""
    now = {"dtype": engine.manifest.about.dtype, "ran": ran}
    before = {"dtype": baseline.dtype, "ran": baseline.ran}
    for name in records.fields_of(Subject):
        if name != "lmcast":  # numbers of another version are what baselines are for
            now[name], before[name] = getattr(subject, name), getattr(baseline.subject, name)
    for name, value in now.items():
        if value != before[name]:
            raise BaselineError(
                f"{path}: is of another engine: {name} is {before[name]!s:.80} there and"
                f" {value!s:.80} of {engine.directory}; accepted: a report of the same checkpoint,"
                f" format, options and prompts; {AGAIN}"
            )


def with_changes(report: Report, path: Path, baseline: Baseline) -> Report:
    """Return a report with each number beside that of its baseline; raises BaselineError where they
    are of other tokens."""
    before = {one.scenario: one for one in baseline.results}
    names = [one.scenario for one in report.results]
    told = [one.scenario for one in baseline.results]
    if baseline.tokens != report.tokens or sorted(told) != sorted(names):
        raise BaselineError(
            f"{path}: is of {baseline.tokens} tokens in {', '.join(told)}; this run was of"
            f" {report.tokens} in {', '.join(names)}; {AGAIN}"
        )
    return replace(report, baseline=tuple(_changes(baseline, before, report)))


def _changes(
    baseline: Baseline, before: Mapping[str, Compared], report: Report
) -> Iterator[Change]:
    for now in report.results:
        was = before[now.scenario]
        yield Change(
            now.scenario, "error", was.error, now.error, most_error(was, now, report.dtype)
        )
        yield Change(now.scenario, "kl", was.kl, now.kl, most_kl(was, now, report.dtype))
    quality = baseline.quality and baseline.quality.get("kl")
    if report.quality is not None and isinstance(quality, float):
        # What a recipe loses is no rounding: the bound is that of its record, in its place.
        most = replace(report.quality, recorded=quality).bound
        yield Change("quality", "kl", quality, report.quality.kl, most)


def rounding(now: Result, dtype: str) -> float:
    """Return one rounding of a logit as large as they are: below it no two errors differ."""
    return EPSILON[dtype] * now.nothing


def most_error(was: Compared, now: Result, dtype: str) -> float:
    """Return what an error may be: where eager errs more than it did, so may the engine."""
    eager = max(1.0, now.eager_error / was.eager_error) if was.eager_error else 1.0
    return TIMES_ERROR * eager * was.error + rounding(now, dtype)


def most_kl(was: Compared, now: Result, dtype: str) -> float:
    """Return what a KL may be, likewise: logits that are off by e change its root by e / sqrt(2) at
    most."""
    eager = max(1.0, now.eager_error / was.eager_error) if was.eager_error else 1.0
    return (TIMES_DISTANCE * eager * sqrt(was.kl) + rounding(now, dtype) / sqrt(2)) ** 2
