"""Two exports of one checkpoint are equal byte for byte, whatever surrounds them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import case, make
from tiny.llama import config, tiny_llama

# Everything that another machine or another day may do differently, against the first.
SURROUNDINGS = [
    {"PYTHONHASHSEED": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
    {"PYTHONHASHSEED": "4242", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "4"},
    {"PYTHONHASHSEED": "random", "LANG": "tr_TR.UTF-8", "MKL_NUM_THREADS": "2", "TZ": "Asia/Tokyo"},
]
PROGRAM = "from lmcast.exporter.cli import main; main()"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def start(checkpoint: Path, engine: Path, number: int, *options: str) -> subprocess.Popen[str]:
    """Export in another directory too, and to another name."""
    folder = engine.parent / f"working directory {number}"
    folder.mkdir(parents=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "OMP_"))}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "export", os.path.relpath(checkpoint, folder),
         "-o", os.path.relpath(engine, folder), *options],
        cwd=folder, env=kept | SURROUNDINGS[number], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def make_llama(folder: Path) -> None:
    tiny_llama(folder)
    config(rope_scaling={"rope_type": "linear", "factor": 2.0})(folder)


def make_gemma2(folder: Path) -> None:
    """Windows, softcaps and a tie; written by Hugging Face, without a tokenizer."""
    make(case("gemma2/plain"), folder)


@pytest.mark.parametrize(
    ("build", "weights", "count", "options"),
    [(make_llama, "link", 3, ()), (make_gemma2, "copy", 2, ("--no-tokenizer", "--context", "64"))],
)
def test_exports_are_identical(tmp_path: Path, build, weights, count, options):
    checkpoint = tmp_path / "checkpoint"
    build(checkpoint)
    engines = [tmp_path / f"place {number}" / f"engine {number}" for number in range(count)]
    running = [
        start(checkpoint, engine, number, "--weights", weights, *options)
        for number, engine in enumerate(engines)
    ]
    for process in running:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    first, *others = map(contents, engines)
    assert {"engine.json", "engine.onnx", "parity.json"} <= first.keys()
    assert any(name.startswith("weights/") for name in first) == (weights == "copy")
    for other in others:
        assert [n for n in first.keys() | other.keys() if first.get(n) != other.get(n)] == []
