"""Weights that touch in a file: found as runs, merged in graphs, and the same in engines."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from files.malformed_moe import QWEN, tiny_moe
from safetensors.torch import save_file
from tiny.llama import INDEX, WEIGHTS, config, tensors, tiny_llama, weights, write_json

from lmcast.exporter import export, load, targets
from lmcast.exporter.engine.manifest import verify
from lmcast.exporter.engine.names import MODEL
from lmcast.exporter.pack import pack
from lmcast.exporter.passes.merge_runs import find_runs, merge_runs

F32, F16 = ir.DataType.FLOAT, ir.DataType.FLOAT16

# Ranges as (file, offset, bytes, dtype), in any order; then the offsets in each run.
RUNS: dict[str, tuple[list[tuple[str, int, int, ir.DataType]], list[list[int]]]] = {
    "nothing": ([], []),
    "one": ([("a", 5, 8, F32)], [[5]]),
    "they touch": ([("a", 24, 8, F32), ("a", 8, 8, F32), ("a", 16, 8, F32)], [[8, 16, 24]]),
    "a hole": ([("a", 0, 8, F32), ("a", 8, 8, F32), ("a", 17, 8, F32)], [[0, 8], [17]]),
    "two files": ([("a", 0, 8, F32), ("b", 8, 8, F32)], [[0], [8]]),
    "two sizes": ([("a", 0, 8, F32), ("a", 8, 4, F32), ("a", 12, 4, F32)], [[0], [8, 12]]),
    "two dtypes": ([("a", 0, 8, F32), ("a", 8, 8, F16), ("a", 16, 8, F16)], [[0], [8, 16]]),
    "one in two stacks": ([("a", 0, 8, F32), ("a", 0, 8, F32), ("a", 8, 8, F32)], [[0], [0, 8]]),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str):
    ranges, expected = RUNS[name]
    weights = [
        ir.ExternalTensor(file, offset, size, kind, shape=ir.Shape([1, size]), name="")
        for file, offset, size, kind in ranges
    ]
    assert [[weight.offset for weight in run] for run in find_runs(weights)] == expected


def stored(experts: Any, names: str = "dgu") -> str:
    """Return how safetensors sorts the matrices of some experts: 'd0 g0 u0 d1 g1 u1 d10 ...'."""
    return " ".join(f"{name}{e}" for e in sorted(experts, key=str) for name in names)


@dataclass(frozen=True)
class Case:
    """Matrices as they lie in files: 'd1' is entry 1 of stack d, '|' ends a file, '-' is a hole."""

    files: str
    operators: dict[str, int]  # afterwards, without constants
    weights: int  # afterwards
    changes: int = 3  # stacks that are merged
    sizes: tuple[tuple[int, int], ...] = ((6, 4), (4, 6), (4, 6))  # of the stacks, by name
    used_again: str = ""  # a matrix with another consumer


TWO = {"Slice": 6, "Reshape": 2, "Concat": 3}  # files; rows of d are turned into its shape
CASES = {
    "in order": Case(stored(range(5)), {"Slice": 3, "Reshape": 1}, 1),
    "as names are sorted": Case(stored(range(12)), {"Gather": 3, "Reshape": 1}, 1),
    "two files": Case(f"{stored(range(5))} | {stored(range(5, 10))}", TWO, 2),
    "cut within an expert": Case(stored(range(10)).replace("g4 ", "g4 | "), TWO, 2),
    "cut within an expert in the middle of a file": Case(
        f"{stored(range(10))} d10 | g10 u10 {stored(range(11, 15))}", TWO, 2
    ),
    "cut within an expert that is sorted among others": Case(
        f"{stored(range(11)).replace(' u10', '')} | u10 {stored(range(11, 15))}",
        TWO | {"Gather": 3, "Slice": 3}, 2,
    ),
    "the last experts in the first": Case(f"{stored(range(4, 8))} | {stored(range(4))}", TWO, 2),
    "even and odd experts": Case(
        f"{stored(range(0, 8, 2))} | {stored(range(1, 8, 2))}", TWO | {"Gather": 3}, 2
    ),
    "something between": Case(f"{stored(range(5))} - {stored(range(5, 10))}", TWO, 2),
    "a stack behind the other": Case(
        " ".join(stored(range(4), name) for name in "dgu"), {"Slice": 3, "Reshape": 1}, 1
    ),
    "backwards": Case("d3 d2 d1 d0", {"Gather": 1}, 1, 1),
    "one stack alone": Case("d0 d1 d2 d3", {}, 1, 1),
    "one stack in two files": Case("d0 d1 d2 d3 | d4 d5 d6 d7", {"Concat": 1}, 2, 1),
    "of several sizes": Case(
        stored(range(5)), {"Concat": 3}, 15, 0, sizes=((6, 4), (4, 5), (4, 3))
    ),
    "one of another size": Case(
        " ".join(stored(range(4), name) for name in "dgu"), {"Slice": 2, "Reshape": 1}, 2,
        sizes=((6, 4), (4, 6), (4, 5)),
    ),
    "few": Case(stored(range(3)), {"Concat": 3}, 9, 0),
    "everywhere": Case(stored(range(5)).replace(" ", " - "), {"Concat": 3}, 15, 0),
    "one of them everywhere": Case("d0 d1 d2 d3 g0 - g1 - g2 - g3", {"Concat": 1}, 5, 1),
    "one is used again": Case(
        stored(range(4), "dg"), {"Concat": 2, "Identity": 1}, 8, 0, used_again="d2"
    ),
    "one is used again, beside another stack": Case(
        "d0 d1 d2 d3 g0 g1 g2 g3", {"Concat": 1, "Identity": 1}, 5, 1, used_again="d2"
    ),
}  # fmt: skip


def graph_of(case: Case, folder: Path) -> ir.Model:
    """Write the files of a case, and return a graph with its stacks for outputs."""
    random = np.random.default_rng(0)
    found: dict[str, dict[int, ir.Value]] = {}
    for number, file in enumerate(case.files.split("|")):
        data = random.bytes(3)  # whatever lies before: offsets are multiples of nothing
        for token in file.split():
            name, size = token[0], (1, *case.sizes["dgu".find(token[0])])
            values = random.standard_normal(size).astype(np.float32).tobytes()
            if name != "-":
                value = ir.Value(name=token, type=ir.TensorType(F32), shape=ir.Shape(size))
                value.const_value = ir.ExternalTensor(
                    f"{number}.bin", len(data), len(values), F32,
                    shape=value.shape, name=token, base_dir=folder,
                )  # fmt: skip
                found.setdefault(name, {})[int(token[1:])] = value
            data += values
        (folder / f"{number}.bin").write_bytes(data)
    nodes = []
    for name, parts in found.items():
        nodes.append(ir.node("Concat", [parts[e] for e in sorted(parts)], {"axis": 0}, name=name))
        nodes[-1].outputs[0].name = f"stack {name}"
        rows, columns = case.sizes["dgu".index(name)]
        nodes[-1].outputs[0].type = ir.TensorType(F32)
        nodes[-1].outputs[0].shape = ir.Shape([len(parts), rows, columns])
    if case.used_again:
        again = found[case.used_again[0]][int(case.used_again[1:])]
        nodes.append(ir.node("Identity", [again], name="again"))
        nodes[-1].outputs[0].name, nodes[-1].outputs[0].shape = "again", again.shape
        nodes[-1].outputs[0].type = again.type
    outputs = [node.outputs[0] for node in nodes]
    values = [value for parts in found.values() for value in parts.values()]
    graph = ir.Graph(
        [], outputs, nodes=nodes, initializers=values, name="g", opset_imports={"": 24}
    )
    return ir.Model(graph, ir_version=11)


def run(model: ir.Model, folder: Path) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.save(proto, folder / "model.onnx")
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    return ort.InferenceSession(folder / "model.onnx").run(None, {})


def ranges(model: ir.Model) -> list[tuple[Any, int]]:
    """Return every byte that the weights of a graph point at."""
    found = [value.const_value for value in model.graph.initializers.values()]
    return sorted(
        (weight.location, byte)
        for weight in found
        if isinstance(weight, ir.ExternalTensor) and weight.offset is not None
        for byte in range(weight.offset, weight.offset + weight.nbytes)
    )


@pytest.mark.parametrize("name", CASES)
def test_graphs(name: str, tmp_path: Path):
    case = CASES[name]
    model = graph_of(case, tmp_path)
    before, pointed, outputs = run(model, tmp_path), ranges(model), [*model.graph.outputs]
    names = [value.name for value in outputs]
    assert merge_runs(model) == case.changes
    operators = Counter(node.op_type for node in model.graph)
    del operators["Constant"]
    assert operators == case.operators
    assert len(model.graph.initializers) == case.weights
    assert ranges(model) == pointed
    assert [value.name for value in model.graph.outputs] == names
    for got, want in zip(run(model, tmp_path), before, strict=True):
        np.testing.assert_array_equal(got, want)
    assert merge_runs(model) == 0, "a second time there is nothing left to do"


def test_equal_numbers_are_one_constant(tmp_path: Path):
    model = graph_of(CASES["even and odd experts"], tmp_path)
    merge_runs(model)
    constants = [
        tuple(node.attributes["value"].as_tensor().numpy().tolist())
        for node in model.graph
        if node.op_type == "Constant"
    ]
    assert len(constants) == len(set(constants))


# Engines

EXPERTS = 13  # sorted by name, 10 lies before 2
IDS = np.arange(2 * 11).reshape(2, 11)


def experts(layer: int) -> dict[str, tuple[int, ...]]:
    """Return the matrices of a layer's experts in the order of modules, which files are cut in."""
    inner, dim = QWEN["moe_intermediate_size"], QWEN["hidden_size"]
    shapes = {"gate": (inner, dim), "up": (inner, dim), "down": (dim, inner)}
    return {
        f"model.layers.{layer}.mlp.experts.{e}.{name}_proj.weight": shape
        for e in range(EXPERTS)
        for name, shape in shapes.items()
    }


def more_experts(values: dict[str, torch.Tensor]) -> None:
    random = torch.Generator().manual_seed(1)
    for layer in range(2):
        wanted = experts(layer) | {f"model.layers.{layer}.mlp.gate.weight": (EXPERTS, 32)}
        values.update({n: torch.randn(s, generator=random) * 0.1 for n, s in wanted.items()})


def three_files(folder: Path) -> None:
    """Cut the weights within an expert of each layer."""
    values = weights(folder)
    (folder / WEIGHTS).unlink()
    names = [name for layer in range(2) for name in experts(layer)]
    first, second = (
        names.index(f"model.layers.{layer}.mlp.experts.{e}.{name}_proj.weight")
        for layer, e, name in ((0, 4, "up"), (1, 11, "down"))
    )
    others = [name for name in values if name not in names]
    parts = {"a": [*others, *names[:first]], "b": names[first:second], "c": names[second:]}
    for file, part in parts.items():
        save_file({name: values[name] for name in part}, folder / f"{file}.safetensors")
    places = {name: f"{file}.safetensors" for file, part in parts.items() for name in part}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": places})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "checkpoint"
    for change in (tiny_llama, tiny_moe(QWEN), tensors(more_experts), three_files):
        change(folder)
    config(num_experts=EXPERTS)(folder)
    return folder


def test_engines_give_the_same_numbers(checkpoint, tmp_path, monkeypatch):
    options = {"target": "onnx", "weights": "link", "parity": False}
    engine = export(checkpoint, tmp_path / "merged", **options)
    weights_in = [v.name for v in ir.load(engine.directory / MODEL).graph.initializers.values()]
    assert sum(".experts." in str(name) for name in weights_in) == 3  # one of each file
    bare = dataclasses.replace(targets.get("onnx"), passes=lambda: ())
    monkeypatch.setitem(targets.TARGETS, "onnx", bare)
    apart = export(checkpoint, tmp_path / "apart", **options)
    logits = load(tmp_path / "merged", 1).logits(IDS)
    np.testing.assert_array_equal(logits, load(apart.directory, 1).logits(IDS))
    bytes_of = [e.manifest.fields["weights"]["float32"]["bytes"] for e in (engine, apart)]
    assert bytes_of[0] == bytes_of[1]

    pack(tmp_path / "merged")
    checkpoint.rename(tmp_path / "away")
    packed = load(tmp_path / "merged", 1)
    assert not packed.linked
    assert verify(packed.directory) == []
    np.testing.assert_array_equal(packed.logits(IDS), logits)
