"""Every pass alone, before and after as its docstring says; then all of them on captured models."""

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from attention_cases import CASES as ATTENTION_CASES
from cuda_pass_cases import CASES as CUDA_CASES
from cuda_twins import SHORT, norms_outside, widen
from few_bits import caches_outside, few_bits_outside
from few_bits_cases import CASES as FEW_BITS_CASES
from onnx import parser
from pass_cases import CASES as OTHER_CASES
from safetensors.torch import load_file
from tiny import case, make
from tower_cases import CASES as TOWER_CASES

from lmcast.exporter import passes
from lmcast.exporter.backends.onnxruntime import value_of
from lmcast.exporter.graph.assemble import assemble, attach_bodies
from lmcast.exporter.graph.capture import capture
from lmcast.exporter.graph.context import set_context
from lmcast.exporter.graph.lowering import PARTS
from lmcast.exporter.targets import TARGETS
from lmcast.graphs import define
from lmcast.plugins.plugin import DOMAIN

CASES = {**OTHER_CASES, **ATTENTION_CASES, **CUDA_CASES, **FEW_BITS_CASES, **TOWER_CASES}
PLUMBING = {"Constant", "Cast", "Shape", "Squeeze", "ReduceMax", "Sub"}
# One row: GroupQueryAttention takes several tokens behind held ones in one row alone.
SIZES = {"B": 1, "T": 3, "C": 12, None: 6, "N": 2, "M": 3, "K": 4}


def parse(text: str, folder: Path) -> ir.Model:
    """Return a graph of ONNX text, its weights in a file of the folder."""
    domains = '"lmcast" : 1, "lmcast.parts" : 1, "com.microsoft" : 1'
    head = f'<ir_version: 11, opset_import: ["" : 24, {domains}]>\ng '
    model = ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(head + text)))
    for number, node in enumerate(chain(model.graph, *model.functions.values())):
        node.name = f"node{number}"
    attach_bodies(model)
    set_context(model, SIZES["C"])
    written = b""
    for name, value in model.graph.initializers.items():
        given = value.const_value
        assert given is not None
        data = given.tobytes()
        value.const_value = ir.ExternalTensor(
            "weights", len(written), len(data), given.dtype, shape=given.shape, name=name,
            base_dir=str(folder),
        )  # fmt: skip
        value.type, value.shape = ir.TensorType(given.dtype), ir.Shape(given.shape)
        written += data
    (folder / "weights").write_bytes(written)
    return model


def feed(model: ir.Model) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(0)
    given = {
        "lengths": np.array([4]), "counts": np.array([3]),
        "cache_lengths": np.array([4]), "token_counts": np.array([3]),
        "total_length": np.array([7], np.int32), "input_ids": np.zeros((1, 3), np.int64),
        "own": np.array([[4, 5, 0]]), "picture": np.array([[4, 6, 6]]),
    }  # fmt: skip
    for value in model.graph.inputs:
        if value.name not in given:
            # A larger cache begins with what a smaller one holds.
            random = np.random.default_rng(1) if value.name in ("key", "value") else drawn
            assert value.shape is not None
            shape = [n if isinstance(n, int) else SIZES[n.value] for n in value.shape]
            assert value.dtype is not None
            given[str(value.name)] = random.standard_normal(shape).astype(value.dtype.numpy())
    return {str(v.name): given[str(v.name)] for v in model.graph.inputs}


def run(model: ir.Model, folder: Path) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    # In a layout of their own MatMulNBits multiplies with rounded inputs.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = ir.from_proto(ir.to_proto(model))
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.base_dir = str(folder)
    if any(value.dtype == SHORT[1] for value in model.graph.inputs):
        widen(model)  # ONNX Runtime's CPU has hardly a kernel for bfloat16
    # Nor norms within its attention, caches in FP8, and most of what weights in few bits have.
    passes.run(model, [norms_outside, few_bits_outside, caches_outside])
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    given = {name: value_of(np.asarray(array)) for name, array in feed(model).items()}
    return [value.numpy() for value in session.run_with_ort_values(None, given)]


@pytest.mark.parametrize("name", CASES)
def test_pass_alone(name: str, tmp_path: Path):
    function, text, changes, left = CASES[name]
    model = parse(text, tmp_path)
    before, outputs = run(model, tmp_path), [value.name for value in model.graph.outputs]
    assert getattr(passes, function)(model) == changes
    operators = [node.op_type for node in model.graph if node.op_type not in PLUMBING]
    lengths = ["Add", "Add"] if "GroupQueryAttention" in operators else []
    assert sorted(operators) == sorted(left + lengths)
    assert [value.name for value in model.graph.outputs] == outputs
    after = run(model, tmp_path)
    if (
        lengths or "If" in operators
    ):  # the kernel lays its caches out in its own way, so only what it attends to counts
        before, after = before[:1], after[:1]
    for a, b in zip(before, after, strict=True):
        # 20 fp32 roundings of values near 1, or 2 of fp16: a product and a share.
        atol = 2 * 2**-10 if a.dtype == np.float16 else 5e-6
        np.testing.assert_allclose(a, b, atol=atol, rtol=0)
    assert getattr(passes, function)(model) == 0, "a second time there is nothing left to do"


def test_every_pass_has_a_case():
    tried = {function for function, *_ in CASES.values()}
    every = {apply for target in TARGETS.values() for apply in target.passes()}
    assert tried == {apply.__name__ for apply in every.union(passes.EXACT)}


# case: (distinct kinds of layer, nodes of layer 1 on the cpu target, where weights are tied)
MODELS = {
    "llama/plain": (1, 14, False),  # norm, q, k, v, two rotations, attention, o, norm, 5 of the FFN
    "gemma2/plain": (2, 20, True),  # two norms more, and an Add for each: their weights are 1 + w
    "qwen3/bias, tied": (1, 24, True),  # four biases, two norms of heads in two reshapes each
}


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def read(directory: Path):
        config = json.loads((directory / "config.json").read_text())
        tensors = load_file(directory / "model.safetensors")
        return define(config, {n: tuple(t.shape) for n, t in tensors.items()}).model.float()

    folders = tmp_path_factory.mktemp("models")
    models = {n: read(make(case(n), folders / str(i))) for i, n in enumerate(MODELS)}
    yield {name: (model, capture(model)) for name, model in models.items()}
    torch.set_num_threads(before)


def proto_of(model: ir.Model) -> onnx.ModelProto:
    """Return the model with zeros for its weights."""
    for name, value in model.graph.initializers.items():
        assert value.shape is not None
        value.const_value = ir.tensor(np.zeros(value.shape.numpy(), np.float32), name=name)
    return ir.to_proto(model)


@pytest.mark.parametrize("name", MODELS)
def test_portable_graph(name: str, definitions):
    model, captured = definitions[name]
    graph = assemble(model, captured)
    proto = proto_of(graph)
    onnx.checker.check_model(proto, full_check=True)
    opsets = {o.domain: o.version for o in proto.opset_import}
    assert opsets == {"": 24, DOMAIN: 1, PARTS: 1}
    functions = {(f.domain, f.name) for f in proto.functions}
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    assert {(n.domain, n.op_type) for n in nodes if n.domain} == functions
    assert sum(n.startswith("Layer") for _, n in functions) == MODELS[name][0]
    assert {p for p, _ in model.named_parameters()} == set(graph.graph.initializers)
    # The graph grows with the layers by one call each.
    assert len(proto.graph.node) == len(model.layers) + 3


@pytest.mark.parametrize("name", MODELS)
def test_cpu_graph(name: str, definitions):
    model, captured = definitions[name]
    graph = assemble(model, captured)
    passes.run(graph, passes.CPU)
    onnx.checker.check_model(proto_of(graph), full_check=True)
    _, length, tied = MODELS[name]
    operators = Counter((node.domain, node.op_type) for node in graph.graph)
    assert {domain for domain, _ in operators} == {"", "com.microsoft"}
    assert not graph.functions
    assert not operators["", "MatMul"] + operators["", "Transpose"]
    assert operators["com.microsoft", "GroupQueryAttention"] == len(model.layers)

    multiplied = {
        str(node.name).removesuffix(".MatMul"): node.inputs[1].name
        for node in graph.graph
        if node.op_type == "FusedMatMul" and node.inputs[1] is not None
    }
    matrices = [n for n, p in model.named_parameters() if p.dim() == 2 and n != "embed.weight"]
    expected = {matrix.removesuffix(".weight"): matrix for matrix in matrices}
    assert multiplied == expected | ({"final.head": "embed.weight"} if tied else {})

    names = [str(node.name) for node in graph.graph]
    assert len(set(names)) == len(names)
    assert all(re.match(r"(embed|positions|final|layers\.\d+)\.", n + ".") for n in names)
    assert sum(n.startswith("layers.1.") for n in names) == length
    for path in ("mixer.q", "mixer.cached_attention", "mixer.o", "ffn.gate", "ffn.down"):
        window = path.replace("cached", "window")
        assert {f"layers.1.{path}", f"layers.1.{window}"} & set(names)
