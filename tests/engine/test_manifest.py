"""engine.json: deterministic, validated, and no change to an engine escapes verify."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmcast.exporter.engine import manifest
from lmcast.exporter.engine.manifest import (
    FORMAT,
    EngineError,
    read_manifest,
    verify,
    write_manifest,
)
from lmcast.exporter.engine.names import (
    ENGINE_JSON,
    GENERATION,
    MODEL,
    PARITY,
    SIGNATURE,
    TEMPLATE,
    TEMPLATES,
    TOKENIZER,
)
from lmcast.exporter.engine.sealed import Problem

CONTENTS = {
    "engine.onnx": b"graph",
    "weights/a.safetensors": bytes(range(256)) * 3,
    "weights/empty.bin": b"",
    "é 中.txt": b"x",
}
FIELDS = {"architecture": "llama", "number": 0.1, "states": (1, 2), "by_layer": {10: "a", 9: "b"}}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    directory = tmp_path / "engine"
    for path, data in CONTENTS.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    write_manifest(directory, FIELDS)
    return directory


def rewrite(directory: Path, **changes: object) -> None:
    """Write engine.json with other values and a digest that fits them."""
    body = json.loads((directory / ENGINE_JSON).read_bytes())
    body.update(changes)
    del body["self"]
    text = json.dumps(body, sort_keys=True, indent=1) + "\n"
    body["self"] = hashlib.sha256(text.encode()).hexdigest()
    text = json.dumps(body, sort_keys=True, indent=1) + "\n"
    (directory / ENGINE_JSON).write_text(text)


def test_round_trip(engine):
    found = read_manifest(engine)
    assert {entry.path: entry.size for entry in found.files} == {
        path: len(data) for path, data in CONTENTS.items()
    }
    for entry in found.files:
        assert entry.sha256 == hashlib.sha256(CONTENTS[entry.path]).hexdigest()
    assert [entry.path for entry in found.files] == sorted(CONTENTS)
    assert found.fields["states"] == [1, 2]
    assert found.fields["by_layer"] == {"9": "b", "10": "a"}
    assert verify(engine) == []
    assert verify(engine, quick=True) == []


def test_equal_content_gives_equal_bytes(engine, tmp_path):
    other = tmp_path / "other"
    for path in reversed(CONTENTS):
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_bytes(CONTENTS[path])
    write_manifest(other, dict(reversed(FIELDS.items())))
    assert (other / ENGINE_JSON).read_bytes() == (engine / ENGINE_JSON).read_bytes()


def test_known_hashes_are_not_computed_again(engine):
    hashed: list[int] = []
    known = {"weights/a.safetensors": "0" * 64}
    write_manifest(engine, FIELDS, known, advance=hashed.append)
    assert sum(hashed) == sum(map(len, CONTENTS.values())) - len(CONTENTS["weights/a.safetensors"])
    recorded = {entry.path: entry.sha256 for entry in read_manifest(engine).files}
    assert recorded["weights/a.safetensors"] == "0" * 64


@pytest.mark.parametrize("name", [*CONTENTS, ENGINE_JSON])
def test_every_flipped_bit_is_found(engine, name):
    path = engine / name
    data = path.read_bytes()
    bits = [(i, 1 << bit) for i in range(len(data)) for bit in (range(8) if i % 16 == 0 else (0,))]
    for place, bit in bits:
        damaged = bytearray(data)
        damaged[place] ^= bit
        path.write_bytes(damaged)
        problems = verify(engine)
        assert [problem.path for problem in problems] == [name], (place, bit)
        if name == ENGINE_JSON:
            with pytest.raises(EngineError, match=r"engine\.json: "):
                read_manifest(engine)
    path.write_bytes(data + b" ")
    assert [problem.path for problem in verify(engine)] == [name]


def fifo(engine: Path) -> None:
    (engine / "engine.onnx").unlink()
    os.mkfifo(engine / "engine.onnx")


def link(engine: Path) -> None:
    (engine / "engine.onnx").rename(engine.parent / "elsewhere")
    (engine / "engine.onnx").symlink_to(engine.parent / "elsewhere")


def linked_folder(engine: Path) -> None:
    (engine / "weights").rename(engine.parent / "moved")
    (engine / "weights").symlink_to(engine.parent / "moved")


PROBLEMS = [
    (lambda e: (e / "engine.onnx").unlink(), ["engine.onnx: missing"], True),
    (
        lambda e: (e / "engine.onnx").write_bytes(b"graphs"),
        ["engine.onnx: size differs: recorded 5 bytes, found 6"],
        True,
    ),
    (lambda e: (e / "engine.onnx").write_bytes(b"Graph"), ["engine.onnx: sha256 differs"], True),
    (lambda e: (e / "weights/new").write_bytes(b""), ["weights/new: not part"], False),
    (lambda e: os.mkfifo(e / "pipe"), ["pipe: is a FIFO"], False),
    (lambda e: (e / SIGNATURE).write_bytes(b""), [], True),
    (lambda e: (e / SIGNATURE).symlink_to("engine.onnx"), ["model.sig: is a symbolic"], False),
    (fifo, ["engine.onnx: is a FIFO; recorded as a regular file"], True),
    (link, ["engine.onnx: is a symbolic link; recorded as a regular file"], True),
    (
        linked_folder,
        [
            "weights: is a symbolic link",
            "weights/a.safetensors: missing",
            "weights/empty.bin: missing",
        ],
        False,
    ),
    (
        lambda e: ((e / "engine.onnx").unlink(), (e / "engine.onnx").mkdir()),
        ["engine.onnx: missing"],
        True,
    ),
]


@pytest.mark.parametrize(("change", "expected", "seen_quickly"), PROBLEMS)
def test_problems(engine, change, expected, seen_quickly):
    change(engine)
    found = [str(problem) for problem in verify(engine)]
    assert len(found) == len(expected)
    for text, start in zip(found, expected, strict=True):
        assert text.startswith(start)
    if seen_quickly:
        assert [str(problem) for problem in verify(engine, quick=True)] == found


def test_quick_reads_no_weights_and_allows_surplus(engine, monkeypatch):
    monkeypatch.setattr(manifest, "SMALL", 4)  # the graph and texts are always read
    weights = engine / "weights/a.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    (engine / ".DS_Store").write_bytes(b"")
    assert verify(engine, quick=True) == []


WHOLE = [
    MODEL, PARITY, TOKENIZER, TEMPLATE, f"{TEMPLATES}/tool_use.jinja", GENERATION,
]  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_the_graph_and_texts_are_hashed_at_any_size(engine, name: str, monkeypatch):
    (engine / name).parent.mkdir(exist_ok=True)
    (engine / name).write_bytes(b"whole")
    write_manifest(engine, FIELDS)
    monkeypatch.setattr(manifest, "SMALL", 4)
    (engine / name).write_bytes(b"Whole")
    assert [problem.path for problem in verify(engine, quick=True)] == [name]


DAMAGED = [
    ({"format": FORMAT + 1}, "newer lmcast.*upgrade"),
    ({"format": FORMAT - 1}, "older lmcast.*export again"),
    ({"format": 0}, "format is 0"),
    ({"format": True}, "format is True"),
    ({"format": "1"}, "format is '1'"),
    ({"lmcast": 1}, "lmcast is 1; accepted: a text"),
    ({"files": {}}, "files is {}; accepted: a list"),
    ({"files": [{"path": "/etc/passwd", "size": 1, "sha256": "0" * 64}]}, "relative path"),
    ({"files": [{"path": "../a", "size": 1, "sha256": "0" * 64}]}, "relative path"),
    ({"files": [{"path": "a//b", "size": 1, "sha256": "0" * 64}]}, "relative path"),
    ({"files": [{"path": "./a", "size": 1, "sha256": "0" * 64}]}, "relative path"),
    ({"files": [{"path": "a\0", "size": 1, "sha256": "0" * 64}]}, "relative path"),
    ({"files": [{"path": "a", "size": -1, "sha256": "0" * 64}]}, "size is -1"),
    ({"files": [{"path": "a", "size": True, "sha256": "0" * 64}]}, "size is True"),
    ({"files": [{"path": "a", "size": 1.0, "sha256": "0" * 64}]}, r"size is 1\.0"),
    ({"files": [{"path": "a", "size": 1, "sha256": "G" * 64}]}, "sha256"),
    ({"files": [{"path": "a", "size": 1}]}, "sha256"),
    ({"files": [{"path": ENGINE_JSON, "size": 1, "sha256": "0" * 64}]}, "cannot be listed"),
    ({"files": [{"path": SIGNATURE, "size": 1, "sha256": "0" * 64}]}, "cannot be listed"),
    ({"files": [{"path": "a", "size": 1, "sha256": "0" * 64}] * 2}, "twice"),
    ({"files": [{"path": p, "size": 1, "sha256": "0" * 64} for p in "ba"]}, "not sorted"),
    ({"linked": {}}, "linked is {}; accepted: a list"),
    ({"linked": [{"path": "/a"}]}, r"linked\[0\]\.size is missing"),
    (
        {"linked": [{"path": "/a", "size": 1, "mtime_ns": 1, "header_sha256": 1}]},
        r"linked\[0\]\.header_sha256 is 1",
    ),
]


@pytest.mark.parametrize(("changes", "message"), DAMAGED)
def test_damaged_manifest_is_refused_by_name(engine, changes, message):
    rewrite(engine, **changes)
    with pytest.raises(EngineError, match=message) as refusal:
        read_manifest(engine)
    assert str(engine / ENGINE_JSON) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    (problem,) = verify(engine)
    assert problem.path == ENGINE_JSON


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\xff", b"[]", b"{}", b"null", b"[" * 100_000, b'{"format": ' + b"9" * 5000],
    ids=range(8),
)
def test_other_bytes_are_refused(engine, data):
    (engine / ENGINE_JSON).write_bytes(data)
    with pytest.raises(EngineError, match=r"engine\.json: .*export again"):
        read_manifest(engine)
    assert [problem.path for problem in verify(engine)] == [ENGINE_JSON]


def test_huge_manifest_is_refused_unread(engine):
    with open(engine / ENGINE_JSON, "wb") as file:
        file.truncate(4 << 30)  # sparse
    with pytest.raises(EngineError, match="larger than 64 MiB"):
        read_manifest(engine)


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("../elsewhere.json"),
    ],
)
def test_manifest_must_be_a_regular_file(engine, make):
    (engine / ENGINE_JSON).rename(engine.parent / "elsewhere.json")
    make(engine / ENGINE_JSON)
    with pytest.raises(EngineError, match="regular file"):
        read_manifest(engine)


def test_manifest_cannot_be_a_directory(engine):
    (engine / ENGINE_JSON).unlink()
    (engine / ENGINE_JSON).mkdir()
    with pytest.raises(EngineError, match="is a directory; it must be a regular file"):
        read_manifest(engine)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "has no engine.json"),
        (lambda path: path.write_text(""), "is not a directory"),
    ],
)
@pytest.mark.parametrize("function", [read_manifest, verify])
def test_no_engine_says_how_to_make_one(tmp_path, make, found, function):
    make(tmp_path / "engine")
    with pytest.raises(EngineError, match=f"{found}.*lmcast export"):
        function(tmp_path / "engine")


def test_only_regular_files_are_written_down(engine):
    os.mkfifo(engine / "pipe")
    with pytest.raises(EngineError, match="pipe is a FIFO"):
        write_manifest(engine, FIELDS)


def test_linked_sources(engine, tmp_path):
    from lmcast.exporter.checkpoint.identity import SourceFile

    source = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    source.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    now = SourceFile.of(source)
    record = {
        "path": str(source),
        "size": now.size,
        "mtime_ns": now.mtime_ns,
        "header_sha256": now.header_sha256,
    }
    write_manifest(engine, {**FIELDS, "linked": [record]})
    assert verify(engine) == []
    os.utime(source, ns=(0, now.mtime_ns + 1))
    for quick in (False, True):
        (problem,) = verify(engine, quick=quick)
        assert problem.path == str(source)
        assert problem.message.startswith("changed: modification time")
    source.rename(tmp_path / "elsewhere")
    (problem,) = verify(engine, quick=True)
    assert problem.message.startswith("moved: ")


def test_problem_is_one_line():
    assert str(Problem("weights/x", "missing")) == "weights/x: missing"


def test_torch_is_not_imported():
    engine = "lmcast.exporter.engine"
    code = f"import sys, {engine}.staging, {engine}.manifest; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "onnx"} & set(done.stdout.split())
