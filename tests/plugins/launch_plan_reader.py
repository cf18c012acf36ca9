"""Reads the text of a launch plan.

It knows the format as launch/launch_plan.py states it, and nothing of the code that writes it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

TYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "i32": torch.int32,
    "i64": torch.int64,
}
OPERATORS = ("+", "-", "*", "/", "%", "min", "max")
Expression = list[str]  # its tokens


class Code(NamedTuple):
    sm: int
    offset: int
    size: int
    crc32: int


class Kernel(NamedTuple):
    name: str
    threads: int
    shared: int
    codes: list[Code]


class Output(NamedTuple):
    type: str
    alias: int
    shape: list[Expression]


class Range(NamedTuple):
    axis: Expression
    low: int
    high: int


class Launch(NamedTuple):
    kernel: int
    programs: Expression
    arguments: list[tuple[str, Any]]


class Case(NamedTuple):
    ranges: list[Range]
    buffers: list[Expression]
    launches: list[Launch]


class Recipe(NamedTuple):
    kernels: list[Kernel]
    outputs: list[Output]
    cases: list[Case]


class Reader:
    """The tokens of a recipe, one by one."""

    def __init__(self, text: str):
        self.tokens = iter(text.split())

    def number(self) -> int:
        return int(next(self.tokens))

    def times(self, word: str | None = None) -> range:
        """Return as many turns as the next number says, behind a word."""
        if word is not None:
            found = next(self.tokens)
            assert found == word, (found, word)
        return range(self.number())

    def expression(self) -> Expression:
        token = next(self.tokens)
        if token in OPERATORS:
            return [token, *self.expression(), *self.expression()]
        assert all(part.removeprefix("-").isdigit() for part in token.split(".")), token
        return [token]

    def argument(self) -> tuple[str, Any]:
        kind = next(self.tokens)
        if kind == "null":
            return kind, None
        if kind == "i32":
            return kind, self.expression()
        if kind == "fp32":
            return kind, float(next(self.tokens))
        assert kind in ("in", "out", "buf"), kind
        return kind, self.number()

    def kernel(self) -> Kernel:
        name, threads, shared = next(self.tokens), self.number(), self.number()
        codes = [Code(*(self.number() for _ in Code._fields)) for _ in self.times()]
        return Kernel(name, threads, shared, codes)

    def output(self) -> Output:
        kind, alias = next(self.tokens), self.number()
        return Output(kind, alias, [self.expression() for _ in self.times()])

    def launch(self) -> Launch:
        kernel, programs = self.number(), self.expression()
        return Launch(kernel, programs, [self.argument() for _ in self.times()])

    def case(self) -> Case:
        ranges = [
            Range(self.expression(), self.number(), self.number()) for _ in self.times("ranges")
        ]
        buffers = [self.expression() for _ in self.times("buffers")]
        return Case(ranges, buffers, [self.launch() for _ in self.times("launches")])

    def recipe(self) -> Recipe:
        assert [next(self.tokens), next(self.tokens)] == ["lmcast-recipe", "2"]
        kernels = [self.kernel() for _ in self.times("kernels")]
        outputs = [self.output() for _ in self.times("outputs")]
        found = Recipe(kernels, outputs, [self.case() for _ in self.times("cases")])
        assert next(self.tokens, None) is None
        return found


def value(expression: Expression, shapes: Sequence[Sequence[int]]) -> int:
    """Return what an expression is for inputs of these shapes."""
    return _value(iter(expression), shapes)


def _value(tokens: Iterator[str], shapes: Sequence[Sequence[int]]) -> int:
    token = next(tokens)
    if token not in OPERATORS:
        where, _, axis = token.partition(".")
        return shapes[int(where)][int(axis)] if axis else int(where)
    first, second = _value(tokens, shapes), _value(tokens, shapes)
    assert second > 0 or token not in ("/", "%")
    return {
        "+": lambda: first + second,
        "-": lambda: first - second,
        "*": lambda: first * second,
        "/": lambda: first // second,
        "%": lambda: first % second,
        "min": lambda: min(first, second),
        "max": lambda: max(first, second),
    }[token]()
