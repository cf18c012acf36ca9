"""An engine as other programs run it: their graphs pass, broken ones fail, and so does a program
that picks other tokens."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from lmcast.exporter import Engine
from lmcast.exporter.clients.names import CLIENTS
from lmcast.exporter.engine.manifest import read_manifest, write_manifest
from lmcast.exporter.prove.libraries import Batches, Opened, Tokens
from lmcast.exporter.prove.parity import parity
from lmcast.exporter.prove.picked import pick
from lmcast.exporter.prove.scenarios import PREFILL, RAGGED, STEPS
from lmcast.exporter.prove.through import CLIENTS as RECORDS
from lmcast.exporter.prove.through import Through
from lmcast.plugins.errors import InputError

ROWS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3]]


def missing(engine: Path) -> Opened:
    raise ModuleNotFoundError("no program", name="program")


def without(monkeypatch: pytest.MonkeyPatch, client: str) -> None:
    """Let a program be one that is not installed: here it may be or not."""
    record = dataclasses.replace(RECORDS[client], library=missing)
    monkeypatch.setitem(RECORDS, client, record)  # type: ignore[arg-type]


@pytest.mark.parametrize("client", CLIENTS)
def test_the_graph_of_a_program_passes(
    client: str, proven: Path, monkeypatch: pytest.MonkeyPatch, lmcast
):
    assert list(RECORDS) == list(CLIENTS)
    without(monkeypatch, client)
    status, said, _ = lmcast(
        "parity", proven / "engine", "--against", proven / "checkpoint", "--client", client,
        "--json", "-",
    )  # fmt: skip
    found = json.loads(said)
    assert (status, found["ran"], found["picked"]["version"]) == (0, client, None)
    positions = {r["scenario"]: r["positions"] for r in found["results"]}
    before = json.loads((proven / "before.json").read_text())["results"]
    own = {r["scenario"]: r["positions"] for r in before}
    # GenAI is given no logits but of the last token: of three whole rows.
    assert positions == own | ({PREFILL: 3} if client == "genai" else {})
    assert positions.keys() == {PREFILL, STEPS, RAGGED}
    assert all(0 < r["error"] <= r["bound"] for r in found["results"])


def spoil(engine: Path, file: str, change: Callable[[onnx.GraphProto], Any]) -> None:
    """Change a graph of an engine, and its hashes accordingly."""
    model = onnx.load(engine / file, load_external_data=False)
    change(model.graph)
    (engine / file).write_bytes(model.SerializeToString())
    write_manifest(engine, read_manifest(engine).fields)


def set_epsilon(graph: onnx.GraphProto) -> None:
    (node,) = (node for node in graph.node if node.name == "final.norm")
    next(a for a in node.attribute if a.name == "epsilon").f = 0.5


def turn(op: str, to: str) -> Callable[[onnx.GraphProto], None]:
    """Replace the last operator of a kind in what was written ahead of the graph."""

    def change(graph: onnx.GraphProto) -> None:
        *_, node = (n for n in graph.node if n.name.startswith("client.") and n.op_type == op)
        node.op_type = to

    return change


# A change of a program's graph -> its file, and what fails by it.
BROKEN: dict[str, tuple[str, str, Callable[[onnx.GraphProto], Any], list[str]]] = {
    "the model": ("genai", "genai.onnx", set_epsilon, [PREFILL, STEPS, RAGGED]),
    "the model, of others": ("hub", "model.onnx", set_epsilon, [PREFILL, STEPS, RAGGED]),
    "padding on the left": ("js", "model.onnx", turn("Mul", "Div"), [RAGGED]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_graph_of_a_program_fails(
    name: str, proven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    client, file, change, wrong = BROKEN[name]
    shutil.copytree(proven / "engine", tmp_path / "engine")
    spoil(tmp_path / "engine", file, change)
    report = parity(tmp_path / "engine", proven / "checkpoint", client=client)
    assert set(wrong) <= {r.scenario for r in report.results if not r.passed}
    assert report.picked is None  # a graph that is wrong is not tried in the program


def test_what_no_program_opens_is_refused(proven: Path, tmp_path: Path):
    engine = Engine(proven / "linked")
    with pytest.raises(InputError, match="is not opened by hub: they look for weights beside"):
        Through(engine, "hub", 8)
    shutil.copytree(proven / "engine", tmp_path / "engine")
    write_manifest(
        tmp_path / "engine", {**read_manifest(tmp_path / "engine").fields, "clients": {}}
    )
    with pytest.raises(InputError, match=r"js: it was .*: `lmcast pack --for js` writes it"):
        parity(tmp_path / "engine", proven / "checkpoint", client="js")
    for option in ("bisect", "quality", "exact"):
        with pytest.raises(InputError, match=f"client and {option}: {option} is for the engine's"):
            parity(proven / "engine", proven / "checkpoint", client="hub", **{option: True})
    spoil(tmp_path / "engine", "model.onnx", turn("Mul", "Nonesuch"))
    fields = read_manifest(tmp_path / "engine").fields
    write_manifest(tmp_path / "engine", {**fields, "clients": {"hub": ""}})
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime .* refuses it: .*Nonesuch"):
        Through(Engine(tmp_path / "engine"), "hub", 8)


def program(change: Callable[[list[list[int]]], object]) -> Callable[[Path], Opened]:
    """Return a program that picks what the engine does, but for a change where there are two."""

    def opened(engine: Path) -> Opened:
        def greedy(batches: Batches, count: int) -> Tokens:
            own = Engine(engine, threads=1)
            made = [own.generate(rows, max_new_tokens=count) for rows in batches]
            found = [[list(each.ids) for each in rows] for rows in made]
            change(found[-1])
            return found

        return Opened("program", "1.0", greedy)

    return opened


def refusing(engine: Path) -> Opened:
    raise RuntimeError("genai_config.json: no")


# A program -> what is said of it, up to logits that are so near.
PROGRAMS: dict[str, tuple[Callable[[Path], Opened], float, str]] = {
    "right": (program(lambda found: None), 0.0, "program 1.0: greedy tokens of 2 rows: equal"),
    "another token": (
        program(lambda found: found[1].__setitem__(2, 96 - found[1][2])), 0.0,
        "FAILED: row 1 in one batch: token 2 is ",
    ),
    "as good a token": (
        program(lambda found: found[1].__setitem__(2, 96 - found[1][2])), 1e3, "2 rows: equal",
    ),
    "ends early": (
        program(lambda found: found[0].clear()), 1e3, "row 0 in one batch: token 0 is None, and ",
    ),
    "refuses": (
        refusing, 0.0, "refusing : greedy tokens of 2 rows: FAILED: it refuses the engine: genai_c",
    ),
    "absent": (missing, 0.0, "program is not installed: its graph was run by ONNX Runtime alone"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_program_picks(name: str, proven: Path):
    library, slack, said = PROGRAMS[name]
    found = pick(Engine(proven / "engine", threads=1), library, ROWS, slack)
    assert said in found.text()
    assert (found.problem is None) == ("FAILED" not in found.text())
