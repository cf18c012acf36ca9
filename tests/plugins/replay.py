"""Reads the text of a recipe, and replays it through Triton's interpreter.

It stands for the plugin in C++: it knows the format as launch/launch_plan.py states it, and nothing
of the code that writes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "i32": torch.int32,
    "i64": torch.int64,
}
OPERATORS = ("+", "-", "*", "/", "%", "min", "max")
# What lies in fresh memory, and behind its end: NaN, or -1.
GARBAGE, GUARD = 0xFF, 64
Expression = list[str]  # its tokens


class Code(NamedTuple):
    sm: int
    offset: int
    size: int


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
        codes = [Code(self.number(), self.number(), self.number()) for _ in self.times()]
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
        assert [next(self.tokens), next(self.tokens)] == ["lmcast-recipe", "1"]
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


def fitting(recipe: Recipe, shapes: Sequence[Sequence[int]]) -> Case:
    """Return the first case whose ranges all hold."""
    for case in recipe.cases:
        if all(low <= value(axis, shapes) <= high for axis, low, high in case.ranges):
            return case
    raise LookupError(f"no case for {shapes}")


class Memory:
    """So many bytes of garbage, and a guard behind them."""

    def __init__(self, size: int):
        self.size, self.raw = size, torch.full((size + GUARD,), GARBAGE, dtype=torch.uint8)

    def seen_as(self, kind: str) -> Tensor:
        return self.raw[: self.size].view(TYPES[kind])

    def is_whole(self) -> bool:
        return bool((self.raw[self.size :] == GARBAGE).all())


def argument(
    kind: str, what: Any, type_: str, places: Mapping[str, list], shapes: Sequence[Sequence[int]]
) -> Any:
    """Return an argument of a launch as the interpreter takes it; type_: as it was compiled."""
    if kind in ("i32", "fp32"):
        assert kind == type_
        return value(what, shapes) if kind == "i32" else what
    found = places[kind][what]
    tensor = found.seen_as(type_[1:]) if isinstance(found, Memory) else found
    assert tensor.dtype == TYPES[type_[1:]]
    return tensor


def replay(text: str, compiled: Sequence[Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return what the recipe makes of the inputs, which stay as they are.

    compiled: what the kernels are made of (Kernel in launch/step.py), which the interpreter needs.
    """
    recipe, shapes = Reader(text).recipe(), [x.shape for x in inputs]
    assert [k.name for k in recipe.kernels] == [k.function.__name__ for k in compiled]
    case, before = fitting(recipe, shapes), [x.clone() for x in inputs]
    memories, outputs = [Memory(value(size, shapes)) for size in case.buffers], []
    places = {"in": list(inputs), "out": outputs, "buf": [*memories]}
    for kind, alias, axes in recipe.outputs:
        shape = [value(axis, shapes) for axis in axes]
        memories.append(Memory(torch.Size(shape).numel() * TYPES[kind].itemsize))
        outputs.append(memories[-1].seen_as(kind).view(shape))
        if alias >= 0:
            places["in"][alias] = outputs[-1].copy_(inputs[alias])
    for number, programs, arguments in case.launches:
        kernel, given = compiled[number], compiled[number].by_name()
        assert arguments[-2:] == [("null", None)] * 2
        every = zip(kernel.function.arg_names, kernel.types, strict=True)
        open_ = [(name, kind) for name, kind in every if name not in given]
        for (name, type_), (kind, what) in zip(open_, arguments[:-2], strict=True):
            given[name] = argument(kind, what, type_, places, shapes)
        kernel.function[(value(programs, shapes),)](**given)
    assert all(memory.is_whole() for memory in memories)
    assert all(map(torch.equal, inputs, before))
    return outputs
