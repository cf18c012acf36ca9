"""`--verify`: every byte counts before a run; without it those of small files, sizes, and times of
linked files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.llama import tiny_llama

from lmcast.exporter import export, load
from lmcast.exporter.engine import manifest
from lmcast.exporter.engine.manifest import EngineError, read_manifest, write_manifest
from lmcast.exporter.engine.names import TEMPLATE, TOKENIZER
from lmcast.exporter.pack import pack
from lmcast.plugins.errors import InputError

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
        "copied", lambda folder: flip(folder / "copied/engine.onnx"), "sha256 differs",
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


def states(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], object]:
    """Change the states of the contract."""

    def edit(engine: Path) -> None:
        fields = dict(read_manifest(engine).fields)
        change(fields["graph"]["states"])
        write_manifest(engine, fields)

    return edit


def total_length(engine: Path) -> None:
    fields = dict(read_manifest(engine).fields)
    write_manifest(engine, {**fields, "graph": {**fields["graph"], "total_length": True}})


def vocabulary(engine: Path) -> None:
    write_manifest(engine, {**read_manifest(engine).fields, "vocab_size": 98})


def listed(name: str, data: bytes, size: int | None = None) -> Callable[[Path], object]:
    """Put a file in the engine and list it; size: to fill it up to with zeros."""

    def edit(engine: Path) -> None:
        (engine / name).write_bytes(data)
        os.truncate(engine / name, len(data) if size is None else size)
        write_manifest(engine, read_manifest(engine).fields)

    return edit


LARGE = (256 << 20) + 1
KEY, VALUE = "layers.0.key", "layers.0.value"
# What is sealed again, as nothing but an attacker does -> what the refusal says.
SEALED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a wider state": (
        states(lambda held: held[0].update(shape=["B", 2, "C", 16])),
        rf"{KEY}.past is float32 \['B', 2, 'C', 8\] there, and float32 \['B', 2, 'C', 16\] in",
    ),
    "an axis less": (states(lambda held: held[0]["shape"].pop()), f"{KEY}.past is float32"),
    "a fixed capacity": (states(lambda held: held[1]["shape"].__setitem__(2, 9)), VALUE),
    "a state of codes": (
        states(lambda held: held[0].update(dtype="float8_e4m3fn")), "and float8_e4m3fn",
    ),
    "no state": (states(lambda held: held.pop(0)), f"{KEY}.past is .* there, and absent in"),
    "a state more": (
        states(lambda held: held.append({**held[0], "name": "x"})), "x.past is absent there",
    ),
    "an input more": (total_length, "total_length is absent there, and int32"),
    "more ids": (vocabulary, r"logits is float32 \['B', 'R', 97\] there, and .* 98\] in"),
    "a template": (listed(TEMPLATE, b"\xff"), "chat_template.jinja: is not UTF-8"),
    "a large template": (listed(TEMPLATE, b"", LARGE), "is larger than 256 MiB"),
    "a large tokenizer": (listed(TOKENIZER, b"{}", LARGE), "is larger than 256 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", SEALED)
def test_what_does_not_fit_together_is_refused(name: str, made: Path, tmp_path: Path):
    """Hashes do not tell: engine.json is no less sealed than before."""
    change, message = SEALED[name]
    shutil.copytree(made / "copied", tmp_path / "engine")
    change(tmp_path / "engine")
    engine = load(tmp_path / "engine", threads=1)
    with pytest.raises(InputError, match=message) as refusal:
        _ = engine.text, engine.logits(IDS)
    assert "\n" not in str(refusal.value)


def test_pack_does_not_seal_what_it_has_not_checked(made: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(manifest, "SMALL", 0)  # as if its plan were too large to be hashed at load
    export(made / "checkpoint", tmp_path / "linked", weights="link", parity=False)
    listed("a.plan", b"a plan")(tmp_path / "linked")
    flip(tmp_path / "linked/a.plan")
    pack(tmp_path / "linked", tmp_path / "packed")
    assert [problem.path for problem in manifest.verify(tmp_path / "packed")] == ["a.plan"]
