"""Recipes as data, with what they mean a second time, to compare the library of plugins with.

An expression is a number, an axis as "0.1", or an operator and two expressions.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Shapes = Sequence[Sequence[int]]
Expression = Any

OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "min": min,
    "max": max,
}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "i32": 4, "i64": 8}


class WrongError(Exception):
    """A recipe does not fit: no case, a division by 0, too large a number, an axis that is not."""


class Kernel(NamedTuple):
    name: str
    threads: int
    shared: int
    images: list[tuple[int, int, int, int]]  # SM, offset, size, CRC-32


class Output(NamedTuple):
    type: str
    alias: int
    dims: list[Expression]


class Launch(NamedTuple):
    kernel: int
    grid: Expression
    arguments: list[tuple]


class Case(NamedTuple):
    ranges: list[tuple[str, int, int]]
    buffers: list[Expression]
    launches: list[Launch]


@dataclass
class Recipe:
    kernels: list[Kernel]
    outputs: list[Output]
    cases: list[Case]

    def text(self) -> str:
        lists = (("kernels", self.kernels), ("outputs", self.outputs), ("cases", self.cases))
        return "\n".join(["lmcast-recipe 2", *(f"{name} {tokens(of)}" for name, of in lists)])


def tokens(value: Any) -> str:
    """Write anything of a recipe: a list is preceded by its length."""
    if isinstance(value, Case):
        return " ".join(f"{name} {tokens(part)}" for name, part in value._asdict().items())
    if isinstance(value, list):
        return " ".join([str(len(value)), *map(tokens, value)])
    return " ".join(map(tokens, value)) if isinstance(value, tuple) else str(value)


def within(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise WrongError
    return value


def evaluate(expression: Expression, shapes: Shapes) -> int:
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        tensor, axis = map(int, expression.split("."))
        if tensor >= len(shapes) or axis >= len(shapes[tensor]):
            raise WrongError
        return shapes[tensor][axis]
    operator, *operands = expression
    first, second = (evaluate(operand, shapes) for operand in operands)
    if operator in "/%" and second == 0:
        raise WrongError
    return within(OPERATIONS[operator](first, second), -(2**63), 2**63 - 1)


def layout(buffers: Iterable[Expression], shapes: Shapes) -> list[int]:
    """Return where each buffer starts, and last the end of all."""
    offsets = [0]
    for buffer in buffers:
        size = within(evaluate(buffer, shapes), 0, 2**63 - 1)
        offsets.append(within(offsets[-1] - (-size // 256) * 256, 0, 2**63 - 1))
    return offsets


def argument(given: tuple, made: dict[int, int], offsets: list[int], shapes: Shapes) -> str:
    kind, *rest = given
    if kind == "i32":
        return f"i32 {within(evaluate(rest[0], shapes), -(2**31), 2**31 - 1)}"
    if kind == "fp32":
        return f"fp32 {struct.unpack('I', struct.pack('f', rest[0]))[0]}"
    if kind == "buf":
        return f"buf {offsets[rest[0]]}"
    if kind == "in":
        if rest[0] >= len(shapes):
            raise WrongError
        return f"out {made[rest[0]]}" if rest[0] in made else f"in {rest[0]}"
    return tokens(given)


def expected(recipe: Recipe, shapes: Shapes) -> str:
    """Return what the library is to say of a recipe for inputs of these shapes."""

    def holds(case: Case) -> bool:
        return all(low <= evaluate(axis, shapes) <= high for axis, low, high in case.ranges)

    index = next((i for i, case in enumerate(recipe.cases) if holds(case)), None)
    if index is None:
        raise WrongError
    case = recipe.cases[index]
    offsets = layout(case.buffers, shapes)
    lines = [f"case {index}", f"workspace {offsets[-1]}"]
    for i, (type_, alias, dims) in enumerate(recipe.outputs):
        if alias >= 0:
            sizes = [evaluate(dim, shapes) for dim in dims]
            if alias >= len(shapes) or sizes != list(shapes[alias]):
                raise WrongError
            lines.append(f"copy {alias} {i} {BYTES[type_] * math.prod(sizes)}")
    made = {output.alias: i for i, output in enumerate(recipe.outputs) if output.alias >= 0}
    for kernel, grid, arguments in case.launches:
        name, threads, shared, _ = recipe.kernels[kernel]
        programs = within(evaluate(grid, shapes), 0, 2**31 - 1)
        written = [argument(given, made, offsets, shapes) for given in arguments]
        if programs:
            lines.append(" ".join(map(str, ["launch", name, programs, threads, shared, *written])))
    return "\n".join([*lines, ""])
