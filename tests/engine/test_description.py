"""engine.json and parity.json: no value but one of its declaration is read, whatever hashes say.

Edited files are sealed again, as nothing but an attacker does: hashes find none of this.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from staged_engines import DESCRIPTION

from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.engine.inspect import inspect
from lmcast.exporter.engine.manifest import EngineError, read_manifest, undeclared, write_manifest
from lmcast.exporter.runtime.engine import Engine

SIZES = ("max_batch", "max_context", "max_tokens", "opt_batch", "opt_tokens")
PLAN = {
    "file": "plans/p.plan", "library": "tensorrt_rtx 1", "bytes": 4, "in_place": ["layers.0.key"],
    "operators": {"moe_route": {"plugin": 1}}, "codes": None,
    "request": {"target": "tensorrt-rtx", "sms": [89], "widen": False, "max_pixels": 4,
                **dict.fromkeys(SIZES, 1)},
    "vision": {"file": "plans/v.plan", "ranges": {"M": [1, 4, 9]}, "bytes": 4,
               "operators": {"Attention": {"native": 1}}},
}  # fmt: skip
STATE = {"name": "layers.0.key", "shape": ["B", 2, "C", 8], "dtype": "float32"}
RESULT = {
    "scenario": "prefill", "positions": 3, "error": 1e-6, "eager_error": 1e-6, "bound": 2e-5,
    "top1": 1.0, "kl": 0.0, "passed": True, "times_eager": 1.0,
    "nothing": 1.0, "vacuous": False,
}  # fmt: skip
PARITY = {
    "ran": "graph", "dtype": "float32", "tokens": 3, "beyond_window": None, "passed": True,
    "times_allowed": 4.0, "floor": 2e-5, "texts": {}, "bisection": None, "quality": None,
    "results": [RESULT], "rounding": {"text": "a manual", "tokens": 128, "kl": 0.001},
}  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine with every field that one may have; its graph is never opened."""
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"weights")
    now = SourceFile.of(source)
    made_from = {"size": now.size, "header_sha256": now.header_sha256}
    linked = {**made_from, "path": str(source), "mtime_ns": now.mtime_ns, "sha256": "0" * 64}
    graph = DESCRIPTION["graph"] | {
        "weights": "link", "states": [STATE], "inputs": [["input_ids", ["B", "T"]]],
        "outputs": [["logits", ["B", "T", "8"]]], "prepack": False,
    }  # fmt: skip
    fields = DESCRIPTION | {
        "graph": graph, "linked": [linked], "source": [{**made_from, "name": source.name}],
        "weights": {"float32": {"tensors": 1, "bytes": 7}}, "eos_ids": [1], "inert": ["a"],
        "special_tokens": {"eos_token": "</s>"}, "untie": False, "plans": [PLAN],
        "hub": {"repository": "org/name", "revision": "0"}, "matformer": {"layers": [0]},
        "recipe": {
            "sha256": "0" * 64, "formats": {"int4": 1}, "inputs": {}, "caches": {},
            "quality": {"text": "a.txt", "tokens": 2, "dtype": "float32", "kl": 0.1},
        },
    }  # fmt: skip
    directory = tmp_path / "engine"
    (directory / "plans").mkdir(parents=True)
    for path, data in CONTENTS.items():
        (directory / path).write_bytes(data)
    (directory / "parity.json").write_text(json.dumps(PARITY))
    write_manifest(directory, fields)
    return directory


def opened(engine: Path) -> None:
    """Read all of it that is read without its graph."""
    Engine(engine, threads=1).summary().text()
    inspect(engine).text()


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values within one but those of people's own: a config, a slice."""
    if at:
        yield at
    if at[:1] in (("config",), ("matformer",)):
        return
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def at(body: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        body = body[key]
    return body


WHOLE = "every file is as it was written"
# Of files that no test changes: hashing them anew, each in threads, is most of what a row costs.
CONTENTS = {"engine.onnx": b"graph", "plans/p.plan": b"plan", "plans/v.plan": b"plan"}
HASHES = {path: hashlib.sha256(data).hexdigest() for path, data in CONTENTS.items()}

# A value of each type, the edges of numbers, and what no name of a file looks like.
WRONG = [None, True, -1, 0.5, 1 << 60, "", "../x", "nul\0", [], [[]], {}, {"x": None}]
# All of these that are right somewhere. Names are compared with what is known where they are used.
NAME, EMPTY, OBJECT, FLAG, ABSENT = ["../x"], [[]], [{}], [True], [None]
RIGHT: dict[str, list[Any]] = {
    "architecture": NAME,
    "config": [{}, {"x": None}],
    "eos_ids": EMPTY,
    "eos_ids.0": [-1, 1 << 60],
    "graph.folded": FLAG,
    "graph.inputs": EMPTY,
    "graph.inputs.0.0": NAME,
    "graph.inputs.0.1": EMPTY,
    "graph.inputs.0.1.0": NAME,
    "graph.inputs.0.1.1": NAME,
    "graph.optimized": FLAG,
    "graph.outputs": EMPTY,
    "graph.outputs.0.0": NAME,
    "graph.outputs.0.1": EMPTY,
    "graph.outputs.0.1.0": NAME,
    "graph.outputs.0.1.1": NAME,
    "graph.outputs.0.1.2": NAME,
    "graph.prepack": FLAG,
    "graph.split_experts": FLAG,
    "graph.states": EMPTY,
    "graph.states.0.name": NAME,
    "hub": ABSENT,
    "hub.repository": NAME,
    "hub.revision": NAME,
    "inert": EMPTY,
    "inert.0": ["", "../x", "nul\0"],
    "linked.0.sha256": ABSENT,
    "matformer": [None, {}, {"x": None}],
    "plans": EMPTY,
    "plans.0.codes": WRONG,
    "plans.0.in_place": EMPTY,
    "plans.0.in_place.0": NAME,
    "plans.0.library": NAME,
    "plans.0.operators": OBJECT,
    "plans.0.operators.moe_route": OBJECT,
    "plans.0.request.max_pixels": ABSENT,
    "plans.0.request.sms": EMPTY,
    "plans.0.request.target": NAME,
    "plans.0.request.widen": FLAG,
    "plans.0.vision": ABSENT,
    "plans.0.vision.operators": OBJECT,
    "plans.0.vision.operators.Attention": OBJECT,
    "plans.0.vision.ranges": OBJECT,
    "recipe": ABSENT,
    "recipe.caches": OBJECT,
    "recipe.formats": OBJECT,
    "recipe.inputs": OBJECT,
    "recipe.quality": ABSENT,
    "recipe.quality.kl": [0.5],
    "recipe.quality.text": NAME,
    "source": EMPTY,
    "source.0.name": NAME,
    "special_tokens": OBJECT,
    "special_tokens.eos_token": ["", "../x", "nul\0"],
    "untie": FLAG,
    "weights": OBJECT,
}


def test_any_value_in_any_place(engine: Path):
    """It is refused in one line, but where it is right; then the engine can be described."""
    fields = json.loads(json.dumps(read_manifest(engine).fields))
    opened(engine)
    right: dict[str, list[Any]] = {}
    said = []
    for path in list(places(fields)):
        for value in WRONG:
            body = copy.deepcopy(fields)
            at(body, path[:-1])[path[-1]] = value
            write_manifest(engine, body, HASHES)
            try:
                opened(engine)
            except EngineError as error:
                said.append(str(error))
            else:
                right.setdefault(".".join(map(str, path)), []).append(value)
    assert right == RIGHT
    assert [text for text in said if not text.startswith(str(engine)) or "\n" in text] == []


# Edits -> a part of the refusal. A path of keys, and the value there.
REFUSED: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a field more": (("extra",), None, "extra is unknown; accepted: architecture,"),
    "a field of the contract": (("graph", "extra"), 1, "graph.extra is unknown"),
    "a field of a state": (("graph", "states", 0, "window"), 1, "window is unknown"),
    "a graph out of it": (("graph", "file"), "../m.onnx", "graph.file is '../m.onnx'"),
    "another of its files": (("graph", "file"), "plans/p.plan", "implemented|accepted"),
    "weights of nowhere": (("linked",), [], "graph.weights is link, and linked lists 0"),
    "copied and linked": (("graph", "weights"), "copy", "graph.weights is copy, and linked"),
    "no vocabulary": (("vocab_size",), 0, "vocab_size is 0; accepted: 1 to 16777216"),
    "a vast vocabulary": (("vocab_size",), 1 << 40, "accepted: 1 to 16777216"),
    "a vast context": (("context",), 1 << 40, "context is 1099511627776"),
    "a vast state": (("graph", "states", 0, "shape"), ["B", 1 << 40], "shape[1] is"),
    "an unknown axis": (("graph", "states", 0, "shape"), ["B", "T"], "accepted: 'B', 'C'"),
    "a state without rows": (("graph", "states", 0, "shape"), [2, "B"], "begin with B"),
    "a state of an odd dtype": (("graph", "states", 0, "dtype"), "int4", "dtype is 'int4'"),
    "an odd dtype": (("dtype",), "float64", "dtype is 'float64'; accepted: 'float32',"),
    "an odd way to append": (("graph", "append"), "all", "accepted: 'batch', 'row'"),
    "no hash of a recipe": (("recipe", "sha256"), "0", "64 digits"),
    "no layers": (("layers",), 0, "layers is 0"),
    "weights of no size": (("weights", "float32", "bytes"), -7, "weights.float32.bytes is -7"),
    "a list as weights": (("weights", "float32"), [1, 7], "accepted: an object"),
    "a plan out of it": (("plans", 0, "file"), "/p.plan", "a relative path inside"),
    "a number as end": (("eos_ids",), 1, "eos_ids is 1; accepted: a list"),
    "a name of two lines": (("architecture",), "a\nb", "printable characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, engine: Path, lmcast):
    path, value, message = REFUSED[name]
    fields = json.loads(json.dumps(read_manifest(engine).fields))
    at(fields, path[:-1])[path[-1]] = value
    write_manifest(engine, fields, HASHES)
    (problem,) = undeclared(engine)
    assert any(part in problem.message for part in message.split("|"))
    for command in (("generate", engine, "5", "--ids"), ("pack", engine), ("inspect", engine)):
        status, _, error = lmcast(*command)
        assert (status, error.count("\n")) == (2, 1)
        assert problem.message in error


def test_verify_says_what_hashes_do_not(tmp_path: Path, lmcast):
    engine = tmp_path / "engine"
    engine.mkdir()
    write_manifest(engine, DESCRIPTION)
    status, said, _ = lmcast("verify", engine)
    assert (status, said) == (0, f"{WHOLE}; by whom, only a signature can tell\n")
    write_manifest(engine, DESCRIPTION | {"layers": 0})
    status, said, _ = lmcast("verify", engine)
    assert status == 1
    assert said.startswith("engine.json: layers is 0; accepted: 1 to 4096")


# Edits of parity.json, as of engine.json above; a key alone is removed.
MEASURED: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "no results": (("results",), [], "results is empty"),
    "a text as results": (("results",), "good", "accepted: a list"),
    "an error in words": (("results", 0, "error"), "small", "results[0].error is 'small'"),
    "an error that is none": (("results", 0, "error"), float("nan"), "a finite number"),
    "a bound without end": (("results", 0, "bound"), float("inf"), "a finite number"),
    "a field more": (("results", 0, "extra"), 1, "results[0].extra is unknown"),
    "another run": (("ran",), "both", "ran is 'both'; accepted: 'graph', 'plan'"),
    "passed, a number": (("passed",), 1, "passed is 1; accepted: true or false"),
    "a quality, which export does not measure": (("quality",), {}, "accepted: null"),
    "texts, a list": (("texts",), [], "texts is []; accepted: an object"),
}


@pytest.mark.parametrize("name", MEASURED)
def test_parity_is_as_declared(name: str, engine: Path):
    path, value, message = MEASURED[name]
    body = copy.deepcopy(PARITY)
    at(body, path[:-1])[path[-1]] = value
    (engine / "parity.json").write_text(json.dumps(body))
    write_manifest(engine, read_manifest(engine).fields)
    with pytest.raises(EngineError, match=r"parity\.json: ") as refusal:
        opened(engine)
    assert message in str(refusal.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 99999, b"{}"])
@pytest.mark.parametrize("file", ["parity.json", "generation_config.json"])
def test_other_bytes(file: str, data: bytes, engine: Path):
    (engine / file).write_bytes(data)
    write_manifest(engine, read_manifest(engine).fields)
    if (file, data) == ("generation_config.json", b"{}"):
        assert not Engine(engine).generation_config
        return
    with pytest.raises(EngineError, match=rf"{file}: "):
        assert Engine(engine).generation_config or Engine(engine).summary()
