"""`--verify`: every byte counts before a run; without it those of small files, sizes, and times of
linked files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny.llama import tiny_llama

from lmcast.exporter import export, load
from lmcast.exporter.engine import manifest
from lmcast.exporter.engine.manifest import EngineError, read_manifest, write_manifest

IDS = [[5, 6, 7]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    tiny_llama(folder / "checkpoint")
    export(folder / "checkpoint", folder / "copied", weights="copy", parity=False)
    return folder


def flip(path: Path) -> None:
    """Change a byte far behind any header."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, 5))


def flip_weights(folder: Path) -> None:
    (path,) = (folder / "copied/weights").iterdir()
    flip(path)


def forget(folder: Path) -> None:
    """Write the engine again as one of a checkpoint that was too large to be read."""
    fields = dict(read_manifest(folder / "linked").fields)
    linked = [{k: v for k, v in file.items() if k != "sha256"} for file in fields["linked"]]
    write_manifest(folder / "linked", fields | {"linked": linked})


def touch(folder: Path) -> None:
    os.utime(folder / "checkpoint/model.safetensors", ns=(0, 5))


# engine, what happens -> parts of the refusals: of a plain load, and of one that verifies
CHANGES: dict[str, tuple[str, Callable[[Path], object], str | None, str | None]] = {
    "nothing": ("copied", lambda folder: None, None, None),
    "nothing, linked": ("linked", lambda folder: None, None, None),
    "a weight": ("copied", flip_weights, None, "sha256 differs"),
    "the tokenizer": (
        "copied", lambda folder: flip(folder / "copied/tokenizer.json"), "sha256 differs",
        "sha256 differs",
    ),
    "the graph": (
        "copied", lambda folder: flip(folder / "copied/model.onnx"), "sha256 differs",
        "sha256 differs",
    ),
    "a file more": (
        "copied", lambda folder: (folder / "copied/more").touch(), None, "not part of the engine",
    ),
    "a linked file, written again": ("linked", touch, "`lmcast generate --verify` runs it", None),
    "a linked weight": (
        "linked", lambda folder: flip(folder / "checkpoint/model.safetensors"),
        "modification time", "sha256 differs",
    ),
    "a linked file without a hash": (
        "linked", lambda folder: (forget(folder), touch(folder)),
        "modification time", "modification time",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_run(name: str, made: Path, tmp_path: Path, lmcast, monkeypatch):
    monkeypatch.setattr(manifest, "SMALL", 64 << 10)  # less than the weights, which are 85 KB
    which, change, *refusals = CHANGES[name]
    for part in ("checkpoint", "copied"):
        shutil.copytree(made / part, tmp_path / part)
    export(tmp_path / "checkpoint", tmp_path / "linked", weights="link", parity=False)
    expected = load(tmp_path / "linked").logits(IDS)
    change(tmp_path)
    for verify, message in zip((False, True), refusals, strict=True):
        if message is None:
            logits = load(tmp_path / which, verify=verify).logits(IDS)
            assert np.array_equal(logits, expected) == (verify or name != "a weight")
        else:
            with pytest.raises(EngineError, match=message):
                load(tmp_path / which, verify=verify)
    options = ["--ids", "-n", 1, "--verify"]
    status, _, error = lmcast("generate", tmp_path / which, "5 6", *options)
    assert status == (0 if refusals[1] is None else 2)
    assert (refusals[1] or "") in error
