"""What documents say holds: commands run on a tiny model, paths and options exist.

test_samples runs the same commands on a real model.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cuda.interpret import stand_in
from tiny.llama import tiny_llama

from lmcast.exporter.cli import main
from lmcast.plugins.launch import launch_plan

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"  # stands for a directory here: the commands are the same
README_LINES = 120

# [text](path), `path` with a folder or an ending of ours; not <placeholders>, globs or {choices}.
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
QUOTED = re.compile(r"`([\w.-]+(?:/[\w.-]+)+/?|[\w-]+\.(?:md|toml|txt))`")
# What a checkpoint or an engine holds, not this repository; and names that an example gives.
ELSEWHERE = re.compile(r"^(config\.json|weights/|plans/|params\.json|engine/|~)|(NAME|FAMILY)")


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)


def commands(program: str) -> list[str]:
    """Return the commands of a program in all pages, without comments, each once."""
    found: list[str] = []
    for page in PAGES:
        text = "\n".join(body for kind, body in blocks(page) if kind == "sh")
        for line in text.replace("\\\n", " ").splitlines():
            command = line.split("  #")[0].strip()
            if command and shlex.split(command)[0] == program:
                found.append(command)
    return list(dict.fromkeys(found))


def paths(page: Path) -> Iterator[str]:
    text = page.read_text()
    yield from (str((page.parent / link).resolve()) for link in LINK.findall(text))
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from (path for path in QUOTED.findall(prose) if not ELSEWHERE.search(path))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path):
    rooms = (ROOT, page.parent)
    missing = [p for p in paths(page) if not any((room / p).exists() for room in rooms)]
    assert not missing, f"{page.name}: {missing}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory with a checkpoint under the names that documents use."""
    folder = tmp_path_factory.mktemp("documents")
    for name in (MODEL, "checkpoint", "Qwen/Qwen3-0.6B"):  # the last stands for a model of the Hub
        (folder / name).mkdir(parents=True)
        tiny_llama(folder / name)
    return folder


def test_lmcast_commands(place: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(launch_plan, "cubin", stand_in)  # nothing is compiled in this process
    assert len(commands("lmcast")) >= 6
    for command in commands("lmcast"):
        # The tiny model holds 128 tokens; its stand-in is asked for no more.
        words = shlex.split(command.replace("--context 4096", "--context 128"))
        words += ["--prompt-tokens", "16", "--runs", "1"] if words[1] == "bench" else []
        monkeypatch.setattr(sys, "argv", words)
        main()  # a failure would be a SystemExit
        assert capsys.readouterr().out.strip(), command


def test_python_example(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    (code,) = [body for kind, body in blocks(ROOT / "README.md") if kind == "python"]
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets(command: str):
    """The targets exist: this suite is what `make test` runs, test_samples what demo does."""
    words = shlex.split(command)
    done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", commands("pip"))
def test_pip_installs(command: str):
    """The requirements and the constraints agree; nothing is changed."""
    words = [sys.executable, "-m", *shlex.split(command), "--dry-run"]
    if "plugins" not in command:  # what those are built with is only where they are built
        words.append("--no-build-isolation")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
