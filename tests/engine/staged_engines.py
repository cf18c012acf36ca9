"""Small engines that say which writer made them, and the processes and locks of the tests."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lmcast.exporter.engine import lock
from lmcast.exporter.engine.manifest import read_manifest, verify, write_manifest
from lmcast.exporter.engine.staging import staged

# What an engine.json has to say, but for its files.
DESCRIPTION = {
    "architecture": "llama", "config": {}, "vocab_size": 8, "parameters": 8, "active_parameters": 8,
    "layers": 1, "weights": {}, "dtype": "float32", "target": "cpu", "source": [], "linked": [],
    "eos_ids": [], "special_tokens": {}, "inert": [], "context": 8,
    "graph": {
        "file": "engine.onnx", "weights": "copy", "optimized": True, "split_experts": False,
        "folded": False, "append": "batch", "inputs": [], "outputs": [], "states": [],
    },
}  # fmt: skip

# What the processes of these tests run; a generation is written into every file of an engine.
WRITER = """
import itertools, os, signal, sys, time
from pathlib import Path
from lmcast.exporter.engine import staging
from lmcast.exporter.engine.manifest import EngineError, verify, write_manifest

def write(destination, generation):
    with staging.staged(destination) as directory:
        (directory / "weights").mkdir()
        for name in ("engine.onnx", "weights/a", "weights/b"):
            (directory / name).write_text(f"{generation}\\n" * 1000)
        write_manifest(directory, {"generation": generation})
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write(destination: Path, generation: int) -> None:
    with staged(destination) as directory:
        (directory / "engine.onnx").write_text(f"{generation}\n" * 1000)
        write_manifest(directory, {"generation": generation})


def generation(destination: Path) -> int:
    """Assert that an engine is whole and of one piece, and say which it is."""
    assert verify(destination) == []
    number = read_manifest(destination).fields["generation"]
    for path in destination.rglob("*"):
        if path.is_file() and path.name != "engine.json":
            assert path.read_text() == f"{number}\n" * 1000
    return number


def fail(destination: Path, error: type[BaseException] | BaseException) -> None:
    """Leave the block by an exception, with a file half-written."""
    with staged(destination) as directory:
        (directory / "weights").mkdir()
        (directory / "weights/a").write_text("half")
        raise error


def write_while(destination: Path, change: Callable[[Path], object]) -> None:
    """Write generation 2; something else happens to the destination meanwhile."""
    with staged(destination) as directory:
        write_manifest(directory, {"generation": 2})
        change(destination)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def put_lock(destination: Path, **changes: object) -> Path:
    """Write the lock that this process would hold, with some fields changed."""
    path = destination.parent / f".{destination.name}.lmcast-lock"
    path.write_text(json.dumps({**asdict(lock._ourselves()), **changes}))
    return path


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid
