"""Capture: each distinct part of a model is traced once, on meta tensors, with torch.export."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lmcast.exporter.graph.fingerprint import fingerprint
from lmcast.exporter.graph.results import known_shapes
from lmcast.exporter.graph.unread import nothing_unread
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.step import (
    ENDS,
    FEATURES,
    IMAGE_INPUTS,
    ROPE_POSITIONS,
    ROWS,
    Handoff,
    State,
    Step,
    Table,
    embedded,
)

# Example sizes of the dynamic axes: distinct, and above 1, so that torch.export keeps them apart.
SIZES = {"B": 2, "T": 3, "C": 7, "R": 5, "S": 11, "K": 13, "N": 17, "M": 19, "F": 23, "L": 29}


@dataclass(frozen=True)
class Multiple:
    """An axis of some multiple of `step`, and `more` beyond it, as an example of `count` times."""

    step: int
    more: int
    count: int

    def __int__(self) -> int:
        return self.step * self.count + self.more


Sizes = Mapping[str, int | Multiple]

# Programs that a process keeps, the last used: calibration and export trace the same model, and two
# sizes of one family share parts. A program takes about 0.8 MB: at most 100 MB.
KEPT = 128

# What every graph takes besides the states: integers by these axes.
INPUTS: dict[str, tuple[int | str, ...]] = {
    "input_ids": ("B", "T"),
    "cache_lengths": ("B",),
    "token_counts": ("B",),
    "logit_rows": ("B", "R"),
}
Input = tuple[str, tuple[int | str, ...], torch.dtype]
# How the inputs of a part group into tuples: None stands for one of them.
Nesting = tuple["Nesting | None", ...]


@dataclass(frozen=True)
class Part:
    """One traced part: its program, and the names of its inputs and outputs in order."""

    name: str
    program: ExportedProgram
    inputs: tuple[str, ...]
    axes: tuple[tuple[int | str, ...], ...]  # of the inputs: numbers or names from SIZES
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One use of a part in the model: `prefix` is where its parameters lie."""

    part: Part
    prefix: str
    module: nn.Module
    takes: tuple[str, ...] = ()  # names of the shared tensors that go in
    states: tuple[State, ...] = ()
    gives: tuple[str, ...] = ()  # names of the tensors that it hands over


@dataclass(frozen=True)
class Captured:
    """A model as calls of few parts."""

    embed: Call
    positions: Call | None
    side: Call | None
    layers: tuple[Call, ...]
    final: Call
    parts: tuple[Part, ...]


class _Layer(nn.Module):
    """A layer whose tables and handoffs come in and go out as tensors."""

    def __init__(self, layer: nn.Module, taken: Sequence[nn.Module], given: Sequence[Handoff]):
        super().__init__()
        self.part = layer
        self._keys = [id(module) for module in taken]
        self._given = list(given)

    def forward(
        self,
        x: Tensor,
        cache_lengths: Tensor,
        token_counts: Tensor,
        taken: tuple[tuple[Tensor, ...], ...],
        past: tuple[Tensor, ...],
    ) -> Any:
        shared = dict(zip(self._keys, taken, strict=True))
        step = Step(cache_lengths, token_counts, x.shape[1], shared)
        return *self.part(x, step, past), [step.take(handoff) for handoff in self._given]


class _Side(nn.Module):
    """The module beside the layers; its handoffs go out as tensors."""

    def __init__(self, side: nn.Module, given: Sequence[Handoff]):
        super().__init__()
        self.part = side
        self._given = list(given)

    def forward(
        self, input_ids: Tensor, cache_lengths: Tensor, token_counts: Tensor, x: Tensor
    ) -> Any:
        step = Step(cache_lengths, token_counts, x.shape[1])
        self.part(input_ids, x, step)
        return [step.take(handoff) for handoff in self._given]


class _Embed(nn.Module):
    """The embedding with features of pictures among its tokens."""

    def __init__(self, embed: nn.Module):
        super().__init__()
        self.part = embed

    def forward(self, input_ids: Tensor, features: Tensor, rows: Tensor) -> Tensor:
        return embedded(self.part, input_ids, {FEATURES: features, ROWS: rows})


class _Positions(nn.Module):
    """All shared tables of a call."""

    def __init__(self, tables: Sequence[Table]):
        super().__init__()
        self.tables = nn.ModuleList(tables)

    def forward(
        self,
        input_ids: Tensor,
        cache_lengths: Tensor,
        token_counts: Tensor,
        rope_positions: Tensor | None = None,
    ) -> Any:
        tokens = input_ids.shape[1]
        step = Step(cache_lengths, token_counts, tokens, rope_positions=rope_positions)
        return [step.table(cast(Table, table)) for table in self.tables]


def capture(model: Decoder) -> Captured:
    """Trace `model`, whose parameters are on meta, in the dtype of its parameters."""
    dtype = next(model.parameters()).dtype
    images = {name: (name, axes, kind) for name, axes, kind in image_inputs(model)}
    embed = _embed(model, images)
    x: Input = ("x", ("B", "T", _width(embed)), dtype)
    tables = model.tables()
    turned = [images[ROPE_POSITIONS]] if ROPE_POSITIONS in images else []
    positions, shared = _positions(tables, turned) if tables else (None, {})
    if model.visible is not None:
        shared[id(model.visible)] = [images[ENDS]]
    if model.deep is not None:
        shared[id(model.deep)] = [images[FEATURES], images[ROWS]]
    side = _side(model.side, x, shared) if model.side is not None else None

    kinds: dict[str, Part] = {}
    layers = []
    for index, (layer, states) in enumerate(zip(model.layers, model.states(), strict=True)):
        prefix = f"layers.{index}"
        taken = [m for m in layer.modules() if id(m) in shared]
        inputs = [shared[id(m)] for m in taken]
        given = _handoffs(layer, shared)
        gives = _hand(given, prefix, dtype, shared)
        kind = fingerprint(layer, {id(m): own for m, own in zip(taken, inputs, strict=True)})
        if kind not in kinds:
            wrapped = _Layer(layer, taken, given)
            kinds[kind] = _layer(f"Layer{len(kinds)}", wrapped, kind, x, inputs, states, gives)
        takes = tuple(name for group in inputs for name, _, _ in group)
        layers.append(Call(kinds[kind], prefix, layer, takes, states, gives))

    final = trace("Final", model.final, [x, _given("logit_rows")], ["logits"])
    calls = [Call(embed, "embed", model.embed), positions, side]
    parts = [*(call.part for call in calls if call), *kinds.values(), final]
    return Captured(
        Call(embed, "embed", model.embed),
        positions,
        side,
        tuple(layers),
        Call(final, "final", model.final),
        tuple(parts),
    )


def image_inputs(model: Decoder) -> list[Input]:
    """Return what a model takes for pictures, in the order in which its graph does."""
    dtype, found = next(model.parameters()).dtype, list[Input]()
    for name in model.image_inputs:
        axes = tuple(model.image_width if axis == "H" else axis for axis in IMAGE_INPUTS[name])
        found.append((name, axes, dtype if name == FEATURES else torch.int64))
    return found


def _embed(model: Decoder, images: Mapping[str, Input]) -> Part:
    taken = [images[FEATURES], images[ROWS]] if images else []
    module = _Embed(model.embed) if taken else model.embed
    return trace("Embed", module, [_given("input_ids"), *taken], ["x"])


def _handoffs(part: nn.Module, shared: Mapping[int, list[Input]]) -> list[Handoff]:
    """Return the handoffs that a part fills: those it holds and no part before it filled."""
    return [m for m in part.modules() if isinstance(m, Handoff) and id(m) not in shared]


def _hand(
    given: Sequence[Handoff], prefix: str, dtype: torch.dtype, shared: dict[int, list[Input]]
) -> tuple[str, ...]:
    """Put handoffs among what is shared, named below `prefix`; return the names of the tensors."""
    for number, handoff in enumerate(given):
        at = f"{prefix}.{number}" if len(given) > 1 else prefix
        tensors = handoff.tensors
        shared[id(handoff)] = [(f"{at}.{t.name}", t.shape, t.dtype or dtype) for t in tensors]
    return tuple(name for handoff in given for name, _, _ in shared[id(handoff)])


def _side(side: nn.Module, x: Input, shared: dict[int, list[Input]]) -> Call:
    """Trace what is computed beside the layers; also put what it gives among what is shared."""
    given = _handoffs(side, shared)
    gives = _hand(given, "side", x[2], shared)
    inputs = [_given("input_ids"), _given("cache_lengths"), _given("token_counts"), x]
    return Call(trace("Side", _Side(side, given), inputs, gives), "side", side, gives=gives)


def _given(name: str) -> Input:
    return name, INPUTS[name], torch.int64


def _positions(tables: Sequence[Table], turned: list[Input]) -> tuple[Call, dict[int, list[Input]]]:
    """Trace what layers share; also return each table's tensors, by the identity of the table.

    turned: the input with positions for the rotation, where there is one.
    """
    module = _Positions(tables)
    inputs = [_given("input_ids"), _given("cache_lengths"), _given("token_counts"), *turned]
    names = _table_names(tables)
    part = trace("Positions", module, inputs, [name for group in names for name in group])
    traced = iter(part.program.graph.output_node().args[0])
    shared: dict[int, list[Input]] = {}
    for table, group in zip(tables, names, strict=True):
        values = [next(traced).meta["val"] for _ in group]
        axes = [
            tuple(n if isinstance(n, int) else "BT"[i] for i, n in enumerate(value.shape))
            for value in values
        ]
        dtypes = [value.dtype for value in values]
        shared[id(table)] = list(zip(group, axes, dtypes, strict=True))
    return Call(part, "", module), shared


def _layer(
    name: str,
    layer: _Layer,
    kind: str,
    x: Input,
    taken: list[list[Input]],
    states: tuple[State, ...],
    gives: tuple[str, ...],
) -> Part:
    inputs = [x, _given("cache_lengths"), _given("token_counts")]
    inputs += [tensor for group in taken for tensor in group]
    inputs += [(f"{s.name}.past", s.shape, s.dtype or x[2]) for s in states]
    outputs = ["x", *(f"{s.name}.present" for s in states), *gives]
    groups = tuple((None,) * len(group) for group in taken)
    nesting = (None, None, None, groups, (None,) * len(states))
    return trace(name, layer, inputs, outputs, kind, nesting)


def trace(
    name: str,
    module: nn.Module,
    inputs: Sequence[Input],
    outputs: Sequence[str],
    kind: str | None = None,
    nesting: Nesting | None = None,
    sizes: Sizes = SIZES,
) -> Part:
    """Return a part that computes `outputs` of `inputs`, traced unless its like has been.

    kind: the fingerprint of a layer. nesting: how its inputs group into tuples; None: not. sizes:
    of the axes as examples.
    """
    kind = fingerprint(module, {}) if kind is None else kind
    shapes = tuple((axes, dtype) for _, axes, dtype in inputs)
    used = {axis: sizes[axis] for axes, _ in shapes for axis in axes if isinstance(axis, str)}
    modes = torch.get_default_dtype(), torch.is_grad_enabled()
    program = _programs.get(
        (kind, shapes, nesting, *modes, tuple(used.items())),
        lambda: _export(module, shapes, nesting, used),
    )
    return Part(
        name, program, tuple(i[0] for i in inputs), tuple(i[1] for i in inputs), tuple(outputs)
    )


class _Programs:
    """Traced programs by all that a trace depends on; of more than KEPT, the last used.

    The names of inputs and outputs are no part of a program. Parameters are, by dtype and shape: a
    program holds those of the first module that was traced to it, which have no memory.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], ExportedProgram] = {}  # least recently used first

    def get(self, key: tuple[Any, ...], trace: Callable[[], ExportedProgram]) -> ExportedProgram:
        program = self._kept.pop(key, None)
        if program is None:
            program = trace()
        self._kept[key] = program
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return program


_programs = _Programs()


def _export(
    module: nn.Module,
    inputs: Sequence[tuple[tuple[int | str, ...], torch.dtype]],
    nesting: Nesting | None,
    sizes: Sizes,
) -> ExportedProgram:
    """Trace `module` on meta tensors of these axes, with these sizes as examples, and dtypes."""
    args: list[Any] = [
        torch.empty([int(n if isinstance(n, int) else sizes[n]) for n in axes], dtype=dtype,
                    device="meta")
        for axes, dtype in inputs
    ]  # fmt: skip
    dims = {n: _dim(n, size) for n, size in sizes.items()}
    shapes: list[Any] = [
        {i: dims[n] for i, n in enumerate(axes) if isinstance(n, str)} for axes, _ in inputs
    ]
    if nesting is not None:
        args, shapes = (_nest(iter(values), nesting) for values in (args, shapes))
    with nothing_unread(), known_shapes():
        return torch.export.export(module, tuple(args), dynamic_shapes=tuple(shapes), strict=False)


def _dim(axis: str, size: int | Multiple) -> Any:
    """Return what torch.export is told of an axis."""
    if isinstance(size, int):
        return Dim.AUTO
    count = size.step * Dim(f"count_of_{axis}")
    return count + size.more if size.more else count


def _nest(values: Iterator[Any], nesting: Nesting) -> list[Any]:
    return [next(values) if one is None else tuple(_nest(values, one)) for one in nesting]


def _width(embed: Part) -> int:
    (output,) = embed.program.graph.output_node().args[0]
    return int(output.meta["val"].shape[-1])


def _table_names(tables: Sequence[Table]) -> list[list[str]]:
    """Return readable names of every table's tensors: 'rope.cos', 'rope2.cos' ..."""
    seen: dict[str, int] = {}
    names = []
    for table in tables:
        kind = type(table).__name__.lower()
        seen[kind] = seen.get(kind, 0) + 1
        number = "" if seen[kind] == 1 else str(seen[kind])
        names.append([f"{kind}{number}.{output}" for output in table.outputs])
    return names
