"""Engines run in an environment that has what `pip install lmcast` brings: no PyTorch.

The environment is a real one, with lmcast built and installed as a user's; what it depends on is
linked from the environment of the tests, by what pyproject.toml and those packages declare.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny.llama import tiny_llama

from lmcast.exporter import Engine, export
from lmcast.exporter.engine.manifest import read_manifest, write_manifest
from lmcast.exporter.extras import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IDS = [[1, 2, 3], [4, 5, 6]]

Run = Callable[..., subprocess.CompletedProcess[str]]


def required(requirements: list[str]) -> Iterator[str]:
    """Yield the names of the packages that requirements bring here, extras aside."""
    waiting, seen = list(requirements), set[str]()
    while waiting:
        wanted = Requirement(waiting.pop())
        name = canonicalize_name(wanted.name)
        if name in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        try:
            waiting += distribution(name).requires or []
        except PackageNotFoundError:
            continue  # what is missing here would be missed by the commands below
        yield name


def build(folder: Path) -> Path:
    """Return lmcast's wheel, built from a copy: a build leaves files beside the sources."""
    source, ignored = folder / "source", shutil.ignore_patterns("__pycache__", "native", "build")
    source.mkdir()
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    for package in ("plugins", "graphs", "calib", "exporter"):
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    words = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w"]
    subprocess.run([sys.executable, *words, folder, source], check=True, capture_output=True)
    (wheel,) = folder.glob("lmcast-*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the base dependencies and lmcast alone."""
    folder = tmp_path_factory.mktemp("base")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv").glob("lib/python3*/site-packages")
    for name in required(PROJECT["dependencies"]):
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (site / top).exists():  # `google` is of several
                (site / top).symlink_to(str(distribution(name).locate_file(top)))
    with ZipFile(build(folder)) as wheel:
        wheel.extractall(site)
    return folder / "venv/bin/python"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint and engines that are linked to it."""
    folder = tmp_path_factory.mktemp("made")
    tiny_llama(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", parity=False)
    export(folder / "checkpoint", folder / "portable", "onnx", parity=False)
    return folder


@pytest.fixture
def lmcast_there(python: Path, made: Path) -> Run:
    """Return a function that runs a command in that environment, in the folder of the engine."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        code = "from lmcast.exporter.cli import main; main()"
        command = [python, "-I", "-c", code, *map(str, words)]
        return subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)

    return run


def test_the_environment_has_no_torch(python: Path):
    code = "import importlib.util as u; print([m for m in {!r} if u.find_spec(m)])"
    done = subprocess.run(
        [python, "-I", "-c", code.format([*EXTRAS, "lmcast"])], capture_output=True, text=True
    )
    assert done.stdout.strip() == "['lmcast']", done.stderr


RUNS = {
    "generate": ("generate", "engine", "hello", "-n", 4),
    "bench": ("bench", "engine", "--prompt-tokens", 8, "--new-tokens", 2, "--runs", 1),
    "verify": ("verify", "engine"),
    "inspect": ("inspect", "engine", "--batch", 3),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, lmcast_there: Run, made: Path, lmcast, monkeypatch: pytest.MonkeyPatch):
    done = lmcast_there(*RUNS[name])
    assert done.returncode == 0, done.stderr
    if name == "bench":
        assert re.search(r"^decode +[\d.]+ tokens/s$", done.stdout, re.MULTILINE)
        return
    monkeypatch.chdir(made)
    assert done.stdout == lmcast(*RUNS[name])[1]  # as where everything is installed


def test_sessions(python: Path, made: Path):
    """From Python: load, session, logits; as where everything is installed."""
    code = (
        "import json, sys; from lmcast.exporter import load\n"
        "engine = load('engine'); session = engine.session(2)\n"
        f"found = [engine.logits({IDS}), session.append({IDS}), session.append([[7], [8]])]\n"
        "print(json.dumps([f.tolist() for f in found]))"
    )
    done = subprocess.run([python, "-I", "-c", code], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    engine = Engine(made / "engine")
    session = engine.session(2)
    wanted = [engine.logits(IDS), session.append(IDS), session.append([[7], [8]])]
    for found, here in zip(json.loads(done.stdout), wanted, strict=True):
        np.testing.assert_array_equal(np.float32(found), here)


CASTS = {
    "export": ("export", "checkpoint", "-o", "other"),
    "build": ("build", "portable", "--sm", 89),
    "parity": ("parity", "engine", "--against", "checkpoint"),
    "quality": ("quality", "engine", "--against", "checkpoint"),
    "calibrate": ("calibrate", "checkpoint", "--recipe", "int4", "-o", "other"),
    "pack": ("pack", "engine"),
    "inspect a checkpoint": ("inspect", "checkpoint"),
}


@pytest.mark.parametrize("name", CASTS)
def test_says_what_casting_needs(name: str, lmcast_there: Run, made: Path):
    done = lmcast_there(*CASTS[name])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("pip install 'lmcast[export]'\n")
    assert done.stderr.count("\n") == 1
    assert not (made / "other").exists()


def test_wrong_input_is_said_without_torch_too(lmcast_there: Run):
    done = lmcast_there("inspect", "absent")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "absent: cannot be opened" in done.stderr


SIZES = ("max_batch", "max_context", "max_tokens", "opt_batch", "opt_tokens")
PLAN = {
    "file": "plans/p.plan", "library": "tensorrt_rtx 1", "operators": {},
    "request": {"target": "tensorrt-rtx", "sms": [89], **dict.fromkeys(SIZES, 1)},
}  # fmt: skip


def test_says_that_plans_need_a_gpu(lmcast_there: Run, made: Path):
    """And nothing that casting takes: their runner is there."""
    shutil.copytree(made / "portable", made / "planned")
    (made / "planned/plans").mkdir()
    (made / "planned/plans/p.plan").write_text("a plan")
    fields = dict(read_manifest(made / "portable").fields)
    write_manifest(made / "planned", fields | {"target": "tensorrt-rtx", "plans": [PLAN]})
    for words in (("generate", "planned", "hello"), ("bench", "planned", "--prompt-tokens", 8)):
        done = lmcast_there(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert re.search("no NVIDIA GPU is here|cuda-bindings", done.stderr)
        assert "--portable" in done.stderr


def test_python_says_what_casting_needs(python: Path):
    done = subprocess.run(
        [python, "-I", "-c", "from lmcast.exporter import export"], capture_output=True, text=True
    )
    assert done.stderr.endswith("pip install 'lmcast[export]'\n")


@pytest.mark.parametrize("module", EXTRAS)
def test_an_extra_installs_what_it_is_named_for(module: str):
    """What the advice names brings the module, and no base dependency does."""
    names = {canonicalize_name(name) for name in packages_distributions()[module]}
    extra = PROJECT["optional-dependencies"][EXTRAS[module]]
    assert names & {canonicalize_name(Requirement(r).name) for r in extra}
    assert not names & set(required(PROJECT["dependencies"]))


# As markers call them; where onnxruntime-gpu has wheels: see docs/installing.md.
PLATFORMS = {
    ("linux", "x86_64"): "onnxruntime-gpu",
    ("win32", "AMD64"): "onnxruntime-gpu",
    ("linux", "aarch64"): "onnxruntime",
    ("darwin", "arm64"): "onnxruntime",
    ("win32", "ARM64"): "onnxruntime",
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_one_onnx_runtime_a_platform(platform: tuple[str, str]):
    system, machine = platform
    where = {"sys_platform": system, "platform_machine": machine}
    wanted = [Requirement(r) for r in PROJECT["dependencies"]]
    found = [r.name for r in wanted if r.marker is None or r.marker.evaluate(where)]
    assert [name for name in found if "onnxruntime" in name] == [PLATFORMS[platform]]
