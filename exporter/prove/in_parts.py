"""The graph of an engine run in parts: all calls of one part, then all calls of the next.

What of a part is the same in all calls, weights that are dequantized, is computed once for them,
and memory holds that of one part at a time.

Letters: B rows of a call, R rows of logits, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from lmcast.exporter.backends.onnxruntime import Runner, States, value_of
from lmcast.exporter.backends.runner import Shaped
from lmcast.exporter.prove.cut import LOGITS, Cut, Part
from lmcast.exporter.prove.dequantized import dequantize
from lmcast.exporter.runtime.engine import Engine

PART = 32 << 20  # bytes of weights, dequantized: some layers of a small model, one of a large one
Got = TypeVar("Got")
Arrays = dict[str, np.ndarray]


def computed(
    engine: Engine, graph: ir.Model, ask: Callable[[Engine], Got], most: int = PART
) -> Got:
    """Return what `ask` makes of an engine's logits, with this graph in the place of its own.

    It is called twice, as all calls must be known before any is computed: at first logits are
    zeros. No call may depend on the logits of another.

    most: bytes of weights that are dequantized at a time.
    """
    engine.runner = calls = _Calls(engine.vocab_size)
    ask(engine)
    calls.logits = iter(_run(engine, graph, calls.asked, most))
    return ask(engine)


@dataclass(eq=False)
class _Held:
    """States that a session has asked for. kept: those that it had before."""

    shaped: Sequence[Shaped]
    kept: "_Held | None"


@dataclass(frozen=True)
class _Call:
    inputs: Arrays
    states: _Held
    rows: slice


class _Calls(Runner):
    """A runner that takes down what it is asked for, or gives what has been computed for it."""

    def __init__(self, vocab: int):
        self.asked, self._vocab = list[_Call](), vocab
        self.logits: Iterator[np.ndarray] | None = None

    def allocate(self, states: Sequence[Shaped], kept: Any = None) -> Any:
        return _Held(states, kept)

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        states: Any,
        outputs: Sequence[str] = (LOGITS,),
        *,
        rows: slice = slice(None),
        kept: Mapping[str, Any] | None = None,
    ) -> list[np.ndarray]:
        if self.logits is not None:
            return [next(self.logits)]
        # A session goes on with its own arrays.
        self.asked.append(_Call({n: a.copy() for n, a in inputs.items()}, states, rows))
        return [np.zeros((*inputs["logit_rows"].shape, self._vocab), np.float32)]


def _run(engine: Engine, graph: ir.Model, calls: Sequence[_Call], most: int) -> list[np.ndarray]:
    """Return the logits of every call, B,R,V."""
    pieces = dequantize(graph, most)
    cut = Cut(ir.to_proto(graph), {name: piece.bytes for name, piece in pieces.items()})
    parts = cut.parts(most)
    values: list[Arrays] = [dict(call.inputs) for call in calls]

    def runner(model: bytes) -> Runner:
        return Runner(engine.manifest, engine.manifest.about.graph, engine.threads, model)

    for number, part in enumerate(parts):
        model, given = cut.shared(part)
        shared = _outputs(runner(model), {n: pieces[n].rows for n in given}, part.shared)
        one = runner(cut.each(part, values[0] | shared))
        held: dict[_Held, States] = {}
        kept = {name: value_of(array) for name, array in shared.items()}
        for call, have in zip(calls, values, strict=True):
            states = _states(one, part, call.states, held)
            inputs = {name: have[name] for name in part.needs}
            got = one.run(inputs, states, part.gives, rows=call.rows, kept=kept)
            have |= dict(zip(part.gives, got, strict=True))
        del one, shared, kept, inputs, held, states  # before those of the next part are made
        behind = {name for later in parts[number + 1 :] for name in later.needs}
        for have in values:
            for name in have.keys() - behind - {LOGITS}:
                del have[name]
    return [have[LOGITS] for have in values]


def _outputs(runner: Runner, inputs: Arrays, names: Sequence[str]) -> Arrays:
    got = runner.run(inputs, States([]), names, rows=slice(None)) if names else []
    return dict(zip(names, got, strict=True))


def _states(runner: Runner, part: Part, asked: _Held, held: dict[_Held, States]) -> States:
    """Return the arrays of what a part has of states, which are made as sessions ask for them."""
    if asked not in held:
        before = None if asked.kept is None else _states(runner, part, asked.kept, held)
        own = [shaped for shaped in asked.shaped if shaped[0] in part.states]
        held[asked] = runner.allocate(own, before)
    return held[asked]
