"""The report of `lmcast quality` as one HTML file: numbers, and plots that need no script."""

from lmcast.exporter.prove.divergence import LEAST_KL, Mean, Measured
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
)


def html(measured: Measured, title: str) -> str:
    """Return the report; title: what was compared with what."""
    parts = [
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
    return page("quality", f"Quality of {title}", parts)


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
    return pairs(rows)


def _by_position(measured: Measured) -> str:
    values = [max(kl, LEAST_KL) for kl in measured.by_position]
    x = Axis(0, max(1, len(values) - 1), LEFT, WIDTH - RIGHT)
    y = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP, logarithmic=True)
    points = " ".join(f"{x.at(i):.1f},{y.at(value):.1f}" for i, value in enumerate(values))
    return plot("KL by position", x, y, [f'<polyline class="line" points="{points}"/>'])


def _histogram(measured: Measured) -> str:
    bins = measured.histogram
    x = Axis(bins[0][0], bins[-1][1], LEFT, WIDTH - RIGHT, logarithmic=True)
    y = Axis(0, max(count for _, _, count in bins), HEIGHT - BOTTOM, TOP)
    bars = [
        bar(x.at(low), x.at(high), y, count, f"{low:.2g} to {high:.2g} nats: {count} positions")
        for low, high, count in bins
    ]
    return plot("Histogram of KL", x, y, bars)


def _layers(measured: Measured) -> str:
    layers = measured.layers or ()
    x = Axis(-0.5, len(layers) - 0.5, LEFT, WIDTH - RIGHT)
    y = Axis(0, max(_top(each.error) for each in layers) or 1, HEIGHT - BOTTOM, TOP)
    marks = []
    for each in layers:
        low, high = x.at(each.layer - 0.4), x.at(each.layer + 0.4)
        note = f"layer {each.layer}: {each.error.text('.4g')}"
        marks.append(bar(low, high, y, each.error.value, note))
        if each.error.error is not None:
            middle = (low + high) / 2
            ends = y.at(each.error.value - each.error.error), y.at(_top(each.error))
            marks.append(line("whisker", middle, ends[0], middle, ends[1]))
    return plot("Errors of layers", x, y, marks)


def _top(mean: Mean) -> float:
    return mean.value + (mean.error or 0)
