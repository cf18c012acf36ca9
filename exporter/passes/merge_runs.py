"""Merge weights that are adjacent in a file into one weight of the graph.

before: stack = Concat(weight of expert 0, weight of expert 1, ...), each a range of a file
after:  stack = Concat(Gather(run 0, rows), Reshape(Gather(run 1, rows), shape), ...)

A run has a row for each of the adjacent ranges, which are of one size and of any stacks. In files,
the matrices of experts are in the order of their names: down, gate and up of expert 0, then of 1,
10, 11, 2 ..., and a file may end anywhere. Evenly spaced rows become a Slice; a Slice of everything
is left out. The largest models have 70,000 such matrices, each of which costs a graph 300 bytes.
"""

from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import constant, insert, nodes_of, replace

# Entries of a stack per run, at least: with fewer, the new nodes cost as much as they save.
FEWEST = 4
Place = tuple[int, int]  # number of a run, row in it


def merge_runs(model: ir.Model) -> int:
    stacks = [node for node in nodes_of(model, "Concat") if _is_stack(node)]
    while True:
        runs = find_runs(_weight(value) for node in stacks for value in node.inputs)
        places = {w.name: (i, row) for i, run in enumerate(runs) for row, w in enumerate(run)}
        parts = [_parts([places[_weight(value).name] for value in s.inputs]) for s in stacks]
        worth = [s for s, p in zip(stacks, parts, strict=True) if len(p) * FEWEST <= len(s.inputs)]
        if len(worth) == len(stacks):
            break
        stacks = worth  # runs depend on which stacks take part
    merging = _Merging(model, runs)
    for node, part in zip(stacks, parts, strict=True):
        replace(model, node, [merging.stack(node, part)])
    return len(stacks)


def find_runs(weights: Iterable[ir.ExternalTensor]) -> list[list[ir.ExternalTensor]]:
    """Group weights into runs of one file, dtype and size in which each begins where the last
    ends."""
    runs: list[list[ir.ExternalTensor]] = []
    end = None
    for weight in sorted(weights, key=lambda w: (w.location, w.offset)):
        begin, size = weight.offset, weight.length
        assert begin is not None and size is not None
        if (weight.location, begin, weight.dtype, size) == end:
            runs[-1].append(weight)
        else:
            runs.append([weight])
        end = weight.location, begin + size, weight.dtype, size
    return runs


def _is_stack(node: ir.Node) -> bool:
    """Whether a Concat stacks ranges of files that no other node reads."""
    return node.attributes["axis"].as_int() == 0 and all(
        value is not None
        and isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.shape[0] == 1
        and len(value.uses()) == 1
        and not value.is_graph_output()
        for value in node.inputs
    )


def _weight(value: ir.Value | None) -> ir.ExternalTensor:
    assert value is not None and isinstance(value.const_value, ir.ExternalTensor)
    return value.const_value


def _inner(weight: ir.ExternalTensor) -> tuple[int, ...]:
    return tuple(weight.shape.numpy()[1:])


def _parts(places: list[Place]) -> dict[int, list[Place]]:
    """Return the entries of a stack by run, in their order: run -> (row, entry) of each."""
    parts: dict[int, list[Place]] = {}
    for entry, (run, row) in enumerate(places):
        parts.setdefault(run, []).append((row, entry))
    return parts


class _Merging:
    def __init__(self, model: ir.Model, runs: list[list[ir.ExternalTensor]]):
        self.model = model
        self.constants: dict[tuple[int, ...], ir.Value] = {}
        self.runs = [self.run(run) for run in runs]

    def run(self, weights: list[ir.ExternalTensor]) -> ir.Value:
        """Return a new weight of the graph in the place of those of a run.

        Its rows have the shape that most of them had.
        """
        for weight in weights:
            del self.model.graph.initializers[str(weight.name)]
        first, count = weights[0], len(weights)
        ((inner, _),) = Counter(_inner(weight) for weight in weights).most_common(1)
        name, shape = f"{first.name}+{count - 1}", ir.Shape([count, *inner])
        value = ir.Value(name=name, type=ir.TensorType(first.dtype), shape=shape)
        assert first.length is not None
        value.const_value = ir.ExternalTensor(
            first.location, first.offset, count * first.length, first.dtype,
            shape=shape, name=name, base_dir=first.base_dir,
        )  # fmt: skip
        self.model.graph.initializers[name] = value
        return value

    def stack(self, node: ir.Node, parts: dict[int, list[Place]]) -> ir.Value:
        """Return the values of a stack, computed from its runs before `node`."""
        name, inner = str(node.name), _inner(_weight(node.inputs[0]))
        taken = []
        for i, (run, part) in enumerate(parts.items()):
            weight = _weight(self.runs[run])
            length, rows = weight.shape.numpy()[0], [row for row, _ in part]
            value = self.rows(node, self.runs[run], length, rows, f"{name}.{i}")
            if _inner(weight) != inner:
                shape, label = self.numbers([len(rows), *inner]), f"{name}.{i}.Reshape"
                value = insert(self.model, node, "Reshape", [value, shape], name=label)[0]
            taken.append(value)
        whole = taken[0]
        if len(taken) > 1:
            whole = insert(self.model, node, "Concat", taken, {"axis": 0}, name=f"{name}.rows")[0]
        entries = [entry for part in parts.values() for _, entry in part]
        order = sorted(range(len(entries)), key=entries.__getitem__)
        return self.rows(node, whole, len(entries), order, f"{name}.ordered")

    def rows(
        self, at: ir.Node, value: ir.Value, length: int, rows: list[int], name: str
    ) -> ir.Value:
        """Return these rows of a value that has `length` of them, in this order."""
        if rows == list(range(length)):
            return value
        first, last = rows[0], rows[-1]
        step = rows[1] - first if len(rows) > 1 else 1
        if step > 0 and rows == list(range(first, last + 1, step)):
            bounds = [self.numbers([n]) for n in (first, last + 1, 0, step)]
            return insert(self.model, at, "Slice", [value, *bounds], name=name)[0]
        return insert(self.model, at, "Gather", [value, self.numbers(rows)], name=name)[0]

    def numbers(self, values: list[int]) -> ir.Value:
        """Return a constant at the start of the graph, the same for the same numbers."""
        key = tuple(values)
        if key not in self.constants:
            start, name = self.model.graph[0], f"runs.Constant.{len(self.constants)}"
            self.constants[key] = constant(self.model, start, values, ir.DataType.INT64, name)
        return self.constants[key]
