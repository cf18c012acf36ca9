"""`lmcast diff`: each thing that can differ between two engines is named; equal ones are equal."""

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from tiny.llama import write_json

from lmcast.exporter.diff import numbers
from lmcast.exporter.diff.engines import Difference, diff
from lmcast.exporter.diff.graphs import formats
from lmcast.exporter.diff.tokenizers import changed_entries, changed_rules
from lmcast.exporter.diff.values import ABSENT, Change, changes
from lmcast.exporter.engine.manifest import read_manifest, write_manifest
from lmcast.exporter.engine.names import MODEL

Q = "layers.1.mixer.q.weight"
Run = Callable[..., tuple[int, str, str]]
SECTIONS = ["graph", "numbers", "formats", "texts", "settings"]
SECTIONS += ["versions", "engine", "measured", "files"]


def rewrite(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Change a JSON file of an engine."""

    def edit(engine: Path) -> None:
        body = json.loads((engine / name).read_text())
        change(body)
        write_json(engine / name, body)

    return edit


def in_graph(change: Callable[[ir.Model], object]) -> Callable[[Path], None]:
    """Change the graph of an engine; weights stay where they are."""

    def edit(engine: Path) -> None:
        model = ir.load(engine / MODEL)
        change(model)
        (engine / MODEL).write_bytes(ir.to_proto(model).SerializeToString())

    return edit


def set_epsilon(model: ir.Model) -> None:
    (node,) = (node for node in model.graph if node.name == "layers.1.pre_ffn")
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.5)


def add_input(model: ir.Model) -> None:
    kind = ir.TensorType(ir.DataType.INT64)
    model.graph.inputs.append(ir.Value(name="more", type=kind, shape=ir.Shape(["B"])))


def add_node(model: ir.Model) -> None:
    node = ir.Node("", "Abs", [model.graph.outputs[0]], name="spare")
    node.outputs[0].name = "spare"
    model.graph.append(node)


def retype(
    model: ir.Model, dtype: ir.DataType = ir.DataType.INT32, shape: tuple[int, ...] = (32, 32)
) -> None:
    """Take the same bytes for others, by default for integers."""
    value = model.graph.initializers[Q]
    old = value.const_value
    value.const_value = ir.ExternalTensor(
        old.location, old.offset, old.length, dtype, shape=ir.Shape(shape), name=Q,
        base_dir=old.base_dir,
    )  # fmt: skip


def add_to_weight(engine: Path) -> None:
    tensor = ir.load(engine / MODEL).graph.initializers[Q].const_value
    data = np.memmap(tensor.path, np.float32, "r+", tensor.offset, (tensor.size,))
    data[5] += 0.25
    data[7] -= 1.5
    data.flush()


def swap_tokens(body: Any) -> None:
    held = body["model"]["vocab"]
    held["a"], held["b"] = held["b"], held["a"]


# What changes in an engine, fields of its engine.json -> what is said of it, by section.
CHANGED: dict[str, tuple[Callable[[Path], None], dict[str, Any], dict[str, list[str]]]] = {
    "an attribute": (in_graph(set_epsilon), {}, {
        "graph": ["graph.nodes.layers.1.pre_ffn.epsilon: 9.999999747378752e-06 -> 0.5"],
    }),
    "an input": (in_graph(add_input), {}, {
        "graph": ["graph.inputs.more: added, 'int64 [B]'"],
    }),
    "a node": (in_graph(add_node), {}, {
        "graph": ["graph: nodes of Abs: 0 -> 1", "graph.nodes.spare: added, {'operator': 'Abs',"],
    }),
    "two numbers": (add_to_weight, {}, {
        "numbers": [f"{Q}: 2 of 1,024 numbers differ, by up to 1.5"],
    }),
    "a dtype": (in_graph(retype), {}, {
        "numbers": [f"{Q}: 1,024 of 1,024 numbers differ, by up to 1."],
        "formats": [f"{Q}: 'float [32,32]' -> 'int32 [32,32]'"],
    }),
    "a shape": (in_graph(partial(retype, dtype=ir.DataType.FLOAT, shape=(16, 64))), {}, {
        "formats": [f"{Q}: 'float [32,32]' -> 'float [16,64]'"],
    }),
    "a state": (lambda engine: None, {"graph": {"states": []}}, {
        "engine": ["graph.states.layers.0.key: removed, {"],
    }),
    "tokens": (rewrite("tokenizer.json", swap_tokens), {}, {
        "texts": ["tokenizer.json: 'a': 67 -> 68", "tokenizer.json: 'b': 68 -> 67"],
    }),
    "a template": (
        lambda engine: (engine / "chat_template.jinja").write_text("{{ messages }}\n"), {}, {
            "texts": ["chat_template.jinja:\n--- before\n+++ after\n@@ -1,2 +1,2 @@\n-{{ bos"],
        },
    ),
    "another template": (
        lambda engine: (
            (engine / "additional_chat_templates").mkdir(),
            (engine / "additional_chat_templates/rag.jinja").write_text("x"),
        ), {}, {"texts": ["additional_chat_templates/rag.jinja: added, 'present'"]},
    ),
    "settings": (rewrite("generation_config.json", lambda b: b.update(top_k=5)), {"eos_ids": [2]}, {
        "settings": ["top_k: added, 5", "eos_ids[0]: 1 -> 2"],
    }),
    "special tokens": (lambda engine: None, {"special_tokens": {"eos_token": "</s>"}}, {
        "texts": ["special_tokens.bos_token: removed, '<s>'"],
    }),
    "versions": (lambda engine: None, {"graph": {"onnxruntime": "1.99"}}, {
        "versions": ["onnxruntime: '1.24' -> '1.99'"],
    }),
    "a file of another program": (
        lambda engine: (engine / "notes.txt").write_text("x"), {}, {
            "files": ["notes.txt: added, '2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db022587"],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_differs_is_named(name: str, proven: Path, tmp_path: Path):
    change, fields, told = CHANGED[name]
    engine = tmp_path / "engine"
    shutil.copytree(proven / "engine", engine)
    change(engine)
    old = read_manifest(engine).fields
    graph = old["graph"] | fields.get("graph", {})
    write_manifest(engine, {**old, **fields, "graph": graph})
    found = diff(proven / "engine", engine)
    assert not found.equal
    assert list(found.sections) == SECTIONS
    said = {name: [one.text() for one in each] for name, each in found.sections.items() if each}
    assert said.keys() == told.keys(), said
    hidden = "formats" in said and "numbers" not in said
    assert ("numbers: equal in weights of the same format" in found.text()) == hidden
    for section, lines in told.items():
        for line in lines:
            assert any(text.startswith(line) for text in said[section]), said
    json.dumps(found.as_json(), allow_nan=False)


def test_the_command(proven: Path, tmp_path: Path, lmcast: Run):
    """Equal engines, wherever linked weights lie; a linked one beside one with its weights."""
    shutil.copytree(proven / "checkpoint", tmp_path / "moved")
    shutil.copytree(proven / "linked", tmp_path / "linked")
    body = json.loads((tmp_path / "linked/engine.json").read_text())
    fields = {k: v for k, v in body.items() if k not in ("format", "lmcast", "files", "self")}
    moved = tmp_path / "moved/model.safetensors"
    fields["linked"][0] |= {"path": str(moved), "mtime_ns": moved.stat().st_mtime_ns}
    graph = (tmp_path / "linked" / MODEL).read_bytes()
    model = ir.from_proto(ir.to_proto(ir.load(tmp_path / "linked" / MODEL)))
    for value in model.graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                str(moved).removeprefix("/"), tensor.offset, tensor.length, tensor.dtype,
                shape=tensor.shape, name=str(value.name),
            )  # fmt: skip
    (tmp_path / "linked" / MODEL).write_bytes(ir.to_proto(model).SerializeToString())
    assert (tmp_path / "linked" / MODEL).read_bytes() != graph
    write_manifest(tmp_path / "linked", fields)
    status, said, _ = lmcast("diff", proven / "linked", tmp_path / "linked")
    assert (status, said) == (0, f"{proven / 'linked'} and {tmp_path / 'linked'} are equal in"
                              f" {', '.join(SECTIONS)}\n")  # fmt: skip
    status, said, _ = lmcast("diff", proven / "linked", proven / "engine", "--json")
    found = json.loads(said)
    assert (status, found["equal"]) == (1, False)
    counts = {name: section["count"] for name, section in found["sections"].items()}
    # Other programs look for weights beside their graphs: the linked one has none of these.
    assert {name for name, count in counts.items() if count} == {"engine", "files"}
    places = {change["place"] for change in found["sections"]["engine"]["changes"]}
    assert {"graph.weights", "linked"} <= places
    assert all(place.startswith("clients") for place in places - {"graph.weights", "linked"})
    files = {change["place"] for change in found["sections"]["files"]["changes"]}
    assert {"genai.onnx", "model.onnx"} <= files and "tokenizer.json" not in files
    status, said, error = lmcast("diff", proven / "engine", proven / "checkpoint")
    assert (status, said, error.count("\n")) == (2, "", 1) and "it is no lmcast engine" in error
    (tmp_path / "linked/tokenizer.json").write_text("{}")
    status, _, error = lmcast("diff", proven / "engine", tmp_path / "linked")
    assert status == 2 and "tokenizer.json: " in error


# Numbers of both sides, their dtypes, how many differ and by how much.
FLOATS = np.array([1.0, -0.0, np.inf, np.nan, 5.0], np.float32)
NUMBERS: dict[str, tuple[np.ndarray, np.ndarray, tuple[int, float | None] | None]] = {
    "the same bits, a NaN among them": (FLOATS, FLOATS.copy(), None),
    "a sign of zero": (FLOATS, np.array([1, 0, np.inf, np.nan, 5], np.float32), (1, 0.0)),
    "an infinity": (FLOATS, np.array([1, -0.0, 2, np.nan, 5], np.float32), (1, math.inf)),
    "a NaN": (FLOATS, np.array([np.nan, -0.0, np.inf, np.nan, 4], np.float32), (2, math.inf)),
    "in another dtype": (
        np.array([1.0, 0.1], np.float32), np.array([1.0, 0.1], ml_dtypes.bfloat16), (1, 0.0001),
    ),
    "in 4 bits, an odd number": (
        np.array([1, -8, 7], ml_dtypes.int4), np.array([1, 7, 7], ml_dtypes.int4), (1, 15.0),
    ),
    "in floats of 4 bits": (
        np.array([6, 0.5], ml_dtypes.float4_e2m1fn), np.array([-6, 0.5], ml_dtypes.float4_e2m1fn),
        (1, 12.0),
    ),
    "packed codes": (np.array([1, 2], np.uint8), np.array([1, 255], np.uint8), (1, None)),
    "of another shape": (FLOATS, FLOATS[:2], None),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_compared_a_few_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numbers, "CHUNK", 2)
    one, other, expected = NUMBERS[name]
    values = []
    for array in (one, other):
        value = ir.Value(name="w")
        value.const_value = ir.Tensor(array, name="w")
        values.append(value)
    read: list[int] = []
    found = numbers.compare(*values, read.append)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert (found.differ, found.elements) == (expected[0], len(other))
        assert found.largest == pytest.approx(abs(expected[1]), abs=1e-3) if expected[1] else True
        json.dumps(found.as_json(), allow_nan=False)
        assert ("by up to" in found.text()) == (found.largest is not None)


def test_how_codes_are_read_is_part_of_a_format():
    codes = ir.Value(name="w")
    codes.const_value = ir.Tensor(np.zeros((4, 1, 16), np.uint8), name="w")
    attributes = [ir.AttrInt64("bits", 4), ir.AttrInt64("block_size", 32)]
    node = ir.Node("com.microsoft", "MatMulNBits", [None, codes], attributes)
    graph = ir.Graph([], [], nodes=[node], initializers=[codes])
    found = formats(ir.Model(graph, ir_version=10))
    assert found == {"w": "uint8 [4,1,16], bits 4, block_size 32"}


# Two values of JSON -> what differs.
VALUES: dict[str, tuple[Any, Any, list[Change]]] = {
    "null and nothing": ({"a": None}, {}, [Change("a", None, ABSENT)]),
    "a number and a truth": ({"a": 1}, {"a": True}, [Change("a", 1, True)]),
    "an item more": ([[1], [2]], [[1], [2], [3]], [Change("", ABSENT, [3])]),
    "an item within": ([{"b": 1}], [{"b": 2}], [Change("[0].b", 1, 2)]),
    "an item twice": ([1, 1, 2], [1, 2], [Change(": length", 3, 2)]),
    "long, reversed": (
        [*range(99)], [*range(99)][::-1], [Change("[0], of the same in another order", 0, 98)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values_of_json(name: str):
    before, after, expected = VALUES[name]
    assert list(changes(before, after)) == expected
    assert list(changes(before, json.loads(json.dumps(before)))) == []


def test_tokenizers_of_scored_pieces():
    """Unigram: a piece is found by its spelling, its score is no id; merges and flags of others."""
    held = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [], "normalizer": None}
    other = json.loads(json.dumps(held))
    other["model"]["vocab"] = [["b", -2.0], ["a", -1.5]]
    other["added_tokens"] = [{"id": 2, "content": "<x>", "special": True}]
    both = (json.dumps(held).encode(), json.dumps(other).encode())
    assert changed_entries(*both) == [
        Change("a", 0, 1), Change("b", 1, 0), Change("<x>", ABSENT, 2),
    ]  # fmt: skip
    assert [change.place for change in changed_rules(*both)] == [
        "model.scores.a",
        "added_tokens.<x>",
    ]


def test_a_long_difference_is_cut(proven: Path):
    section = tuple(Change(str(i), 0, 1) for i in range(5000))
    found = Difference("a", "b\n", {"graph": section, "texts": ()})
    assert found.text().count("\n") == 22 and "  and 4,980 more" in found.text()
    assert found.as_json()["sections"]["graph"]["count"] == 5000
    assert len(found.as_json()["sections"]["graph"]["changes"]) == 1000
