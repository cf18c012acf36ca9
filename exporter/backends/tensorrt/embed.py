"""Make plugins of the operators with kernels: a node carries these, and how they are launched.

before: lmcast.mla_attention <scale = 0.1> (query, ..., value_up)
after:  lmcast.mla_attention <recipe = "...", kernels = ...> (query, ..., value_up)
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import onnx_ir as ir

from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt.request import Request
from lmcast.exporter.lowering import DTYPES
from lmcast.exporter.passes.rewrite import insert, replace
from lmcast.plugins.plugin import DOMAIN, REGISTRY

PACKAGE = "lmcast_tensorrt"  # has the library of plugins that replay recipes
TORCH = {kind: dtype for dtype, kind in DTYPES.items()}
Forms = dict[str, dict[str, int]]  # operator -> 'plugin', 'fused' or 'body' -> how many calls


def embed(graph: ir.Model, request: Request) -> list[str]:
    """Give every operator that is left its recipe; return the states that these update in place.

    Raises BackendError where the plugins are not installed.
    """
    nodes = [node for node in graph.graph if node.domain == DOMAIN]
    if not nodes:
        return []
    if find_spec(PACKAGE) is None:
        names = ", ".join(sorted({node.op_type for node in nodes}))
        raise BackendError(
            f"{names}: TensorRT runs these as plugins, which are in the package lmcast-tensorrt:"
            " pip install lmcast-tensorrt (in the sources: pip install ./plugins/tensorrt)"
        )
    from lmcast.plugins.kernels.recipe import Bounds, recipe

    axes = [{axis: Bounds(*(r[0], r[2], r[1])) for axis, r in p.items()} for p in request.profiles]
    cases = [{name: case[name] for name in "BT"} for case in axes]
    updated = []
    for node in nodes:
        text, blob = recipe(node.op_type, given(node), cases, request.sms)
        updated += describe(node, text)
        present = [value for value in node.inputs if value is not None]
        made = insert(
            graph, node, node.op_type, present, attributes(text, blob), name=str(node.name),
            outputs=len(node.outputs), domain=DOMAIN,
        )  # fmt: skip
        replace(graph, node, made)
    for function in [f for f in graph.functions.values() if f.domain == DOMAIN]:
        del graph.functions[function.identifier()]
    return sorted(updated)


def load_plugins(trt: ModuleType, logger: Any) -> None:
    """Register the plugins with a library of TensorRT."""
    trt.init_libnvinfer_plugins(logger, "")
    trt.get_plugin_registry().load_library(str(import_module(PACKAGE).LIBRARY))


def attributes(text: str, blob: bytes) -> Mapping[str, Any]:
    return {"recipe": text, "kernels": blob, "plugin_version": "1", "plugin_namespace": DOMAIN}


def given(node: ir.Node) -> list[Any]:
    """Return the arguments of an operator of ours as recipes take them."""
    from lmcast.plugins.kernels.recipe import Given

    tensors = iter(node.inputs)
    found: list[Any] = []
    for argument in REGISTRY[node.op_type].schema.arguments:
        if argument.name in node.attributes:
            found.append(node.attributes[argument.name].value)
            continue
        value = next(tensors, None)
        if value is None:
            found.append(None)
            continue
        assert value.dtype is not None and value.shape is not None, f"{node.name}: {value}"
        shape = tuple(size if isinstance(size, int) else size.value for size in value.shape)
        found.append(Given(TORCH[value.dtype], shape))
    return found


def describe(node: ir.Node, text: str) -> list[str]:
    """Give the outputs the shapes that a recipe says, where a trace left sizes open.

    Returns the states that it updates in place.
    """
    tokens = iter(text.split("outputs ", 1)[1].split())
    present = [value for value in node.inputs if value is not None]
    updated = []
    for value, _ in zip(node.outputs, range(int(next(tokens))), strict=True):
        _kind, alias, rank = next(tokens), int(next(tokens)), int(next(tokens))
        value.shape = ir.Shape([_size(next(tokens), present) for _ in range(rank)])
        past = str(present[alias].name) if alias >= 0 else ""
        if past.endswith(".past") and value.name == f"{past.removesuffix('past')}present":
            updated.append(past.removesuffix(".past"))
    return updated


def _size(axis: str, inputs: list[ir.Value]) -> int | str | None:
    """Return a size that a recipe says: a number, or I.A, axis A of input I."""
    source, _, at = axis.partition(".")
    if not at:
        return int(axis)
    shape = inputs[int(source)].shape
    assert shape is not None
    size = shape[int(at)]
    return size if isinstance(size, int) else size.value


def forms(graph: ir.Model) -> Forms:
    """Return in which form each operator of ours is in a graph for TensorRT, by the names of nodes.

    'plugin': one node; 'fused': its body, with an attention that has a fused kernel; 'body'.
    """
    # layers.3.mixer.cached_attention_2.attended: the call, and the operator that it is of.
    name = re.compile(rf"(.*?\.({'|'.join(REGISTRY)})(?:_\d+)?)(?:\.|$)")
    calls: dict[tuple[str, str], set[str]] = defaultdict(set)
    for node in graph.graph:
        if found := name.match(str(node.name)):
            fused = node.op_type == "Attention" and "TRT_decomposable" not in node.attributes
            form = "plugin" if node.domain == DOMAIN else "fused" if fused else "body"
            calls[found[1], found[2]].add(form)
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for (_, operator), found_forms in calls.items():
        best = next(form for form in ("plugin", "fused", "body") if form in found_forms)
        counted[operator][best] += 1
    return {operator: dict(counts) for operator, counts in sorted(counted.items())}
