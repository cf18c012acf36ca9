"""Rewrite the graph of an engine to another program's contract, over the same weights.

before: logits, NAME.present ... = graph(input_ids, cache_lengths, token_counts, logit_rows,
        NAME.past ...)
after:  logits, what the program carries ... = graph(what the program gives, the same ...)

Some ten nodes ahead make the engine's inputs of what the program gives; states are renamed, and
those that it cannot hold as they are, are given another shape. Nothing is computed otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lmcast.exporter.backends.images import FEATURES, WITHOUT
from lmcast.exporter.clients.contract import CAPACITY, Contract, Held, Port, given, zeros
from lmcast.exporter.engine.description import State
from lmcast.exporter.graph.requirements import requirements
from lmcast.exporter.passes.attention_ahead import never_ahead
from lmcast.exporter.passes.latents_by_length import latents_of_one_head
from lmcast.exporter.passes.total_length import NAME as TOTAL
from lmcast.exporter.passes.total_length import give_total
from lmcast.exporter.passes.whole_windows import keep_all
from lmcast.plugins.onnx_builder import Builder, Value

PAST, PRESENT = ".past", ".present"
ATTENTION, RING, LASTS = "GroupQueryAttention", "sliding_window_cache", 5  # LASTS: of its inputs


def adapt(graph: ir.Model, states: Sequence[State], contract: Contract) -> ir.Model:
    """Rewrite a graph in place, and return it.

    states: as engine.json has them. The graph is that of an engine, read or just made, with its
    requirements.
    """
    return Adapting(graph, states, contract).run()


def held_by(graph: ir.Model, states: Sequence[State]) -> list[Held]:
    """Return the states of a graph; attention is causal from now on, as programs give no pictures,
    latents have one head, where their bodies can, and windows of its kernel are full.

    The latter changes nothing but memory, as it looks at the last tokens of a cache of all, and
    takes rows of different length, which it refuses in a ring. Bodies take them in rings, too.
    """
    never_ahead(graph)
    latents_of_one_head(graph)
    keep_all(graph, widest=0)
    pasts = {str(value.name): value for value in graph.graph.inputs}
    presents = {str(value.name): value for value in graph.graph.outputs}
    return [_held(s.name, pasts[s.name + PAST], presents[s.name + PRESENT]) for s in states]


def _held(name: str, past: ir.Value, present: ir.Value) -> Held:
    assert past.shape is not None and past.dtype is not None
    shape = tuple(axis if isinstance(axis, int) else str(axis) for axis in past.shape)
    return Held(name, shape, past.dtype, past, present, attended(past))


def attended(past: ir.Value) -> bool:
    """Whether a cache, with the other that it is attended to with, is read by that kernel alone."""
    kernels = [node for node, _ in past.uses() if node.op_type == ATTENTION]
    both = {past, *(value for node in kernels for value in node.inputs[3:5] if value is not None)}
    return all(node.op_type == ATTENTION for value in both for node, _ in value.uses())


class Adapting:
    """One graph and one contract; nodes ahead of the graph, and behind it."""

    def __init__(self, model: ir.Model, states: Sequence[State], contract: Contract):
        self.model, self.graph, self.contract = model, model.graph, contract
        self.ahead, self.behind = Builder(), Builder()
        self.held = held_by(model, states)
        self.call = contract.prologue(self.ahead)
        self.ports = contract.ports(self.held, self.call)
        self.pasts = [given(port.past, *port.before, dtype=port.dtype) for port in self.ports]

    def run(self) -> ir.Model:
        logits = next(value for value in self.graph.outputs if value.name == "logits")
        self.give()
        outputs = [self.output(p, past) for p, past in zip(self.ports, self.pasts, strict=True)]
        self.forget_shapes()
        assert logits.shape is not None
        logits.shape = ir.Shape([*self.call.logits, logits.shape[-1]])
        self.graph.inputs[:] = [*(value.ir for value in self.call.inputs), *self.pasts]
        kept = [value.ir for value in self.call.kept]
        self.graph.outputs[:] = [logits, *kept, *outputs]
        self.place()
        return self.model

    def give(self) -> None:
        """Let the graph take what is made of the program's inputs, in place of its own."""
        call, op = self.call, self.ahead
        now = {
            "input_ids": call.input_ids, "cache_lengths": call.cache_lengths,
            "token_counts": self.guarded(), "logit_rows": call.logit_rows,
        }  # fmt: skip
        own = {str(value.name): value for value in self.graph.inputs}
        if self.contract.grows or TOTAL in own:
            now[TOTAL] = op.Cast(call.total, to=ir.DataType.INT32)
            give_total(self.model, now[TOTAL].ir)
        now |= self.without_pictures(
            {name: value for name, value in own.items() if name in WITHOUT}
        )
        for name in now.keys() & own.keys():
            own[name].replace_all_uses_with(now[name].ir)
        self.give_lasts(now["token_counts"])
        for port, past in zip(self.ports, self.pasts, strict=True):
            values = port.split(op, Value(op, past))
            for state, value in zip(port.held, values, strict=True):
                state.past.replace_all_uses_with(self.roomy(state, value).ir)

    def without_pictures(self, own: Mapping[str, ir.Value]) -> dict[str, Value]:
        """Return what a graph takes of pictures in a call without any, as programs give none.

        own: its inputs for them."""
        op, call = self.ahead, self.call
        if not own:
            return {}
        tokens = op.Shape(call.input_ids)  # B,T
        positions = op.Unsqueeze(call.cache_lengths, [1]) + op.range(op.size(call.input_ids, 1))
        features = own[FEATURES]
        assert features.shape is not None
        width = features.shape[-1]
        assert isinstance(width, int)
        nothing = np.zeros([1, width])
        return {
            FEATURES: op.constant(nothing, features.dtype),
            "image_rows": op.Expand(-1, tokens),
            "visible_ends": positions,
            "rope_positions": op.Expand(op.Unsqueeze(positions, [2]), op.dims(tokens, 3)),
        }

    def give_lasts(self, counts: Value) -> None:
        """Tell the kernel of attention where the last token of each row is; a row that has none in
        a call, as it is finished or waits, gets one behind all that it holds, which the next one of
        its own replaces. Else the kernel would write it over the last."""
        op = self.ahead
        for node in self.graph:
            if node.op_type == ATTENTION and RING not in node.attributes:
                last = self.call.cache_lengths + op.Max(counts, 1) - 1
                node.replace_input_with(LASTS, op.Cast(last, to=ir.DataType.INT32).ir)

    def guarded(self) -> Value:
        """Return the counts of tokens, of which there are none where rows would come out wrong.

        Then the call fails at a node that has what is wrong as its name.
        """
        op, counts = self.ahead, self.call.token_counts
        for name, wrong in self.wrong():
            checked = op.Gather([0], op.Cast(wrong, to=ir.DataType.INT64))  # has no second element
            node = checked.ir.producer()
            assert node is not None
            node.name = name
            counts = counts + checked
        return counts

    def wrong(self) -> Iterator[tuple[str, Value]]:
        """Yield what no row may do, and whether it does.

        Where keys of a longer row have other positions (LongRoPE), a session computes the row anew,
        which a program does not know of. What is written into a cache by position needs all the
        room there will be: where it has none, other states are not carried with their rows either.
        """
        op, call = self.ahead, self.call
        for length in requirements(self.model).anew_beyond:
            longer = call.cache_lengths + call.token_counts > length
            crosses = (call.cache_lengths > 0) & (call.cache_lengths <= length) & longer
            yield f"a_row_that_grows_beyond_{length}_tokens_must_begin_anew", crosses
        lengthens = self.contract.lengthens and all(state.attended for state in self.held)
        if self.contract.grows or lengthens:
            return
        for port, past in zip(self.ports, self.pasts, strict=True):
            for axis, size in enumerate(port.before[1:], 1):
                if isinstance(size, str):  # the room of a cache
                    yield self.contract.crowded, op.size(Value(op, past), axis) < call.total
                    return

    def roomy(self, state: Held, past: Value) -> Value:
        """Return a cache with room for the tokens of the call, if nothing else makes it."""
        if not (self.contract.grows and state.grows) or state.attended:
            return past
        op, axis = self.ahead, state.shape.index(CAPACITY)
        rows, tokens = op.size(self.call.input_ids, 0), op.size(self.call.input_ids, 1)
        sizes = [rows, *(a if isinstance(a, int) else tokens for a in state.shape[1:])]
        return op.Concat(past, zeros(op, op.dims(*sizes), state.dtype), axis=axis)

    def output(self, port: Port, past: ir.Value) -> ir.Value:
        """Return what becomes the port's input in the next call, under its name."""
        op = self.behind
        presents = [Value(op, state.present) for state in port.held]
        made = port.join(op, Value(op, past), presents).ir
        made.name, made.type = port.present, ir.TensorType(port.dtype)
        made.shape = ir.Shape(list(port.after))
        return made

    def forget_shapes(self) -> None:
        """Drop the shapes of all that is computed: their axes are those of the engine's inputs, and
        ONNX Runtime lets values of equal axes share memory."""
        for node in self.graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None

    def place(self) -> None:
        """Put the nodes written ahead of all others, and behind them, under names of their own."""
        own, first = {str(value.name) for value in self.graph.outputs}, self.graph[0]
        for nodes, what in ((self.ahead.nodes, "client"), (self.behind.nodes, "client.after")):
            for node in nodes:
                node.name = f"{what}.{node.name}"
                for value in node.outputs:
                    if value.name not in own:
                        value.name = f"{what}.{value.name}"
        self.graph.insert_before(first, self.ahead.nodes)
        self.graph.extend(self.behind.nodes)
