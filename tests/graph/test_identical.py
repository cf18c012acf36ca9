"""Exports of one checkpoint are equal byte for byte, whatever surrounds them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import case, make
from tiny.llama import config, tiny_llama

from lmcast.exporter.engine.names import MODEL

# Everything that another machine or another day may do differently, against the first.
SURROUNDINGS = [
    {"PYTHONHASHSEED": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
    {"PYTHONHASHSEED": "4242", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "4"},
    {"PYTHONHASHSEED": "random", "LANG": "tr_TR.UTF-8", "MKL_NUM_THREADS": "2", "TZ": "Asia/Tokyo"},
]
# A process runs several commands: to import torch takes longer than they do.
PROGRAM = """
import json, sys
from lmcast.exporter.cli import main
for sys.argv[1:] in json.loads(sys.argv[1]):
    main()
"""


def make_llama(folder: Path) -> None:
    tiny_llama(folder)
    config(rope_scaling={"rope_type": "linear", "factor": 2.0})(folder)


def make_gemma2(folder: Path) -> None:
    """Windows, softcaps and a tie; written by Hugging Face, without a tokenizer."""
    make(case("gemma2/plain"), folder)


MADE: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "llama": (make_llama, ("--weights", "link")),
    "gemma2": (make_gemma2, ("--weights", "copy", "--no-tokenizer", "--context", "64")),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def start(checkpoints: dict[str, Path], place: Path, number: int) -> subprocess.Popen[str]:
    """Export all in another directory too, to another name, and every other time in another order:
    what was exported before is no matter either."""
    folder = place / f"working directory {number}"
    folder.mkdir(parents=True)
    commands = [
        ["export", os.path.relpath(checkpoint, folder),
         "-o", os.path.relpath(place / f"{name} {number}", folder), *MADE[name][1]]
        for name, checkpoint in checkpoints.items()
    ]  # fmt: skip
    given = json.dumps(commands[:: -1 if number % 2 else 1])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "OMP_"))}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, given],
        cwd=folder, env=kept | SURROUNDINGS[number], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, bytes]]]:
    """Return the files of each checkpoint's engines, one for each surrounding."""
    folder = tmp_path_factory.mktemp("identical")
    checkpoints = {name: folder / name for name in MADE}
    for name, checkpoint in checkpoints.items():
        MADE[name][0](checkpoint)
    places = [folder / f"place {number}" for number in range(len(SURROUNDINGS))]
    running = [start(checkpoints, place, number) for number, place in enumerate(places)]
    for process in running:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    return {
        name: [contents(place / f"{name} {n}") for n, place in enumerate(places)] for name in MADE
    }


@pytest.mark.parametrize("name", MADE)
def test_exports_are_identical(engines: dict[str, list[dict[str, bytes]]], name: str):
    first, *others = engines[name]
    assert {"engine.json", MODEL, "parity.json"} <= first.keys()
    assert any(file.startswith("weights/") for file in first) == ("copy" in MADE[name][1])
    for other in others:
        assert [n for n in first.keys() | other.keys() if first.get(n) != other.get(n)] == []
