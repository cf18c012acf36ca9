"""Cuts a graph into parts that run one after another, each for all calls.

A value is constant; or shared, where inputs that are the same in all calls decide it; or of each
call. Parts have nodes of each call, and with them the constant ones that these need.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import onnx_ir as ir

LOGITS, PAST, PRESENT = "logits", ".past", ".present"


class Kind(IntEnum):
    """What decides a value: of several inputs the largest."""

    CONSTANT, SHARED, EACH = range(3)


@dataclass
class Part:
    """Nodes of a graph, by number.

    needs, gives: the values that come from before it, and that are used behind it. shared: those
    that it needs of all calls. states: the names of those that it reads and writes.
    """

    nodes: list[int]
    needs: list[str] = field(default_factory=list)
    gives: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)


class Cut:
    """A graph, and who needs what of it. model: a ModelProto."""

    def __init__(self, model: Any, shared: Mapping[str, int]):
        """shared: inputs that are the same in all calls; the bytes of what is made of each."""
        self._model, self._nodes, self._bytes = model, list(model.graph.node), shared
        self._inputs = {value.name: value for value in model.graph.input}
        self._uses = [_used(node) for node in self._nodes]
        self._maker = {name: i for i, node in enumerate(self._nodes) for name in node.output}
        self._kind = {value.name: Kind.CONSTANT for value in model.graph.initializer}
        self._kind |= {n: Kind.SHARED if n in shared else Kind.EACH for n in self._inputs}
        self._each = list[int]()
        for i, (node, uses) in enumerate(zip(self._nodes, self._uses, strict=True)):
            kind = max((self._kind[name] for name in uses), default=Kind.CONSTANT)
            self._kind |= dict.fromkeys(node.output, kind)
            self._each += [i] if kind == Kind.EACH else []
        self._states = self._of_states()

    def parts(self, most: int) -> list[Part]:
        """Return the parts, each with up to so many bytes of what is shared, if states allow."""
        whole = [range(min(at) + 1, max(at) + 1) for at in self._states.values()]
        parts, held = [Part([])], 0
        for i in self._each:
            shared = [name for name in self._uses[i] if self._kind[name] == Kind.SHARED]
            own = sum(self._bytes[name] for name in self._asked(shared))
            if held and held + own > most and not any(i in between for between in whole):
                parts.append(Part([]))
                held = 0
            parts[-1].nodes.append(i)
            held += own
        for part in parts:
            self._complete(part)
        return parts

    def shared(self, part: Part) -> tuple[bytes, list[str]]:
        """Return the graph of what is the same in all calls of a part, and its inputs."""
        nodes, asked = self._behind(part.shared, Kind.SHARED), self._asked(part.shared)
        return self._graph(nodes, [self._inputs[name] for name in asked], part.shared), asked

    def _asked(self, values: Iterable[str]) -> list[str]:
        """Return the inputs that decide values which are shared."""
        nodes = self._behind(values, Kind.SHARED)
        return [name for i in nodes for name in self._uses[i] if name in self._bytes]

    def each(self, part: Part, given: Mapping[str, np.ndarray]) -> bytes:
        """Return the graph of what is computed in each call of a part.

        given: arrays of the dtypes that its inputs have.
        """
        used = [name for i in part.nodes for name in self._uses[i]]
        nodes = sorted({*part.nodes, *self._behind(used, Kind.CONSTANT)})
        states = [self._inputs[name + PAST] for name in part.states]
        inputs = [self._input(name, given[name].dtype) for name in (*part.needs, *part.shared)]
        outputs = [*part.gives, *(name + PRESENT for name in part.states)]
        return self._graph(nodes, [*inputs, *states], outputs)

    def _of_states(self) -> dict[str, set[int]]:
        """Return the nodes that read or write each state, which a part must have together."""
        found: dict[str, set[int]] = {}
        for i in self._each:
            for name in (*self._uses[i], *self._nodes[i].output):
                state, end = name.removesuffix(PAST).removesuffix(PRESENT), (PAST, PRESENT)
                if name.endswith(end) and state + PAST in self._inputs:
                    found.setdefault(state, set()).add(i)
        return found

    def _complete(self, part: Part) -> None:
        """Say what a part needs, gives and holds."""
        made = {name for i in part.nodes for name in self._nodes[i].output if name}
        used = dict.fromkeys(name for i in part.nodes for name in self._uses[i])
        part.states = [name for name, at in self._states.items() if at & {*part.nodes}]
        ends = {name + end for name in part.states for end in (PAST, PRESENT)}
        part.shared = [name for name in used if self._kind[name] == Kind.SHARED]
        part.needs = [n for n in used if self._kind[n] == Kind.EACH and n not in made | ends]
        later = (name for i in self._each if i > part.nodes[-1] for name in self._uses[i])
        wanted = {LOGITS, *later}
        part.gives = [name for name in made if name in wanted and name not in ends]

    def _behind(self, names: Iterable[str], most: Kind) -> list[int]:
        """Return the nodes that values up to a kind are computed by, in order."""
        found, left = set[int](), list(names)
        while left:
            name = left.pop()
            i = self._maker.get(name)
            if i is not None and i not in found and self._kind[name] <= most:
                found.add(i)
                left += self._uses[i]
        return sorted(found)

    def _input(self, name: str, dtype: np.dtype) -> Any:
        if name in self._inputs:
            return self._inputs[name]
        made = type(self._model.graph.input[0])(name=name)
        made.type.tensor_type.elem_type = ir.DataType.from_numpy(dtype).value
        return made

    def _graph(self, nodes: list[int], inputs: Iterable[Any], outputs: Collection[str]) -> bytes:
        """Return a model of some of the nodes."""
        whole, made = self._model.graph, type(self._model)()
        for name in ("ir_version", "producer_name"):
            setattr(made, name, getattr(self._model, name))
        made.opset_import.extend(self._model.opset_import)
        made.functions.extend(self._model.functions)
        used = {name for i in nodes for name in self._uses[i]}
        made.graph.name = whole.name
        made.graph.node.extend(self._nodes[i] for i in nodes)
        made.graph.initializer.extend(value for value in whole.initializer if value.name in used)
        made.graph.input.extend(inputs)
        for name in outputs:
            made.graph.output.add(name=name)
        data: bytes = made.SerializeToString()
        return data


def _used(node: Any) -> list[str]:
    """Return the names of values that a node uses, within its subgraphs too."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            made = {value.name for value in (*graph.input, *graph.initializer)}
            made |= {name for inner in graph.node for name in inner.output}
            names |= {name for inner in graph.node for name in _used(inner)} - made
            names |= {value.name for value in graph.output} - made
    return sorted(names)
