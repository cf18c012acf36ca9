"""Every command of README.md runs: on a tiny model here, on a real one in test_samples."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.llama import tiny_llama

from lmcast.exporter.cli import main

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"  # stands for a directory here: the commands are the same


def lines(language: str) -> list[str]:
    """Return the commands of all blocks of a language, without comments."""
    text = "\n".join(body for kind, body in BLOCKS if kind == language)
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]


COMMANDS = list(dict.fromkeys(lines("sh")))


def of(program: str) -> list[str]:
    return [command for command in COMMANDS if shlex.split(command)[0] == program]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory with a checkpoint under the names that README.md uses."""
    folder = tmp_path_factory.mktemp("readme")
    for name in (MODEL, "checkpoint"):
        (folder / name).mkdir()
        tiny_llama(folder / name)
    return folder


def test_only_known_programs():
    assert {shlex.split(command)[0] for command in COMMANDS} == {"make", "pip", "lmcast"}


def test_lmcast_commands(place: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(place)
    assert len(of("lmcast")) >= 6
    for command in of("lmcast"):
        # The tiny model holds 128 tokens; its stand-in is asked for no more.
        words = shlex.split(command.replace("--context 4096", "--context 128"))
        words += ["--prompt-tokens", "16"] if words[1] == "bench" else []
        monkeypatch.setattr(sys, "argv", words)
        main()  # a failure would be a SystemExit
        assert capsys.readouterr().out.strip(), command


def test_python_example(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    (code,) = [body for kind, body in BLOCKS if kind == "python"]
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("command", of("make"))
def test_make_targets(command: str):
    """The targets exist: this suite is what `make test` runs, test_samples what demo does."""
    words = shlex.split(command)
    done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", of("pip"))
def test_pip_installs(command: str):
    """The requirements and the constraints agree; nothing is changed."""
    words = [sys.executable, "-m", *shlex.split(command), "--dry-run"]
    if "plugins" not in command:  # what those are built with is only where they are built
        words.append("--no-build-isolation")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
