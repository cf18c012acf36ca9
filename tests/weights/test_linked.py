"""Weights linked to the checkpoint, moved into the engine later, or copied because they must be."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny.llama import (
    EMBED,
    GATE,
    HEAD,
    Q0,
    WEIGHTS,
    poke,
    set_tensor,
    shapes,
    shards,
    tensors,
    tiny_llama,
)
from tiny.llama import config as set_config

from lmcast.exporter import Engine, export, load
from lmcast.exporter.calibrate.calibrate import calibrate
from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.exporter.cli import main
from lmcast.exporter.engine.manifest import EngineError, verify
from lmcast.exporter.pack import pack
from lmcast.exporter.progress import Progress, Step
from lmcast.exporter.weights.place import WeightsError
from lmcast.graphs import WeightError, define
from lmcast.graphs import load as load_eager

IDS = np.arange(2 * 11).reshape(2, 11)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A checkpoint with an engine linked to it, to be left as they are, and logits."""
    folder = tmp_path_factory.mktemp("made")
    tiny_llama(folder / "checkpoint")
    engine = cast(folder / "checkpoint", folder / "engine")
    return folder, engine.logits(IDS)


def cast(checkpoint: Path, engine: Path, **options) -> Engine:
    export(checkpoint, engine, parity=False, **options)
    return load(engine, threads=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, monkeypatch, *arguments: object) -> str:
    """Run a command that must exit with 2; return its one line."""
    monkeypatch.setattr(sys, "argv", ["lmcast", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


# Linking


def test_float32_is_linked_by_default_and_nothing_is_written(made):
    folder, _ = made
    engine = load(folder / "engine")
    assert engine.linked
    assert not (folder / "engine" / "weights").exists()
    assert engine.summary().linked == (str(folder / "checkpoint" / WEIGHTS),)
    assert "keep it in place" in engine.summary().text()
    graph = (folder / "engine" / "engine.onnx").read_bytes()
    for name, value in load_file(folder / "checkpoint" / WEIGHTS).items():
        assert value.numpy().tobytes() not in graph, name


def test_linked_engine_can_be_moved(made, tmp_path):
    folder, logits = made
    shutil.copytree(folder / "engine", tmp_path / "elsewhere")
    np.testing.assert_array_equal(load(tmp_path / "elsewhere", 1).logits(IDS), logits)


def moved(file: Path) -> None:
    file.parent.rename(file.parent.parent / "elsewhere")


def append(file: Path) -> None:
    with file.open("ab") as out:
        out.write(b"more")


def header_changed(file: Path) -> None:
    """Rename a tensor in place: same size, same time."""
    before, data = file.stat(), file.read_bytes()
    file.write_bytes(data.replace(b"up_proj", b"op_proj", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (moved, "moved: "),
    (lambda file: file.unlink(), "moved: "),
    (lambda file: os.truncate(file, file.stat().st_size - 4), "changed: size was"),
    (append, "changed: size was"),
    (os.utime, "changed: modification time"),
    (header_changed, "changed: SHA-256 of its header was"),
]


@pytest.fixture
def restored(made) -> Iterator[tuple[Path, Path]]:
    """The linked engine, and the file it is linked to, which is put back after the test."""
    folder, _ = made
    backup = shutil.copytree(folder / "checkpoint", folder / "backup")  # with its times
    yield folder / "engine", folder / "checkpoint" / WEIGHTS
    for name in ("checkpoint", "elsewhere"):
        shutil.rmtree(folder / name, ignore_errors=True)
    backup.rename(folder / "checkpoint")


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_source_that_moved_or_changed(restored, tmp_path, capsys, monkeypatch, change, message):
    engine, file = restored
    before = contents(engine)
    change(file)
    for command in (
        ("generate", engine, "1 2 3", "--ids"),
        ("pack", engine),
        ("pack", engine, "-o", tmp_path / "packed"),
    ):
        error = refused(capsys, monkeypatch, *command)
        assert f"{file}: {message}" in error
    (problem,) = verify(engine)
    assert problem.path == str(file)
    assert problem.message.startswith(message)
    assert contents(engine) == before
    assert list(tmp_path.iterdir()) == []


def test_relinked(restored, tmp_path, lmcast):
    """The export records a hash of all bytes, by which a file that was only touched is known."""
    engine, file = restored
    before = load(engine, 1).logits(IDS)
    copy = shutil.copytree(engine, tmp_path / "engine")
    os.utime(file)
    assert lmcast("verify", copy)[0] == 1
    assert lmcast("verify", copy, "--relink")[0] == 0
    np.testing.assert_array_equal(load(copy, 1).logits(IDS), before)


def test_source_that_was_put_back(made):
    """Runs after the changes: the engine is as good as before."""
    folder, logits = made
    np.testing.assert_array_equal(load(folder / "engine", 1).logits(IDS), logits)


REFUSED_LINKS = [
    (set_tensor(Q0, lambda t: t[Q0].bfloat16()), f"tensor {Q0} is stored as bfloat16.*copy"),
    (tensors(lambda t: t.update({n: v.half() for n, v in t.items()})), "stored as float16"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED_LINKS)
def test_link_is_refused_where_bytes_differ(checkpoint, tmp_path, build, message):
    build(checkpoint)
    with pytest.raises(WeightsError, match=message):
        cast(checkpoint, tmp_path / "engine", weights="link")
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("weights", ["link", "copy"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(checkpoint, tmp_path, weights, value):
    poke(GATE, 700, value)(checkpoint)
    with pytest.raises(CheckpointError, match=rf"{GATE}' holds {value} at flat index 700"):
        cast(checkpoint, tmp_path / "engine", weights=weights)
    assert os.listdir(tmp_path) == ["checkpoint"]


# Packing


def test_packed_engine_stands_alone(checkpoint, tmp_path):
    """The same logits and, byte for byte, the engine that --weights copy writes."""
    logits = cast(checkpoint, tmp_path / "engine").logits(IDS)
    assert not cast(checkpoint, tmp_path / "copied", weights="copy").linked
    pack(tmp_path / "engine", tmp_path / "packed")
    pack(tmp_path / "engine")
    shutil.rmtree(checkpoint)
    copies = []
    for place in ("engine", "packed", "copied"):
        (tmp_path / place).rename(tmp_path / f"{place}, moved")
        engine = load(tmp_path / f"{place}, moved", threads=1)
        assert not engine.linked
        assert "self-contained" in engine.summary().text()
        assert verify(engine.directory) == []
        np.testing.assert_array_equal(engine.logits(IDS), logits)
        copies.append(contents(engine.directory))
    assert copies[0] == copies[1] == copies[2]
    assert sorted(os.listdir(tmp_path)) == ["copied, moved", "engine, moved", "packed, moved"]
    with pytest.raises(EngineError, match="is not linked"):
        pack(tmp_path / "packed, moved")


def test_source_that_changes_while_it_is_packed(restored, tmp_path):
    engine, file = restored

    class Meanwhile(Progress):
        @contextmanager
        def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
            yield lambda done: os.utime(file)

    with pytest.raises(EngineError, match="changed: modification time"):
        pack(engine, tmp_path / "packed", Meanwhile())
    assert list(tmp_path.iterdir()) == []


def test_a_source_of_other_bytes_is_not_packed(restored, tmp_path):
    """As a disk changes them: size, header and time are the same."""
    engine, file = restored
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    load(engine)
    with pytest.raises(EngineError, match="sha256 differs"):
        pack(engine, tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


# Kinds of checkpoints


def tie(folder: Path) -> None:
    set_config(tie_word_embeddings=True)(folder)


def equal_head(folder: Path) -> None:
    tie(folder)
    set_tensor(HEAD, lambda t: t[EMBED].clone())(folder)


def test_tied_head(checkpoint, tmp_path):
    """Stored again with equal values, or not stored: the same logits; with others: refused."""
    tie(checkpoint)
    message = f"tensor {HEAD} differs from {EMBED}.* for the head give --untie"
    with pytest.raises(WeightsError, match=message):
        cast(checkpoint, tmp_path / "engine")
    with pytest.raises(WeightsError, match=message):
        calibrate(checkpoint, tmp_path / "recipe", recipe="int8", tokens=64, chunk=32)
    with pytest.raises(WeightError, match=message):
        load_eager(checkpoint)
    equal_head(checkpoint)
    stored = cast(checkpoint, tmp_path / "stored").logits(IDS)
    tensors(lambda t: t.pop(HEAD))(checkpoint)
    np.testing.assert_array_equal(cast(checkpoint, tmp_path / "absent").logits(IDS), stored)


def test_untied_head(checkpoint, tmp_path, lmcast):
    """Where it differs from what config.json ties it to, as Hugging Face's class has it; parity
    and quality know by engine.json."""
    from transformers import AutoModelForCausalLM

    tie(checkpoint)
    engine = tmp_path / "engine"
    status, _, error = lmcast("export", checkpoint, "-o", engine, "--untie", "--weights", "link")
    assert status == 0, error
    assert load(engine).manifest.fields["untie"] is True
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(checkpoint)(torch.from_numpy(IDS)).logits
    ours = load_eager(checkpoint, untie=True)(torch.from_numpy(IDS))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # fp32, sums in another order
    np.testing.assert_allclose(load(engine, 1).logits(IDS), theirs.numpy(), rtol=0, atol=1e-5)
    assert lmcast("parity", engine, "--against", checkpoint, "--tokens", 8)[0] == 0
    _, out, _ = lmcast("inspect", checkpoint, "--untie", "--json")
    assert json.loads(out)["parameters"] == sum(map(math.prod, shapes().values()))
    status, _, error = lmcast("inspect", engine, "--untie")
    assert (status, "are for checkpoints" in error) == (2, True)
    set_config(tie_word_embeddings=False)(checkpoint)
    status, _, error = lmcast("export", checkpoint, "-o", tmp_path / "other", "--untie")
    assert (status, "leave out --untie" in error) == (2, True)


def cached_shards(folder: Path) -> Path:
    """Shards as in the cache of Hugging Face: links from a snapshot to blobs named by hash."""
    shards(("parts/model-1.safetensors", "parts/model-2.safetensors"))(folder)
    snapshot, blobs = (folder.parent / "models--lab--tiny" / n for n in ("snapshots/0a", "blobs"))
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / f"{number:064x}")
        link.symlink_to(os.path.relpath(blobs / f"{number:064x}", link.parent))
    shutil.rmtree(folder)
    return snapshot


def odd_path(folder: Path) -> Path:
    return folder.rename(folder.parent / "模型 ü 'quoted' \"$HOME\" %s #?&")


@pytest.mark.parametrize("weights", ["link", "copy"])
@pytest.mark.parametrize("build", [cached_shards, odd_path])
def test_layouts(made, checkpoint, tmp_path, build, weights):
    _, logits = made
    source = build(checkpoint)
    engine = cast(source, tmp_path / "an engine ü 模" / "e", weights=weights)
    np.testing.assert_array_equal(engine.logits(IDS), logits)
    assert engine.linked == (weights == "link")
    files = {s.file for s in open_checkpoint(source).tensors.values()}
    assert set(engine.summary().linked) == ({str(f) for f in files} if engine.linked else set())
    assert verify(engine.directory) == []


def halve(*names: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """Store those tensors in fp16, all others in bf16."""

    def change(values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            values[name] = value.half() if name in names else value.bfloat16()

    return change


HALVES = [
    ("float16", lambda t: t.update({n: v.half() for n, v in t.items()})),
    ("float16 and bfloat16", halve(EMBED, Q0)),
    ("bfloat16", halve()),
    ("one in float16, the others in float32", lambda t: t.update({Q0: t[Q0].half()})),
]


@pytest.mark.parametrize("change", [c for _, c in HALVES], ids=[n for n, _ in HALVES])
def test_smaller_formats_are_copied_and_computed_in_float32(checkpoint, tmp_path, change):
    tensors(change)(checkpoint)
    source = open_checkpoint(checkpoint)
    assert {s.dtype for s in source.tensors.values()} - {torch.float32}
    engine = cast(checkpoint, tmp_path / "engine")
    assert not engine.linked
    assert engine.manifest.fields["dtype"] == "float32"
    (file,) = (engine.directory / "weights").iterdir()
    written = load_file(file)
    shapes = {name: stored.shape for name, stored in source.tensors.items()}
    sources = define(source.config, shapes).binding.sources
    assert written.keys() == sources.keys()
    for name, value in written.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, source.read(sources[name].tensor).float())
    # And the graph reads them where they lie: the same values stored as fp32, and linked.
    tensors(lambda t: t.update({n: v.float() for n, v in t.items()}))(checkpoint)
    upcast = cast(checkpoint, tmp_path / "upcast")
    assert upcast.linked
    np.testing.assert_array_equal(engine.logits(IDS), upcast.logits(IDS))


def test_overflow_of_float16_is_refused(checkpoint, tmp_path):
    poke(GATE, 3, 1e5)(checkpoint)
    with pytest.raises(CheckpointError, match=f"tensor {GATE} has values above what float16"):
        cast(checkpoint, tmp_path / "engine", target="onnx", dtype="float16")
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_linked_engine_runs_without_torch(tmp_path: Path):
    """Deployment loads no PyTorch: it would cost a second and hundreds of megabytes."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    tiny_llama(checkpoint)
    export(checkpoint, tmp_path / "engine", parity=False)
    code = "import sys; from lmcast.exporter import load; load(sys.argv[1]).logits([[1]])"
    code += "; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "engine")])
    assert done.returncode == 0
