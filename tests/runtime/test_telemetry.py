"""Nothing that lmcast imports calls home, or leaves anything there.

ONNX Runtime 1.31 on Linux writes below ~/.cache when it is imported, and looks a host up some
seconds later. So each process here stays until one with telemetry has done both.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import MODEL, Hub, serving
from tiny.llama import tiny_llama

from lmcast.exporter import export

PATIENCE = 60  # seconds; ONNX Runtime looks its host up within 10 on a quiet machine
COMMAND = "from lmcast.exporter.cli import main; main()"
IMPORT = "from lmcast.exporter.backends.ort import ort"
STAYS = "\nprint('ready', flush=True); import sys; sys.stdin.read()"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"),
    reason="lookups are seen by a library that is preloaded, and compiled for that",
)


class Watched:
    """A process with an empty home and no names of hosts; what it does there is seen."""

    def __init__(self, folder: Path, library: Path, code: str, *words: object, **extra: str):
        self.home, self.lookups = folder / "home", folder / "lookups"
        self.home.mkdir(parents=True)
        # Nothing else is inherited: cache directories, and signs of a CI that change behaviour.
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        places = {"HOME": self.home, "LOOKUPS": self.lookups, "LD_PRELOAD": library}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code + STAYS, *map(str, words)],
            env=kept | {name: str(path) for name, path in places.items()} | extra,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until_ready(self) -> None:
        """Return when the work is done; the process stays."""
        assert self.process.stdout is not None and self.process.stderr is not None
        lines = iter(self.process.stdout.readline, "")
        assert any(line == "ready\n" for line in lines), self.process.stderr.read()

    def end(self) -> None:
        _, error = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, error

    def files(self) -> list[str]:
        return sorted(p.name for p in self.home.rglob("*") if p.is_file())

    def looked_up(self) -> set[str]:
        return set(self.lookups.read_text().split()) if self.lookups.exists() else set()


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Watched]:
    """Return a function that starts Python code with arguments under watch."""
    library = tmp_path_factory.mktemp("library") / "lookups.so"
    source = Path(__file__).with_name("lookups.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return lambda code, *words, **extra: Watched(
        tmp_path_factory.mktemp("watched"), library, code, *words, **extra
    )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    tiny_llama(tmp_path / "checkpoint")
    with serving(tmp_path / "checkpoint") as served:
        yield served


def test_nothing_calls_home(watch: Callable[..., Watched], hub: Hub, tmp_path: Path):
    export(tmp_path / "checkpoint", tmp_path / "engine", parity=False)
    of_hub = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")}
    quiet = [
        watch(COMMAND, "export", MODEL, "-o", tmp_path / "other", **of_hub),
        watch(COMMAND, "generate", tmp_path / "engine", "hello", "-n", 4),
    ]
    for process in quiet:
        process.until_ready()
    # A user's own choice is left as it is; here it shows what would be seen of the others.
    loud = watch(IMPORT, ORT_DISABLE_TELEMETRY="0")
    end = time.monotonic() + PATIENCE
    while not loud.looked_up() and time.monotonic() < end:
        time.sleep(0.1)
    for process in (loud, *quiet):
        process.end()
    assert "deviceid" in loud.files()
    assert loud.looked_up() == {"mobile.events.data.microsoft.com"}
    for process in quiet:
        assert process.files() == []
        assert process.looked_up() == set()
    assert (tmp_path / "other/engine.onnx").exists()
    # Of the Hub, nothing but the model is asked for, and no more is told than who asks.
    assert {path for path, _ in hub.asked if MODEL not in path} == set()
    told = {word.partition("/")[0] for _, agent in hub.asked for word in agent.split("; ")}
    assert told == {"lmcast", "hf_hub", "python"}
