"""The report of `lmcast quality` as one HTML file: numbers, and plots that need no script."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from lmcast.exporter.prove.divergence import LEAST_KL, Mean, Measured

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 40  # around the plane of a plot, in its units
# Colours of either scheme hold 4.5:1 against its background, as WCAG 2 asks of text.
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --mark: #0969da; --back: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #f0f6fc; --soft: #9198a1; --line: #3d444d;
  --mark: #4493f8; --back: #0d1117; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-bottom: .3rem; }
p { color: var(--soft); margin: .2rem 0 .6rem; }
table { border-collapse: collapse; }
th, td { text-align: right; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th:first-child { text-align: left; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--soft); }
.grid { stroke: var(--line); } .line { stroke: var(--mark); stroke-width: 1.5; fill: none; }
.bar { fill: var(--mark); } .whisker { stroke: var(--ink); stroke-width: 1.5; }
"""


@dataclass(frozen=True)
class Axis:
    """Where values lie on a stretch of the picture, and which of them are written down."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = (math.log10(max(x, LEAST_KL)) for x in (low, high, value))
        return self.begin + (self.end - self.begin) * (value - low) / ((high - low) or 1)

    def ticks(self) -> list[float]:
        """Return powers of ten on a logarithmic axis, about five round numbers on another."""
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = max(1, (last - first) // 6)
            powers = [10.0**n for n in range(first, last + 1, every)]
            shown = [power for power in powers if self.low <= power <= self.high * 1.0001]
            return shown if len(shown) > 1 else [self.low, self.high]
        rough = (self.high - self.low) / 5 or 1
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough)
        first = math.ceil(self.low / step)
        return [step * n for n in range(first, math.floor(self.high / step * 1.0001) + 1)]


def html(measured: Measured, title: str) -> str:
    """Return the report; title: what was compared with what."""
    name = escape(title)
    parts = [
        f"<h1>Quality of {name}</h1>",
        f"<p>{measured.chunks} chunks of {measured.tokens} held-out tokens; ± is the standard"
        " error over chunks.</p>",
        _numbers(measured),
        "<h2>Divergence by position</h2><p>KL in nats, mean over chunks</p>",
        _by_position(measured),
        "<h2>Divergence of single tokens</h2><p>how many positions have which KL in nats</p>",
        _histogram(measured),
    ]
    if measured.layers is None:
        parts.append("<p>Layers were not measured: it takes the recipe of the engine.</p>")
    else:
        about = "relative error of the output, each layer alone on the checkpoint's inputs"
        parts += [f"<h2>Layers</h2><p>{about}</p>", _layers(measured)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="generator" content="lmcast quality"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>Quality of {name}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _numbers(measured: Measured) -> str:
    worst = measured.worst
    rows = [
        ("perplexity of the checkpoint", measured.reference_perplexity.text(".3f")),
        ("perplexity of the engine", measured.perplexity.text(".3f")),
        ("ratio of perplexities", measured.perplexity_ratio.text(".4f")),
        ("KL per token", f"{measured.kl.text('.4g')} nats"),
        ("same top token", measured.top1.text(".4f")),
        ("largest KL", f"{worst.kl:.4g} nats, position {worst.position} of chunk {worst.chunk}"),
        ("bytes of the checkpoint's weights", f"{measured.reference_bytes:,}"),
        ("bytes of the engine's weights", f"{measured.bytes:,}"),
    ]
    cells = [f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows]
    return f"<table>{''.join(cells)}</table>"


def _by_position(measured: Measured) -> str:
    values = [max(kl, LEAST_KL) for kl in measured.by_position]
    x = Axis(0, max(1, len(values) - 1), LEFT, WIDTH - RIGHT)
    y = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP, logarithmic=True)
    points = " ".join(f"{x.at(i):.1f},{y.at(value):.1f}" for i, value in enumerate(values))
    return _plot("KL by position", x, y, [f'<polyline class="line" points="{points}"/>'])


def _histogram(measured: Measured) -> str:
    bins = measured.histogram
    x = Axis(bins[0][0], bins[-1][1], LEFT, WIDTH - RIGHT, logarithmic=True)
    y = Axis(0, max(count for _, _, count in bins), HEIGHT - BOTTOM, TOP)
    bars = [
        _bar(x.at(low), x.at(high), y, count, f"{low:.2g} to {high:.2g} nats: {count} positions")
        for low, high, count in bins
    ]
    return _plot("Histogram of KL", x, y, bars)


def _layers(measured: Measured) -> str:
    layers = measured.layers or ()
    x = Axis(-0.5, len(layers) - 0.5, LEFT, WIDTH - RIGHT)
    y = Axis(0, max(_top(each.error) for each in layers) or 1, HEIGHT - BOTTOM, TOP)
    marks = []
    for each in layers:
        low, high = x.at(each.layer - 0.4), x.at(each.layer + 0.4)
        note = f"layer {each.layer}: {each.error.text('.4g')}"
        marks.append(_bar(low, high, y, each.error.value, note))
        if each.error.error is not None:
            middle = (low + high) / 2
            ends = y.at(each.error.value - each.error.error), y.at(_top(each.error))
            marks.append(_line("whisker", middle, ends[0], middle, ends[1]))
    return _plot("Errors of layers", x, y, marks)


def _top(mean: Mean) -> float:
    return mean.value + (mean.error or 0)


def _bar(left: float, right: float, y: Axis, value: float, note: str) -> str:
    top = y.at(value)
    width, height = max(0.5, right - left - 1), y.begin - top
    return (
        f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}"'
        f' height="{height:.1f}"><title>{escape(note)}</title></rect>'
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _plot(name: str, x: Axis, y: Axis, marks: Sequence[str]) -> str:
    def drawn() -> Iterable[str]:
        for tick in y.ticks():
            place = y.at(tick)
            yield _line("grid", LEFT, place, WIDTH - RIGHT, place)
            yield f'<text x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{tick:.3g}</text>'
        yield from marks
        for tick in x.ticks():
            yield (
                f'<text x="{x.at(tick):.1f}" y="{HEIGHT - BOTTOM + 20}"'
                f' text-anchor="middle">{tick:.3g}</text>'
            )

    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
        f"{''.join(drawn())}</svg>"
    )
