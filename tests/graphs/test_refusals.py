"""Every malformed checkpoint through the command: one line, exit status 2, nothing written."""

import re
import sys
import time
from pathlib import Path

import pytest
from files.malformed import MALFORMED, Malformed, tiny_llama
from files.malformed_latents import MALFORMED_LATENTS
from files.malformed_moe import MALFORMED_MOE
from tiny.llama import config

from lmcast.exporter.cli import main

SECONDS = 5  # the promise to the user


def run(*arguments: object) -> int:
    """Run the command line in this process and return its exit status."""
    sys.argv = ["lmcast", *map(str, arguments)]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    """Import torch and build a model once, so that no entry of the table is charged for it."""
    folder = tmp_path_factory.mktemp("warm")
    tiny_llama(folder)
    config(num_hidden_layers=3)(folder)
    assert run("export", folder, "-o", folder / "engine") == 2


@pytest.mark.parametrize(
    "entry", MALFORMED + MALFORMED_MOE + MALFORMED_LATENTS, ids=lambda entry: entry.name
)
def test_malformed_checkpoint(entry: Malformed, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    source, place = tmp_path / "checkpoint", tmp_path / "place"
    source.mkdir()
    place.mkdir()
    tiny_llama(source)
    entry.build(source)
    started = time.perf_counter()
    status = run("export", source, "-o", place / "engine")
    took = time.perf_counter() - started
    said = capsys.readouterr().err.splitlines()
    # On a busy machine a stage may take so long that it is named.
    (message,) = [line for line in said if not line.endswith(" ...")]
    assert status == 2
    assert message.startswith("error: ")
    assert re.search(entry.message, message, re.DOTALL), message
    assert list(place.iterdir()) == []
    assert took < SECONDS


def test_the_table_is_long_enough():
    assert len(MALFORMED) >= 60


def test_a_refused_export_leaves_the_old_engine(tmp_path: Path, capsys):
    source, engine = tmp_path / "checkpoint", tmp_path / "engine"
    source.mkdir()
    tiny_llama(source)
    assert run("export", source, "-o", engine, "--no-parity") == 0
    before = contents(engine)
    (source / "tokenizer.json").unlink()
    assert run("export", source, "-o", engine) == 2
    assert "tokenizer.json" in capsys.readouterr().err
    assert contents(engine) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "engine"]
