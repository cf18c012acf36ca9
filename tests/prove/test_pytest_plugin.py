"""Parity in other people's CI: the plugin of pytest, and the sample of a workflow."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import onnx_ir
import pytest
import yaml
from packaging.requirements import Requirement

from lmcast.exporter import pytest_plugin
from lmcast.exporter.engine.manifest import read_manifest, write_manifest
from lmcast.exporter.engine.names import MODEL

ROOT = Path(__file__).parents[2]
Q = "layers.1.mixer.q.weight"
Run = Callable[..., tuple[int, str, str]]

# The plugin of pytest. -------------------------------------------------------------------------

ITEMS = ["hashes", "tokenizer", "chat template", "generation"]
ITEMS += ["prefill", "step by step", "ragged batch", "exact", "features", "with pictures"]


def rewritten(engine: Path) -> None:
    """Write the hashes of an engine anew, so that they are right."""
    fields = read_manifest(engine).fields
    write_manifest(engine, fields)


def flip(engine: Path) -> None:
    """Flip the highest bit of the exponent of one weight."""
    tensor = stored(engine)
    with open(tensor.path, "r+b") as file:
        file.seek(tensor.offset + 3)
        (byte,) = file.read(1)
        file.seek(tensor.offset + 3)
        file.write(bytes([byte ^ 0x40]))


def stored(engine: Path) -> Any:

    return onnx_ir.load(engine / MODEL).graph.initializers[Q].const_value


def swap(engine: Path) -> None:
    content = json.loads((engine / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (engine / "tokenizer.json").write_text(json.dumps(content))


def edit(engine: Path) -> None:
    text = (engine / "chat_template.jinja").read_text()
    (engine / "chat_template.jinja").write_text(text.replace("[{{ m.role }}]", "<{{ m.role }}>"))


# What happens to an engine -> tests that fail, and what they name.
SPOILED: dict[str, tuple[Callable[[Path], Any], dict[str, str]]] = {
    "good": (lambda engine: None, {}),
    "flipped": (
        lambda engine: (flip(engine), rewritten(engine)),
        dict.fromkeys(ITEMS[4:7], "error .* is above ")
        | {"prefill": f"first diverges in layer 1 at {Q.removesuffix('.weight')} "},
    ),
    "damaged": (
        flip, dict.fromkeys(ITEMS, r"weights/model-00001\.safetensors: .*sha256"),
    ),
    "swapped": (
        lambda engine: (swap(engine), rewritten(engine)),
        {"tokenizer": r"token 'a' is 68, not 67.*\n.*'The capital of France is Paris\.' is \["},
    ),
    "garbled": (
        lambda engine: ((engine / "tokenizer.json").write_text("{}"), rewritten(engine)),
        {"tokenizer": r"json: is not a tokenizer; .*\ntoken ids: tokenizer\.json: not a "},
    ),
    "edited": (
        lambda engine: (edit(engine), rewritten(engine)),
        {"chat template": r"line 1 is .*\nchats: a question is '.*<user>.* of the checkpoint"},
    ),
}  # fmt: skip


def run_pytest(folder: Path, *options: object) -> int:
    """Run pytest in this process on nothing but engines, with this plugin alone."""
    without = ("cacheprovider", "logging", "unraisableexception")  # the last collects garbage
    given = ["-q", "-c", os.devnull, "--rootdir", folder, "--assert", "plain", *options, folder]
    given += [word for name in without for word in ("-p", f"no:{name}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return int(pytest.main([str(option) for option in given], plugins=[pytest_plugin]))


def test_the_plugin_names_what_is_wrong(proven: Path, tmp_path: Path):
    options: list[object] = ["--lmcast-against", proven / "checkpoint"]
    for name, (spoil, _) in SPOILED.items():
        shutil.copytree(proven / "engine", tmp_path / "engines" / name)
        spoil(tmp_path / "engines" / name)
        options += ["--lmcast-engine", tmp_path / "engines" / name]
    (tmp_path / "none").mkdir()
    assert run_pytest(tmp_path / "none", *options, "--junit-xml", tmp_path / "run.xml") == 1
    cases = list(ElementTree.parse(tmp_path / "run.xml").getroot().iter("testcase"))
    assert len(cases) == len(SPOILED) * len(ITEMS)
    for name, (_, wrong) in SPOILED.items():
        own = {
            case.get("name"): case
            for case in cases
            if str(case.get("classname")).rpartition(".")[2] == name
        }
        assert list(own) == ITEMS
        failed = {
            n: f.get("message", "") for n, c in own.items() if (f := c.find("failure")) is not None
        }
        assert failed.keys() == wrong.keys(), name
        assert all(re.search(wrong[n], message) for n, message in failed.items()), failed
        if name == "good":
            assert own["exact"].find("skipped") is not None
            measured = {p.get("name") for p in own["prefill"].iter("property")}
            assert {"error", "bound", "kl", "positions", "seconds"} <= measured


# Options -> what pytest says of them, in one line.
WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "against nothing": (("--lmcast-engine", "engine"), "--lmcast-against: 0 for 1 engines"),
    "no engine": (("--lmcast-against", "checkpoint"), "are for a --lmcast-engine"),
    "two for one": (
        ("--lmcast-engine", "engine", *("--lmcast-against", "checkpoint") * 2), ": 2 for 1 engines",
    ),
    "no such engine": (
        ("--lmcast-engine", "absent", "--lmcast-against", "checkpoint"), "it is no lmcast engine",
    ),
    "no such checkpoint": (
        ("--lmcast-engine", "engine", "--lmcast-against", "./absent"), "is not there, and no model",
    ),
    "another's recipe": (
        ("--lmcast-engine", "engine", "--lmcast-against", "checkpoint", "--lmcast-recipe", "a"),
        "--lmcast-recipe a: no engine was made with it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_of_the_plugin(
    name: str, proven: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    options, message = WRONG[name]
    monkeypatch.chdir(proven)
    (proven / "a").mkdir(exist_ok=True)
    (proven / "a/recipe.json").write_text("{}")
    assert run_pytest(proven / "a", *options) == pytest.ExitCode.USAGE_ERROR
    said = capfd.readouterr().err.strip()
    assert said.startswith("ERROR: ") and message in said and said.count("\n") == 0


def test_the_plugin_costs_no_import():
    """It is imported wherever lmcast is installed and pytest runs."""
    code = "import sys, lmcast.exporter.pytest_plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert {name for name in found if name.startswith("lmcast")} == {
        "lmcast", "lmcast.exporter", "lmcast.exporter.pytest_plugin",
    }  # fmt: skip
    assert not found & {"torch", "numpy", "onnxruntime", "onnx_ir", "click", "tokenizers"}
    (entry,) = re.findall(
        r"\[project\.entry-points\.pytest11\]\n(.*)", (ROOT / "pyproject.toml").read_text()
    )
    assert entry == f'lmcast = "{pytest_plugin.__name__}"'


# The sample of a workflow. ---------------------------------------------------------------------

WORKFLOW = ROOT / "samples/ci/parity.yml"


def run_step(script: str, folder: Path, given: dict[str, str], call: Run) -> tuple[int, str]:
    """Run a script in a folder, as a runner of GitHub's does; its `lmcast` is `call`, in this
    process: there it is imported already. Return the exit status, and what that has printed."""
    request, answer = folder / "request", folder / "answer"
    for pipe in (request, answer):
        os.mkfifo(pipe)
    (folder / "bin").mkdir()
    (folder / "bin/lmcast").write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {request}\nread -r status < {answer}\nexit $status\n"
    )
    (folder / "bin/lmcast").chmod(0o755)
    environment = os.environ | given | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", "-e", "-c", script], cwd=folder, env=environment)
    ended = Thread(target=lambda: (process.wait(), request.write_text("")))
    ended.start()
    printed = ""
    while words := request.read_text().splitlines():
        status, out, err = call(*words)
        printed += out + err
        answer.write_text(f"{status}\n")
    ended.join()
    for path in (request, answer, folder / "bin/lmcast"):
        path.unlink()
    (folder / "bin").rmdir()
    return process.returncode, printed


def test_the_workflow_runs_step_by_step(
    proven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lmcast: Run
):
    """Its commands, on a tiny checkpoint, with a baseline; and where that was better.

    An install is not run: what it asks for must be here already.
    """
    workflow = yaml.safe_load(WORKFLOW.read_text())
    (job,) = workflow["jobs"].values()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(proven / "checkpoint", workflow["env"]["CHECKPOINT"])
    baseline = Path("parity-baseline.json")
    shutil.copy(proven / "before.json", baseline)
    scripts = {step["name"]: step["run"] for step in job["steps"] if "run" in step}
    assert list(scripts) == ["Install", "Export", "Parity"]
    for line in scripts["Install"].splitlines():
        check_installed(Requirement(re.fullmatch(r'pip install "(.*)"', line)[1]))
    for name in ("Export", "Parity"):
        status, printed = run_step(scripts[name], tmp_path, workflow["env"], lmcast)
        assert status == 0, printed
    assert "prefill since the baseline: error" in printed
    (upload,) = [step["with"] for step in job["steps"] if "upload" in step.get("uses", "")]
    written = {path.name for path in Path(upload["path"]).iterdir()}
    assert written == {"parity.json", "parity.xml", "parity.html"}
    baseline.write_text(re.sub(r'"error": [^,]*', '"error": 0.0', baseline.read_text()))
    status, printed = run_step(scripts["Parity"], tmp_path, workflow["env"], lmcast)
    assert (status, printed.count("WORSE: error is")) == (1, 3)


def check_installed(wanted: Requirement) -> None:
    """Fail unless a distribution is here in an accepted version, with what its extras ask for."""
    found = distribution(wanted.name)
    assert wanted.specifier.contains(found.version), wanted
    for text in found.requires or () if wanted.extras else ():
        needed = Requirement(text)
        asked = needed.marker and any(needed.marker.evaluate({"extra": e}) for e in wanted.extras)
        if asked and needed.name != wanted.name:
            check_installed(Requirement(f"{needed.name}{needed.specifier}"))


def test_the_workflow_is_pinned():
    """Every action is of one version, and a failed parity still uploads what it found."""
    workflow = yaml.safe_load(WORKFLOW.read_text())
    (job,) = workflow["jobs"].values()
    used = [step for step in job["steps"] if "uses" in step]
    assert len(used) == 3
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", step["uses"]) for step in used)
    assert used[1]["with"]["cache"] == "pip" and used[2]["if"] == "always()"
    assert workflow["permissions"] == {"contents": "read"}
