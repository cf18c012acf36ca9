"""Reports as one HTML file: a page, and plots of it that need no script."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from lmcast.plugins.errors import escaped

LEAST = 1e-300  # of a logarithmic axis: what is below is drawn there

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
            low, high, value = (math.log10(max(x, LEAST)) for x in (low, high, value))
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


def page(command: str, title: str, parts: Iterable[str]) -> str:
    """Return a page that is known as a report of a command; parts are HTML."""
    name = text(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta name="generator" content="lmcast {command}"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{name}</title><style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def text(shown: str) -> str:
    """Return a text as HTML, with an escape for what cannot be seen or is no character of XML."""
    return escape(escaped(shown))


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    cells = [f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in rows]
    return f"<table>{''.join(cells)}</table>"


def bar(left: float, right: float, y: Axis, value: float, note: str) -> str:
    top = y.at(value)
    width, height = max(0.5, right - left - 1), y.begin - top
    return (
        f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}"'
        f' height="{height:.1f}"><title>{text(note)}</title></rect>'
    )


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def plot(name: str, x: Axis, y: Axis, marks: Sequence[str]) -> str:
    def drawn() -> Iterable[str]:
        for tick in y.ticks():
            place = y.at(tick)
            yield line("grid", LEFT, place, WIDTH - RIGHT, place)
            yield f'<text x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{tick:.3g}</text>'
        yield from marks
        for tick in x.ticks():
            yield (
                f'<text x="{x.at(tick):.1f}" y="{HEIGHT - BOTTOM + 20}"'
                f' text-anchor="middle">{tick:.3g}</text>'
            )

    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(name)}">'
        f"{''.join(drawn())}</svg>"
    )
