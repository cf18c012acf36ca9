"""A target is one record: whoever adds one touches nothing else."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lmcast.exporter import export, load, passes, targets
from lmcast.exporter.backends.runner import Loading, Runner
from lmcast.exporter.engine.manifest import EngineError, Manifest
from lmcast.exporter.engine.names import MODEL
from lmcast.exporter.graph.requirements import Requirements, require, requirements
from lmcast.plugins.errors import InputError

SOURCES = Path(targets.__file__).parent
MARK = "lmcast.toy"
IDS = np.arange(1, 6)[None]


def marked(model: ir.Model) -> int:
    """A pass that changes no number; what it asks is seen in engine.json."""
    model.metadata_props[MARK] = "yes"
    require(model, append="row")
    return 1


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Loading]]:
    """Register a target for the time of a test; return how its engines were loaded."""
    loaded: list[Loading] = []
    portable = targets.get("onnx")

    def run(manifest: Manifest, loading: Loading) -> Runner:
        loaded.append(loading)
        return portable.run(manifest, loading)

    made = replace(
        portable,
        name="toy",
        about="the portable graph with a mark",
        passes=lambda: (*passes.PORTABLE, marked),
        requires={"split_experts": True},
        run=run,
    )
    monkeypatch.setitem(targets.TARGETS, made.name, made)
    return loaded


def test_a_new_target_exports_proves_and_loads(toy: list[Loading], checkpoint, tmp_path: Path):
    source = checkpoint("llama/plain")
    engine = export(source, tmp_path / "engine", "toy", tokenizer=False)
    assert engine.summary().parity and engine.summary().target == "toy"
    proofs = len(toy)
    assert proofs == 1  # parity ran what the target runs
    assert ir.load(engine.directory / MODEL).metadata_props[MARK] == "yes"
    wanted = replace(Requirements(), split_experts=True, append="row").as_json()
    del wanted["onnxruntime"]  # of the graph's operators (test_oldest_onnxruntime.py)
    assert {k: engine.manifest.fields["graph"][k] for k in wanted} == wanted
    again = load(engine.directory, threads=1)
    other = export(source, tmp_path / "onnx", "onnx", tokenizer=False, parity=False)
    np.testing.assert_array_equal(again.logits(IDS), load(other.directory, 1).logits(IDS))
    assert toy[proofs:] == [Loading(threads=1)]


def test_without_its_target_an_engine_is_refused(checkpoint, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as registered:
        made = replace(targets.get("onnx"), name="toy")
        registered.setitem(targets.TARGETS, "toy", made)
        export(checkpoint("llama/plain"), tmp_path / "e", "toy", tokenizer=False, parity=False)
    words = "target 'toy' is unknown; accepted: cpu, onnx, cuda, tensorrt-rtx, tensorrt"
    with pytest.raises(EngineError, match=words):
        load(tmp_path / "e").logits(IDS)
    with pytest.raises(InputError, match="target is 'toy'; accepted: cpu, onnx, cuda, tensorrt"):
        export(checkpoint("llama/plain"), tmp_path / "f", "toy", tokenizer=False)


def test_requirements_add_up():
    graph = ir.Model(ir.Graph([], [], nodes=[], name="g"), ir_version=11)
    assert requirements(graph) == Requirements()
    require(graph, prepack=True)
    require(graph, append="row")
    assert requirements(graph) == Requirements(prepack=True, append="row")


# The words of other libraries that are spelled like a target.
OTHER_WORDS = {
    "cores.py": {"cpu"},  # a controller of control groups
    "checkpoint/kinds.py": {"onnx"},  # a folder of a repository
    "clients/card.py": {"onnx"},  # a tag of the Hub
    "clients/genai.py": {"cuda"},  # a provider of GenAI
    "clients/layouts.py": {"onnx"},  # a folder that transformers.js looks into
    "extras.py": {"onnx"},  # a package
    "backends/onnxruntime.py": {"cpu"},  # a device of ONNX Runtime
    "graph/lowering.py": {"onnx"},  # a namespace of torch's operators
}


def test_targets_are_named_in_one_place():
    """Nothing but the catalogue and the backend of a target has its name as a value."""
    backends = (SOURCES / "backends" / name for name in ("tensorrt", "cuda_provider"))
    own = (SOURCES / "targets.py", *backends)
    for path in sorted(SOURCES.rglob("*.py")):
        if any(path.is_relative_to(place) for place in own):
            continue
        words = {n.value for n in ast.walk(ast.parse(path.read_text()))
                 if isinstance(n, ast.Constant) and isinstance(n.value, str)}  # fmt: skip
        file = str(path.relative_to(SOURCES))
        assert words & targets.TARGETS.keys() == OTHER_WORDS.get(file, set()), file
