"""The report of a recipe, as data and for a person."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lmcast.calib.formats import WEIGHTS
from lmcast.calib.presets import Preset
from lmcast.calib.recipe import Recipe
from lmcast.exporter.calibrate.run import Run, bits
from lmcast.exporter.calibrate.units import left_over
from lmcast.exporter.calibrate.work import joined
from lmcast.exporter.progress import Progress
from lmcast.exporter.prove.divergence import Measured

FORMATS = {format.scheme: name for name, format in WEIGHTS.items()}
OTHER = "no linear layer or expert of a decoder layer"
KEPT = "the budget has room for them as they are"  # the reason of what a budget leaves
SHOWN = 3  # names of those that are left for one reason


def report(
    recipe: str | None, preset: Preset | None, run: Run, measured: Mapping[str, Measured]
) -> dict[str, Any]:
    """Return the report; nothing in it differs from run to run."""
    first = preset.ladder[0] if preset else ""
    better = measured["kept"].kl.value < measured["base"].kl.value
    written = "kept" if better or preset is None else "base"  # of weights as they are both are one
    parts = run.recipes(written)
    whole = joined(parts)
    reasons = {name: why for part in parts for name, why in part.report["left"].items()}
    by_budget = (n for n, format in run.settings.formats.items() if format is None)
    reasons |= dict.fromkeys(by_budget, KEPT)
    return {
        "recipe": recipe,
        "tokens": run.reference[0].ids.numel(),
        "held_out_tokens": run.reference[1].ids.numel(),
        "written": written,
        "bits": bits(whole, run.found),
        "formats": dict(Counter(FORMATS[scheme] for scheme in whole.weights.values())),
        "head": run.head,
        "caches": dict(Counter(whole.caches.values())),
        "rounds_inputs": preset is not None and preset.inputs.format is not None,
        "perplexity": measured["kept"].reference_perplexity.value,
        "models": {
            variant: {
                "name": "calibrated" if variant == "kept" else first,
                "kl": of.kl.value,
                "kl_error": of.kl.error,
                "top1": of.top1.value,
                "perplexity": of.perplexity.value,
                "bytes": of.bytes,
            }
            for variant, of in measured.items()
            if preset or variant == written
        },
        "weights": list(_weights(parts, whole, written, first, run.head)),
        "experts": [stack for part in parts for stack in part.report["experts"]],
        "left": {
            name: reasons.get(name, OTHER)
            for name in left_over(run.found.model, frozenset(whole.weights))
            if preset
        },
    }


def _weights(
    parts: Iterable[Recipe], whole: Recipe, written: str, first: str, head: str | None
) -> Iterator[dict[str, Any]]:
    for part in parts:
        for record in part.report["weights"]:
            name = record["name"]
            if written == "base" and name != head:  # both variants have the same head
                record |= {"algorithm": first, "error": record["base_error"]}
            yield record | {"format": FORMATS[whole.weights[name]]}


def warn(report: Mapping[str, Any], fewest: int, progress: Progress) -> None:
    """Warn of experts that see too few tokens, and of a recipe that quantizes nothing."""
    experts = [count for stack in report["experts"] for count in stack["tokens"]]
    pooled = sum(len(stack["pooled"]) for stack in report["experts"])
    alone = sum(len(stack["weight_only"]) for stack in report["experts"])
    if pooled or alone:
        progress.warn(
            f"{pooled + alone} of {len(experts)} experts see fewer than {fewest} tokens, one of"
            f" them {min(experts)}: {pooled} are calibrated on tokens of their whole layer,"
            f" {alone} on none; give more text with --tokens"
        )
    if report["recipe"] and not report["weights"]:
        progress.warn("no weight of this model can be quantized so; the recipe changes none")


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what matters of a report, for a person."""
    counted = Counter(record["algorithm"] for record in report["weights"])
    if counted:
        yield "chosen: " + ", ".join(f"{name} {n}" for name, n in counted.most_common())
    yield f"{'':12}{'KL':>10}{'top-1':>8}{'perplexity':>12}"
    yield f"{'checkpoint':12}{'':18}{report['perplexity']:>12.3f}"
    for name, row in report["models"].items():
        mark = "  written" if name == report["written"] else ""
        yield (
            f"{row['name']:12}{row['kl']:>10.2e}{row['top1']:>8.1%}{row['perplexity']:>12.3f}{mark}"
        )
    if report["experts"] and report["rounds_inputs"]:
        yield "experts: their weights alone are quantized; inputs are rounded of other layers only"
    if report["head"]:
        yield f"head: {report['head']} is quantized too, its inputs are not rounded"
    for format, count in report["caches"].items():
        yield f"keys and values of {count} layers are held in {format}"
    if report.get("budget"):
        yield from _budget(report)
    yield from _left(report["left"])


def _budget(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield how a budget was spent: by name, every weight that is not in the commonest format."""
    budget = report["budget"]
    for tried in budget["passes"]:
        yield f"measured: KL {tried['kl']:.2e} at {tried['bits']:.2f} bits"
    by_format: dict[str, list[str]] = {}
    for name, format in budget["weights"].items():
        by_format.setdefault(format or "as it is", []).append(name)
    yield f"{budget['bits']:.2f} bits a weight on average, of {len(budget['weights'])} weights:"
    commonest = max(by_format, key=lambda format: len(by_format[format]))
    for format, names in sorted(by_format.items(), key=lambda item: -len(item[1])):
        which = "all others" if format == commonest and len(by_format) > 1 else _places(names)
        yield f"  {format} {len(names)}: {which}"


def _places(names: Iterable[str]) -> str:
    """Return names of weights, those of layers abbreviated: 'layers: mixer.k.weight in 0-3, 7;
    ...'."""
    by_leaf: dict[str, list[int]] = {}
    for name in names:
        _, index, leaf = name.split(".", 2)
        by_leaf.setdefault(leaf, []).append(int(index))
    found = (f"{leaf} in {_ranges(numbers)}" for leaf, numbers in by_leaf.items())
    return f"layers: {'; '.join(found)}"


def _ranges(ordered: Iterable[int]) -> str:
    runs = list[tuple[int, int]]()
    for number in ordered:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _left(left: Mapping[str, str]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for name, why in left.items():
        by_reason.setdefault(why, []).append(name)
    if by_reason:
        yield f"left as they are: {len(left)} matrices"
    for why, names in by_reason.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"  {', '.join(names[:SHOWN])}{more}: {why}"
