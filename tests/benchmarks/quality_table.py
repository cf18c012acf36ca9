"""The tables and the picture of quality.py, from rows that were measured."""

import math
from pathlib import Path
from typing import Any

from lmcast.exporter.prove.divergence import Mean

PICTURE = Path(__file__).with_name("quality.png")
# Divergence at most, as a share of that of nearest rounding (of ModelOpt's FP8_DEFAULT, in fp8).
AIMS = {"mxfp4": 0.6, "mxfp4-w4a4": 0.6, "mxfp4-w4a8": 0.65, "int4": 0.6, "nvfp4": 0.7, "fp8": 1.0}
MODELOPT = "ModelOpt FP8_DEFAULT"
UNTURNED = "rtn, not turned"

Found = dict[str, dict[str, Any]]  # preset -> 'nearest' and 'calibrated', or MODELOPT -> row


def mean(fields: dict[str, Any]) -> Mean:
    return Mean(fields["value"], fields["error"])


def ratio(of: Mean, to: Mean) -> Mean:
    """Return a quotient; its error is that of independent numbers, so rather too large."""
    value = of.value / to.value
    errors = (of.error or 0) / of.value, (to.error or 0) / to.value
    return Mean(value, value * math.hypot(*errors))


def text(model: str, found: Found) -> str:
    columns = ["recipe", "MB", "perplexity", "same top token", "KL, nearest", "KL, calibrated",
               "of nearest", "aim", "s"]  # fmt: skip
    rows, first = [], next(iter(found.values()))["calibrated"]["measured"]
    for name, ways in found.items():
        base, best = (ways[way]["measured"] for way in ("nearest", "calibrated"))
        share = ratio(mean(best["kl"]), mean(base["kl"]))
        aim = f"{AIMS[name]:g}" if name in AIMS and MODELOPT not in ways else ""
        rows.append(
            [
                name,
                f"{best['bytes'] / 1e6:.1f}",
                mean(best["perplexity_ratio"]).text(".4f"),
                f"{best['top1']['value']:.1%}",
                mean(base["kl"]).text(".3g"),
                mean(best["kl"]).text(".3g"),
                share.text(".2f") + (verdict(share.value, AIMS[name]) if aim else ""),
                aim,
                f"{ways['calibrated']['seconds']:.0f}",
            ]
        )
    lines = [
        f"{model}: perplexity {mean(first['reference_perplexity']).text('.2f')},"
        f" {first['reference_bytes'] / 1e6:.1f} MB; {first['chunks']} chunks of {first['tokens']}"
        " tokens; perplexity below is a multiple of it",
        "",
        markdown(columns, rows),
    ]
    theirs = found.get("fp8", {}).get(MODELOPT)
    if theirs:
        kl = mean(theirs["measured"]["kl"])
        share = ratio(mean(found["fp8"]["calibrated"]["measured"]["kl"]), kl)
        lines += ["", f"{MODELOPT}: KL {kl.text('.3g')}; fp8 is {share.text('.2f')} of it (aim:"
                  f" below 1){verdict(share.value, 1)}"]  # fmt: skip
    return "\n".join(lines)


def text_of_algorithms(model: str, found: Found) -> str:
    columns = ["recipe", "algorithm", "weights that keep it", "perplexity", "same top token", "KL",
               "of rtn", "s"]  # fmt: skip
    rows = []
    for name, ways in found.items():
        base = mean(ways["rtn"]["measured"]["kl"])
        for algorithm, way in ways.items():
            measured, kept = way["measured"], way["algorithms"].get(algorithm.split(",")[0], 0)
            rows.append(
                [
                    name,
                    algorithm,
                    f"{kept} of {sum(way['algorithms'].values())}",
                    mean(measured["perplexity_ratio"]).text(".4f"),
                    f"{measured['top1']['value']:.1%}",
                    mean(measured["kl"]).text(".3g"),
                    ratio(mean(measured["kl"]), base).text(".2f"),
                    f"{way['seconds']:.0f}",
                ]
            )
    return f"{model}, each algorithm alone:\n\n{markdown(columns, rows)}"


def text_of_formats(model: str, found: Found) -> str:
    columns = ["weights", "MB", "perplexity", "same top token", "KL, nearest"]
    rows = []
    for name, ways in found.items():
        measured = ways["nearest"]["measured"]
        rows.append(
            [
                name,
                f"{measured['bytes'] / 1e6:.1f}",
                mean(measured["perplexity_ratio"]).text(".4f"),
                f"{measured['top1']['value']:.1%}",
                mean(measured["kl"]).text(".3g"),
            ]
        )
    return f"{model}, weights alone, rounded to nearest:\n\n{markdown(columns, rows)}"


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(share: float, aim: float) -> str:
    return "" if share <= aim else " **missed**"


def draw(every: dict[str, Found]) -> None:
    from matplotlib import pyplot

    figure, planes = pyplot.subplots(
        1, len(every), figsize=(6.5 * len(every), 4.5), layout="constrained", squeeze=False
    )
    for axes, (model, found) in zip(planes[0], every.items(), strict=True):
        places = range(len(found))
        for shift, way in ((-0.2, "nearest"), (0.2, "calibrated")):
            kls = [mean(ways[way]["measured"]["kl"]) for ways in found.values()]
            axes.bar(
                [place + shift for place in places],
                [kl.value for kl in kls],
                0.4,
                yerr=[kl.error or 0 for kl in kls],
                label=way,
            )
        aims = [
            (place, AIMS[name] * ways["nearest"]["measured"]["kl"]["value"])
            for place, (name, ways) in enumerate(found.items())
            if name in AIMS and name != "fp8"
        ]
        if aims:
            axes.plot(*zip(*aims, strict=True), "k_", markersize=14, label="aim")
        if theirs := found.get("fp8", {}).get(MODELOPT):
            place = list(found).index("fp8")
            axes.plot(place, theirs["measured"]["kl"]["value"], "rx", label=MODELOPT)
        axes.set(yscale="log", ylabel="KL per token, nats", title=model)
        axes.set_xticks(list(places), list(found), rotation=60, ha="right")
        axes.grid(alpha=0.3, axis="y", which="both")
        axes.set_ylim(top=axes.get_ylim()[1] * 3)  # room for the legend
        axes.legend(fontsize=8, ncols=4, loc="upper center")
    figure.savefig(PICTURE, dpi=110)
