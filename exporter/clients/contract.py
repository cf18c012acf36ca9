"""What a program that opens engines asks of a graph: one record each, and what it is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lmcast.plugins.onnx_builder import Builder, Value

if TYPE_CHECKING:
    from lmcast.exporter.engine.description import Description

Axis = int | str
ROWS, TOKENS = "batch_size", "sequence_length"  # axes as all of these programs call them
CAPACITY = "C"  # as the engine's own graph calls it


@dataclass(frozen=True, eq=False)
class Held:
    """A state of the graph: what a mixer has declared, and where the graph takes and gives it.

    shape: its axes, "B" first; one that grows by a slot for each token has CAPACITY among them.
    attended: only a kernel reads it that takes a cache of any length from the call's total on, and
        gives one of that total.
    """

    name: str
    shape: tuple[Axis, ...]
    dtype: ir.DataType
    past: ir.Value
    present: ir.Value
    attended: bool = False

    @property
    def grows(self) -> bool:
        return CAPACITY in self.shape

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Its axes without rows: heads, tokens and width of a cache, which has one head if the
        state has none."""
        return (1,) * (4 - len(self.shape)) + self.shape[1:]

    @property
    def layer(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Call:
    """What the engine's graph takes besides states, made of what a program gives.

    inputs: the latter, in order.
    total: tokens of the longest row behind the call with its padding, int64 [1].
    logits: the axes of logits but for the vocabulary.
    kept: outputs besides states, for the program to give again in the next call.
    """

    inputs: tuple[Value, ...]
    input_ids: Value
    cache_lengths: Value
    token_counts: Value
    logit_rows: Value
    total: Value
    logits: tuple[Axis, ...]
    kept: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Port:
    """A tensor that a program carries from call to call for any number of states.

    past, present: the names of the input and of the output that becomes it; before, after: axes.
    split: (builder, input) -> the states before the call.
    join: (builder, input, states after the call) -> the output.
    """

    past: str
    present: str
    dtype: ir.DataType
    before: tuple[Axis, ...]
    after: tuple[Axis, ...]
    held: tuple[Held, ...]
    split: Callable[[Builder, Value], Sequence[Value]]
    join: Callable[[Builder, Value, Sequence[Value]], Value]


@dataclass(frozen=True)
class Texts:
    """What programs are told of an engine's texts.

    tokenizer: whether there is one.
    ids: of special tokens, by their names, as far as the tokenizer has them.
    templates: chat templates by name, the usual one as "default".
    """

    tokenizer: bool
    ids: Mapping[str, int]
    templates: Mapping[str, str]


@dataclass(frozen=True)
class Contract:
    """One program's, or that of several that agree.

    name, about: for people.
    graph: the file of the graph.
    prologue: writes what makes a Call of what the program gives.
    ports: (all states, the call) -> what the program carries.
    grows: whether a cache has as many slots as there were tokens, not as there ever will be.
    crowded: where it does not, the name of the node at which a call fails that it has no room for.
    lengthens: whether it takes, all the same, a longer cache that a kernel of attention gives.
    refuse: (the states, the engine) -> why the program cannot hold them; '' where it can.
    files: (the engine, the ports, its texts) -> what else it looks for in the directory: name ->
        JSON.
    """

    name: str
    about: str
    graph: str
    prologue: Callable[[Builder], Call]
    ports: Callable[[Sequence[Held], Call], list[Port]]
    grows: bool
    refuse: "Callable[[Sequence[Held], Description], str]"
    files: "Callable[[Description, Sequence[Port], Texts], Mapping[str, Any]]"
    crowded: str = ""
    lengthens: bool = False


def given(name: str, *axes: Axis, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
    """Return an input of a graph."""
    return ir.Value(name=name, shape=ir.Shape(list(axes)), type=ir.TensorType(dtype))


def zeros(op: Builder, sizes: Value, dtype: ir.DataType) -> Value:
    """Return zeros; made in fp32, as not all kernels know all dtypes."""
    made = op.Expand(0.0, sizes)
    return made if dtype == ir.DataType.FLOAT else op.Cast(made, to=dtype)


def pairs(held: Sequence[Held]) -> list[tuple[Held, Held | None]]:
    """Return states that grow, two by two, of one shape and dtype; an odd one has no other.

    Key and value of a layer find each other; latents of one layer go with those of the next.
    """
    groups: dict[tuple[Any, ...], list[Held]] = {}
    for state in held:
        groups.setdefault((state.axes, state.dtype), []).append(state)
    return [pair for group in groups.values() for pair in two_by_two(group)]


def two_by_two(held: Sequence[Held]) -> list[tuple[Held, Held | None]]:
    """Return states in twos, in their order; an odd last one has no other."""
    others: list[Held | None] = [*held[1::2], None]
    return list(zip(held[::2], others, strict=False))
