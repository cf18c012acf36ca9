"""Bisection: the first layer, then the first operator, that differs from eager PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from lmcast.exporter.backends.images import taken, without
from lmcast.exporter.backends.onnxruntime import Runner
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.engine.graph_file import read_graph
from lmcast.exporter.passes.inline_parts import inline_parts
from lmcast.exporter.prove.eager_pass import Batch, full_pass
from lmcast.exporter.prove.rounding import exact_contract, without_rounding
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.runtime.session import Session
from lmcast.graphs import Definition

FLOOR = 1e-5  # of a value's own size: below this, a difference is rounding


@dataclass(frozen=True)
class Divergence:
    """One value of the graph beside eager's."""

    name: str  # as in the graph: 'layers.3.mixer.q'
    operator: str
    error: float  # largest |engine - fp64|
    eager_error: float
    size: float  # largest |fp64|


@dataclass(frozen=True)
class Bisection:
    """The first layer and the first operator that diverge; None where none does."""

    layer: int | None
    first: Divergence | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        if self.first is None:
            return "bisection: every layer agrees; the divergence lies in the final norm or head"
        d = self.first
        return (
            f"bisection: first diverges in layer {self.layer} at {d.name} ({d.operator}):"
            f" error {d.error:.2e} where eager's is {d.eager_error:.2e}, values up to {d.size:.2e}"
        )


def inner_errors(
    engine: Engine, found: Definition, source: Checkpoint, row: list[int]
) -> list[Divergence]:
    """Run one prompt, and compare all inner values that eager modules have as well, in the order of
    computation."""
    ids = torch.tensor([row])
    dtype = DTYPES[engine.manifest.about.dtype].torch
    eager: dict[torch.dtype, dict[str, Tensor]] = {torch.float64: {}, dtype: {}}
    hooks: list[Any] = []

    def watch(index: int, layer: nn.Module, at: torch.dtype) -> None:
        while hooks:
            hooks.pop().remove()
        for path, module in layer.named_modules():
            name = ".".join(filter(None, (f"layers.{index}", path)))
            hooks.append(module.register_forward_hook(_record(eager[at], name)))

    one = [Batch(ids, torch.tensor([len(row)]))]
    full_pass(found, source, {torch.float64: one, dtype: one}, watch)
    while hooks:
        hooks.pop().remove()
    compared = []
    for name, operator, value in _engine_values(engine, ids.numpy(), set(eager[dtype])):
        exact = eager[torch.float64][name].numpy()
        rough = eager[dtype][name].double().numpy()
        error = float(np.abs(value.astype(np.float64).reshape(exact.shape) - exact).max())
        eager_error, size = float(np.abs(rough - exact).max()), float(np.abs(exact).max())
        compared.append(Divergence(name, operator, error, eager_error, size))
    return compared


def find_divergence(values: Sequence[Divergence], times: float) -> Bisection:
    """Return the first value that diverges: whose error from fp64 exceeds `times` eager's own plus
    FLOOR of its size."""
    for each in values:
        if not each.error <= times * each.eager_error + FLOOR * each.size:
            return Bisection(int(each.name.split(".")[1]), each)
    return Bisection(None, None)


def of_layers(values: Sequence[Divergence]) -> tuple[Divergence, ...]:
    """Return of each layer the last value: what it returns, where the graph still has that."""
    last = {int(each.name.split(".")[1]): each for each in values}
    return tuple(each for _, each in sorted(last.items()))


def _record(into: dict[str, Tensor], name: str) -> Callable[[Any, Any, Any], None]:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        # Of a module that runs twice the first value: the graph calls the other by another name.
        into.setdefault(name, output[0] if isinstance(output, tuple) else output)

    return hook


def _engine_values(
    engine: Engine, ids: np.ndarray, names: set[str]
) -> list[tuple[str, str, np.ndarray]]:
    """Return (name, operator, value) of the graph's values that eager modules have as well.

    Inputs are not rounded: a value on the other side of a tie is no divergence.
    """
    model = read_graph(engine.manifest)
    without_rounding(model)
    inline_parts(model)
    watched = []
    for node in model.graph:
        for value in node.outputs:
            name = str(value.name).removesuffix(".x")  # what a layer returns is called layers.3.x
            if name in names:
                watched.append((name, node.op_type, value))
    for _, _, value in watched:
        if not value.is_graph_output():
            model.graph.outputs.append(value)
    data = ir.to_proto(model).SerializeToString()
    contract = exact_contract(engine.manifest.about)
    runner = Runner(engine.manifest, contract, None, data)
    tokens = ids.shape[1]
    feed = {
        "input_ids": ids,
        "cache_lengths": np.zeros(1, np.int64),
        "token_counts": np.array([tokens]),
        "logit_rows": np.arange(tokens)[None],
    }
    feed |= without(taken(contract), feed["cache_lengths"], tokens)
    session = Session(runner, contract, engine.context, engine.vocab_size, 1)
    states = session.reserve(tokens)
    out = runner.run(feed, states, [str(v.name) for _, _, v in watched])
    return [(name, op, value) for (name, op, _), value in zip(watched, out, strict=True)]
