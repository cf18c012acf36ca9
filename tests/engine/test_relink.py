"""`lmcast verify --relink`: files that were written again with the bytes that they had."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.engine.manifest import read_manifest, verify, write_manifest
from lmcast.exporter.engine.names import ENGINE_JSON, SIGNATURE

HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
FILES = {"engine.onnx": b"graph", "plans/b": b"native"}


def write_source(path: Path, values: bytes = bytes(8)) -> None:
    path.write_bytes(len(HEADER).to_bytes(8, "little") + HEADER + values)


def make(folder: Path, hashes: bool = True) -> Path:
    """Write an engine that is linked to two files."""
    engine, linked = folder / "engine", []
    for name, data in FILES.items():
        (engine / name).parent.mkdir(parents=True, exist_ok=True)
        (engine / name).write_bytes(data)
    for name in ("one", "two"):
        path = folder / f"{name}.safetensors"
        write_source(path)
        now = SourceFile.of(path)
        linked.append(
            {
                "path": str(path),
                "size": now.size,
                "mtime_ns": now.mtime_ns,
                "header_sha256": now.header_sha256,
            }
        )
        if hashes:
            linked[-1]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_manifest(engine, {"architecture": "llama", "linked": linked})
    return engine


def touch(folder: Path) -> None:
    os.utime(folder / "one.safetensors", ns=(0, 5))


def other_bytes(folder: Path) -> None:
    """Of the same size, with the same header."""
    write_source(folder / "two.safetensors", b"\1" * 8)
    touch(folder)


def damaged(folder: Path) -> None:
    touch(folder)
    (folder / "engine/engine.onnx").write_bytes(b"other")


DIFFERENCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bytes": (other_bytes, "two.safetensors: sha256 differs: recorded [0-9a-f]{64}, found"),
    "size": (lambda d: os.truncate(d / "one.safetensors", 9), "one.safetensors: changed: size was"),
    "moved": (lambda d: (d / "one.safetensors").unlink(), "one.safetensors: moved: "),
    "of the engine": (damaged, "engine.onnx: sha256 differs"),
}


def test_equal_bytes_are_recorded(tmp_path: Path, lmcast):
    engine = make(tmp_path)
    before = read_manifest(engine).fields["linked"]
    (engine / SIGNATURE).write_bytes(b"of other bytes")
    touch(tmp_path)
    (problem,) = verify(engine)
    assert f"`lmcast verify --relink {engine}`" in problem.message
    status, out, error = lmcast("verify", engine, "--relink")
    assert (status, out) == (0, "every file is as it was written\n")
    assert f"warning: {engine} is not signed now: its files are new, sign again\n" in error
    assert verify(engine) == []
    linked = read_manifest(engine).fields["linked"]
    assert linked == [{**before[0], "mtime_ns": 5}, before[1]]
    files = {str(p.relative_to(engine)) for p in engine.rglob("*") if p.is_file()}
    assert files == {ENGINE_JSON, *FILES}
    assert {name: (engine / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize("name", DIFFERENCES)
def test_anything_else_is_said(name: str, tmp_path: Path, lmcast):
    change, message = DIFFERENCES[name]
    engine = make(tmp_path)
    change(tmp_path)
    before = (engine / ENGINE_JSON).read_bytes()
    status, out, _ = lmcast("verify", engine, "--relink", "--json")
    (problem,) = json.loads(out)["problems"]
    assert status == 1
    assert re.search(message, f"{problem['path']}: {problem['message']}")
    assert (engine / ENGINE_JSON).read_bytes() == before


def test_bytes_of_another_time_need_a_hash(tmp_path: Path, lmcast):
    engine = make(tmp_path, hashes=False)
    assert lmcast("verify", engine, "--relink")[0] == 0
    touch(tmp_path)
    status, out, _ = lmcast("verify", engine, "--relink")
    assert status == 1
    assert "one.safetensors: changed: it was written again, and no hash" in out
    assert out.endswith("1 problem\n")


def test_changed_bytes_of_the_same_time_are_found_without_it_too(tmp_path: Path):
    engine, file = make(tmp_path), tmp_path / "one.safetensors"
    before = file.stat()
    write_source(file, b"\1" * 8)
    os.utime(file, ns=(0, before.st_mtime_ns))
    assert verify(engine, quick=True) == []
    (problem,) = verify(engine)
    assert (problem.path, problem.message[:16]) == (str(file), "sha256 differs: ")


def test_where_nothing_changed_nothing_is_written(tmp_path: Path, lmcast):
    engine = make(tmp_path)
    (engine / SIGNATURE).write_bytes(b"of these bytes")
    before = os.stat(engine / ENGINE_JSON)
    assert lmcast("verify", engine, "--relink")[0] == 0
    assert os.stat(engine / ENGINE_JSON) == before
    assert (engine / SIGNATURE).exists()


def test_wrong_requests(tmp_path: Path, lmcast):
    engine = make(tmp_path)
    status, _, error = lmcast("verify", engine, "--relink", "--key", "PUBLIC.pem")
    assert (status, "check the signature first" in error) == (2, True)
    write_manifest(engine, {"architecture": "llama", "linked": []})
    status, _, error = lmcast("verify", engine, "--relink")
    assert (status, error) == (2, f"error: {engine}: is not linked; its weights are inside\n")
