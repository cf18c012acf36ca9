"""The graph of target cuda, run by ONNX Runtime's CPU: the same nodes, in fp32, without a GPU.

What has no kernel on CPUs is replaced by what it stands for: operators of ours by their bodies, the
norms within GroupQueryAttention by nodes in front of it. All else is run as the passes left it.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from few_bits import caches_outside, few_bits_outside

from lmcast.exporter import passes, targets
from lmcast.exporter.backends.onnxruntime import Runner, States
from lmcast.exporter.backends.runner import Loading, Shaped
from lmcast.exporter.engine.graph_file import read_graph
from lmcast.exporter.engine.manifest import Manifest
from lmcast.exporter.passes.rewrite import nodes_of, written
from lmcast.plugins.onnx_builder import Builder, Value

HEADS = "num_heads", "kv_num_heads"
SHORT, WIDE = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16), ir.DataType.FLOAT


def twin() -> targets.Target:
    """Return target cuda without machine code, whose engines are run by the CPU."""
    return replace(
        targets.get("cuda"), machine_code=None, absent=lambda manifest: "", run=run,
        loads=targets.ON_CPUS,
    )  # fmt: skip


def run(manifest: Manifest, loading: Loading) -> "Twin":
    graph = manifest.about.graph
    model = read_graph(manifest)
    widen(model)
    data = ir.to_proto(model).SerializeToString()
    return Twin(manifest, graph, loading.threads, data)


class Twin(Runner):
    def allocate(self, states: Any, kept: States | None = None) -> States:
        def wide(state: Shaped) -> Shaped:
            name, shape, dtype = state
            return name, shape, "float32" if dtype in ("float16", "bfloat16") else dtype

        return super().allocate([wide(state) for state in states], kept)


def widen(model: ir.Model) -> None:
    """Make fp32 of all that is in 16 bits."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        array = tensor.numpy()
        array = array.astype(np.float32) if tensor.dtype in SHORT else np.array(array)
        value.const_value = ir.tensor(array, name=str(value.name))
        value.type = ir.TensorType(value.const_value.dtype)
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.dtype in SHORT:
            value.type = ir.TensorType(WIDE)
    for node in nodes(model):
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
        given = node.attributes.get("value")
        if node.op_type == "Constant" and given and given.as_tensor().dtype in SHORT:
            wide = ir.tensor(given.as_tensor().numpy().astype(np.float32))
            node.attributes["value"] = ir.AttrTensor("value", wide)
        if node.op_type == "Cast" and node.attributes["to"].as_int() in SHORT:
            node.attributes["to"] = ir.AttrInt64("to", WIDE)
    passes.run(model, [norms_outside, few_bits_outside, caches_outside])


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph
    for function in model.functions.values():
        yield from function


def norms_outside(model: ir.Model) -> int:
    """Put the norms that GroupQueryAttention has for queries and keys in front of it."""
    found = [node for node in nodes_of(model, "GroupQueryAttention") if len(node.inputs) > 14]
    for node in found:
        past = node.inputs[3]
        assert past is not None and past.shape is not None
        sizes = [node.attributes[name].as_int() * past.shape[-1] for name in HEADS]
        epsilon = node.attributes.pop("qk_norm_epsilon").as_float()
        write = partial(normed, sizes=sizes, width=past.shape[-1], epsilon=epsilon)
        given = *node.inputs[:3], *node.inputs[14:16]
        for place, value in enumerate(written(model, node, write, *given)):
            node.replace_input_with(place, value)
        node.resize_inputs(14)
    return len(found)


def normed(
    op: Builder,
    query: Value,  # or all three, packed
    key: Value | None,
    value: Value | None,
    query_weight: Value,
    key_weight: Value,
    *,
    sizes: list[int],
    width: int,
    epsilon: float,
) -> list[Value]:
    if key is None or value is None:
        query, key, value = op.several("Split", 3, query, [*sizes, sizes[1]], axis=-1)
    parts = [op.Reshape(x, [0, 0, -1, width]) for x in (query, key)]
    both = [
        op.RMSNormalization(x, weight, epsilon=epsilon)
        for x, weight in zip(parts, (query_weight, key_weight), strict=True)
    ]
    return [*(op.Reshape(x, [0, 0, -1]) for x in both), value]
