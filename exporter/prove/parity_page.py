"""The report of `lmcast parity` as one HTML file: what was checked, and where errors lie."""

import math
from collections.abc import Iterable

from lmcast.exporter.prove.parity_report import Case, Report
from lmcast.exporter.prove.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    bar,
    line,
    page,
    pairs,
    plot,
    text,
)

LEAST = 1e-12  # an error that is drawn at the bottom: far below fp32's, as of logits that are equal


def parity_page(report: Report, title: str) -> str:
    """Return the report; title: what was compared with what."""
    told = "passed" if report.passed else "FAILED"
    parts = [
        f"<p>{told}: the engine's {report.ran}, in {text(report.dtype)}, of rows of up to"
        f" {report.tokens} tokens</p>",
        _cases(list(report.cases())),
    ]
    for result in report.results:
        if result.errors:
            parts += [
                f"<h2>{text(result.scenario)}: errors by position</h2><p>largest error of a logit"
                " from fp64, of all rows; the line above is the bound</p>",
                _by_position(result.errors, result.bound),
            ]
    if report.layers:
        parts += [
            "<h2>Errors by layer</h2><p>largest error from fp64 of what a layer returns, of the"
            " longest row; the whisker is eager's own</p>",
            _layers(report),
        ]
    if report.subject is not None:
        about = {"lmcast": report.subject.lmcast, "target": report.subject.target}
        about["checkpoint"] = report.subject.checkpoint
        parts += ["<h2>Compared</h2>", pairs(about.items())]
    return page("parity", f"Parity of {title}", parts)


def _cases(cases: list[Case]) -> str:
    columns = ("positions", "error", "eager_error", "bound", "top1", "kl")
    head = "".join(f"<th>{text(name)}</th>" for name in ("", *columns, "seconds", "result"))
    rows = []
    for case in cases:
        values = [case.values.get(name, "") for name in columns]
        numbers = "".join(f"<td>{text(_number(value))}</td>" for value in values)
        seconds = f"{case.seconds:.2f}" if case.seconds else ""
        result = "ok" if case.problem is None else f"FAILED: {case.problem}"
        rows.append(
            f"<tr><th>{text(case.name)}</th>{numbers}<td>{seconds}</td><td>{text(result)}</td></tr>"
        )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _number(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _drawn(errors: Iterable[float]) -> list[float]:
    """Return what can be drawn: nothing below LEAST, and what is no number not at all."""
    return [max(error, LEAST) for error in errors if math.isfinite(error)]


def _by_position(errors: tuple[tuple[int, int, float], ...], bound: float) -> str:
    worst: dict[int, float] = {}
    for _, position, error in errors:
        worst[position] = max(worst.get(position, 0.0), error)
    heights = _drawn([*worst.values(), bound])
    x = Axis(0, max(1, *worst), LEFT, WIDTH - RIGHT)
    y = Axis(min(heights), max(heights), HEIGHT - BOTTOM, TOP, logarithmic=True)
    points = " ".join(
        f"{x.at(position):.1f},{y.at(max(error, LEAST)):.1f}"
        for position, error in sorted(worst.items())
        if math.isfinite(error)
    )
    limit = y.at(bound)
    marks = [
        f'<polyline class="line" points="{points}"/>',
        line("whisker", LEFT, limit, WIDTH - RIGHT, limit),
    ]
    return plot("Errors by position", x, y, marks)


def _layers(report: Report) -> str:
    heights = _drawn(e for each in report.layers for e in (each.error, each.eager_error))
    x = Axis(-0.5, len(report.layers) - 0.5, LEFT, WIDTH - RIGHT)
    y = Axis(0, max(heights, default=1.0), HEIGHT - BOTTOM, TOP)
    marks = []
    for index, each in enumerate(report.layers):
        note = f"{each.name}: {each.error:.3g}, eager's {each.eager_error:.3g}, of {each.size:.3g}"
        shown = each.error if math.isfinite(each.error) else y.high
        marks.append(bar(x.at(index - 0.4), x.at(index + 0.4), y, shown, note))
        if math.isfinite(each.eager_error):
            own = y.at(each.eager_error)
            marks.append(line("whisker", x.at(index - 0.4), own, x.at(index + 0.4), own))
    return plot("Errors by layer", x, y, marks)
