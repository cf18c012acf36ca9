"""Symbolic integers: expressions over axes of inputs, with their bounds.

Host code that works with them is right for every size within the bounds, or is refused: a
comparison that the bounds do not decide is a TypeError. Choices that only affect speed ask for the
`usual` value.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

# As they are written; divisors are positive, and division rounds down.
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
    "min": min,
    "max": max,
}
NEUTRAL = {"+": 0, "-": 0, "*": 1, "/": 1}


@dataclass(frozen=True, eq=False, repr=False)
class Size:
    """An integer from low to high: an axis, or an operator and what it is applied to."""

    name: str  # of the axis, or the operator
    low: int
    high: int
    usual: int
    parts: tuple["Count", ...] = ()

    def __repr__(self) -> str:
        return f"{text(self)} in {self.low}..{self.high}"

    def __index__(self) -> int:
        if self.low != self.high:
            raise TypeError(f"one number is needed, not the open size {self!r}")
        return self.low

    def __bool__(self) -> bool:
        return self != 0

    def __eq__(self, other: Any) -> bool:
        (low, high), (least, most) = bounds(self), bounds(other)
        if text(self) == text(other):
            return True
        if high < least or most < low:
            return False
        raise TypeError(f"the bounds do not decide {self!r} == {other!r}")

    def __lt__(self, other: "Count") -> bool:
        return _less(self, other)

    def __gt__(self, other: "Count") -> bool:
        return _less(other, self)

    def __le__(self, other: "Count") -> bool:
        return not _less(other, self)

    def __ge__(self, other: "Count") -> bool:
        return not _less(self, other)

    def __neg__(self) -> "Count":
        if self.name == "/":  # -(-a // b) rounds up: (a + b - 1) // b
            number, divisor = self.parts
            return (divisor - 1 - number) // divisor
        return self * -1

    def __add__(self, other: "Count") -> "Count":
        if isinstance(other, int) and self.name == "+" and isinstance(self.parts[1], int):
            return self.parts[0] + (self.parts[1] + other)
        return _applied("+", self, other)

    def __sub__(self, other: "Count") -> "Count":
        return self + -other if isinstance(other, int) else _applied("-", self, other)

    def __rsub__(self, other: int) -> "Count":
        return -self + other

    def __mul__(self, other: "Count") -> "Count":
        (first, factor), (second, more) = _factored(self), _factored(other)
        # The factor stays outside, where a division finds it.
        return _applied("*", _applied("*", first, second), factor * more)

    def __floordiv__(self, other: "Count") -> "Count":
        first, factor = _factored(self)
        if isinstance(other, int) and other > 0 and factor % other == 0:
            return first * (factor // other)
        return _applied("/", self, other)

    def __rfloordiv__(self, other: int) -> "Count":
        return _applied("/", other, self)

    def __mod__(self, other: "Count") -> "Count":
        return _applied("%", self, other)

    def __rmod__(self, other: int) -> "Count":
        return _applied("%", other, self)

    __radd__, __rmul__ = __add__, __mul__


Count: TypeAlias = Size | int


def bounds(size: Count) -> tuple[int, int]:
    """Return the least and the largest value."""
    if isinstance(size, Size):
        return size.low, size.high
    if isinstance(size, int):
        return size, size
    raise TypeError(f"a size and {size!r} are not compared or combined")


def largest(size: Count) -> int:
    """Return the upper bound: for decisions that must be right for every value."""
    return bounds(size)[1]


def usual(size: Count) -> int:
    """Return the usual value: for decisions where any value gives a right result."""
    return size.usual if isinstance(size, Size) else size


def least(first: Count, second: Count) -> Count:
    """Return the smaller one, where `min` would have to decide which."""
    return _applied("min", first, second)


def most(first: Count, second: Count) -> Count:
    """Return the larger one, where `max` would have to decide which."""
    return _applied("max", first, second)


def text(size: Count) -> str:
    """Return the expression in prefix notation: numbers, names of axes, and OPERATORS."""
    low, high = bounds(size)
    if isinstance(size, Size) and low != high:
        return " ".join([size.name, *map(text, size.parts)])
    return str(low)


def _less(first: Count, second: Count) -> bool:
    (low, high), (least, most) = bounds(first), bounds(second)
    if high < least:
        return True
    if low >= most or text(first) == text(second):
        return False
    raise TypeError(f"the bounds do not decide {first!r} < {second!r}")


def _factored(size: Count) -> tuple[Count, int]:
    """Return an expression without its constant factor, and that factor."""
    if isinstance(size, int):
        return 1, size
    if size.name == "*" and isinstance(size.parts[1], int):
        return size.parts[0], size.parts[1]
    return size, 1


def _known(size: Count) -> Count:
    """Return a size of which there is one value as that number."""
    low, high = bounds(size)
    return low if low == high else size


def _applied(name: str, first: Count, second: Count) -> Count:
    """Return the operator applied, as simple as the bounds allow."""
    first, second = _known(first), _known(second)
    (low, high), (least, most) = bounds(first), bounds(second)
    if name in ("/", "%") and least <= 0:
        raise TypeError(f"a divisor must be positive, and is {second!r}")
    if (name == "min" and high <= least) or (name == "max" and low >= most):
        return first
    if (name == "min" and most <= low) or (name == "max" and least >= high):
        return second
    if name == "%" and low >= 0 and high < least:
        return first
    if name in ("+", "*") and isinstance(first, int):
        first, second = second, first
    if isinstance(second, int) and second == NEUTRAL.get(name):
        return first
    # All but % are monotonic in each operand: the ends are where the operands have theirs.
    ends = [OPERATORS[name](x, y) for x in (low, high) for y in (least, most)]
    if name == "%" and (low < high or least < most):
        ends = [0, min(most - 1, high) if low >= 0 else most - 1]
    value = OPERATORS[name](usual(first), usual(second))
    return _known(Size(name, min(ends), max(ends), value, (first, second)))
