"""Mixed precision under a budget: which format each weight takes.

Every weight has options, each with its bytes and the model's error if only this weight is stored
that way; errors are assumed to add up. Starting from the smallest option of every weight, the step
that removes the most error per byte is taken first, as long as the budget lasts. Options above the
lower convex hull of a weight's errors over its bytes are never taken.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lmcast.calib.formats import WEIGHTS

PASSES = 4  # measurements of a search at most
TOWARDS = 0.85  # of the divergence that is allowed, which the next measurement is to have
NEAR = 0.01  # of the bytes: what is nearer than that to what was measured is not measured


@dataclass(frozen=True)
class Option:
    """One way to store a weight. format: a name of calib.formats.WEIGHTS; None: unquantized."""

    format: str | None
    bytes: float
    error: float


Options = Mapping[str, Sequence[Option]]
Plan = Mapping[str, Option]


@dataclass(frozen=True)
class Tried:
    plan: Plan
    kl: float


def candidates(format: str) -> tuple[str, ...]:
    """Return the formats of weights that a recipe of `format` may take, the narrowest first."""
    scheme = WEIGHTS[format].scheme
    if scheme.bits == 8:
        return (format,)
    return (format, "int8" if scheme.element.integer else "fp8-channel")


def size(plan: Plan) -> float:
    """Return the bytes of all weights under a plan."""
    return math.fsum(option.bytes for option in plan.values())


def narrowest(options: Options) -> dict[str, Option]:
    return {name: min(each, key=_smaller) for name, each in options.items()}


def widest(options: Options, quantized: bool = False) -> dict[str, Option]:
    """Return the largest option of each weight; quantized: the largest that is quantized."""
    return {
        name: max((o for o in each if o.format or not quantized), key=lambda o: o.bytes)
        for name, each in options.items()
    }


def allocate(options: Options, bytes: float) -> dict[str, Option]:
    """Return the greedy plan of at most this many bytes; the smallest plan, where even that is
    larger."""
    plan = narrowest(options)
    left, full = bytes - size(plan), set[str]()
    for name, option in _steps(options):
        more = option.bytes - plan[name].bytes
        if name in full or more > left + 1e-6:  # what sums of shares of bytes are off by
            full.add(name)
            continue
        plan[name] = option
        left -= more
    return plan


def least(
    options: Options, most: float, measure: Callable[[Plan], float], passes: int = PASSES
) -> tuple[Plan | None, list[Tried]]:
    """Search for the smallest plan whose measured divergence is at most `most`.

    measure: plan -> divergence of the whole model. The next plan to measure lies between the
    largest one that failed and the smallest that did not: where the errors of weights, scaled by
    the last measurement, predict `most`, or half way where they predict nothing in between. If none
    has succeeded, the last one is the plan of the widest formats, unless a larger one has failed.

    Returns the plan, None if all failed, and all that were measured.
    """
    tried = list[Tried]()
    plan, best = narrowest(options), None
    low, high = size(plan), size(widest(options))
    for count in range(1, passes + 1):
        kl = measure(plan)
        tried.append(Tried(plan, kl))
        if kl <= most:
            best, high = plan, size(plan)
        else:
            low = size(plan)
        if high - low <= NEAR * high or count == passes:
            break
        wide = widest(options, quantized=True)
        if best is None and count == passes - 1 and size(wide) > low:
            plan = wide
            continue
        plan = _promising(options, TOWARDS * most * _error(plan) / kl if kl > 0 else math.inf)
        if not low + NEAR * high < size(plan) < high - NEAR * high:
            plan = allocate(options, (low + high) / 2)
        if not low < size(plan) < high:
            break
    return best, tried


def _promising(options: Options, error: float) -> dict[str, Option]:
    """Return the first plan on the way from the smallest whose errors add up to at most `error`."""
    plan = narrowest(options)
    rest = _error(plan)
    for name, option in _steps(options):
        if rest <= error:
            break
        rest -= plan[name].error - option.error
        plan[name] = option
    return plan


def _error(plan: Plan) -> float:
    return math.fsum(option.error for option in plan.values())


def _smaller(option: Option) -> tuple[float, float]:
    return option.bytes, option.error


def _steps(options: Options) -> Iterator[tuple[str, Option]]:
    """Yield, in the order of the greedy way, the option to take instead of the one before."""
    found = list[tuple[float, str, Option]]()
    for name, each in options.items():
        ordered = sorted(each, key=_smaller)
        at = ordered[0]
        while better := [o for o in ordered if o.bytes > at.bytes and o.error < at.error]:
            after = max(better, key=lambda o: _slope(at, o))
            found.append((_slope(at, after), name, after))
            at = after
    # Slopes of a weight fall from step to step; where two are equal, the order found stays.
    found.sort(key=lambda step: -step[0])
    yield from ((name, option) for _, name, option in found)


def _slope(at: Option, after: Option) -> float:
    return (at.error - after.error) / (after.bytes - at.bytes)
