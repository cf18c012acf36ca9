"""The check of tests/device, where it can be run without a GPU: on a fake one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import missing, on_fake_gpu
from fake_cuda.interpret import stand_in
from fake_cuda.process import environment
from safetensors.torch import load_file
from triton import knobs

from lmcast.plugins.launch import launch_plan

sys.path.append(str(Path(__file__).parents[1] / "plugins"))

from device import check, full_size, pack, steps
from device.trim import CONTAINER, IMAGE, MAGIC, VERSION, trim

on_fake = pytest.mark.skipif(bool(missing()), reason=missing())
SM = 90
CASES = [("moe_route", 0, "float32", 0), ("causal_conv", 0, "bfloat16", 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts with two operators, whose kernels are to be interpreted, a product and an engine."""
    content, parts = tmp_path_factory.mktemp("content"), tmp_path_factory.mktemp("parts")
    engine = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_plan, "cubin", stand_in)
        patch.setattr(knobs.runtime, "interpret", True)  # which launch plans turn off
        pack.product(content / "product")
        pack.cases(content, CASES, SM)
        pack.engines(engine, pack.Machine(SM, "3.11"), ["llama"])
    assert 0 < pack.archived(content, parts / "operators.tar.xz") < pack.MOST
    pack.archived(engine, parts / "engines.tar.xz")
    return parts


def checked(folder: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Run check.py on the fake GPU; return its exit status and its lines."""
    command = [sys.executable, str(Path(check.__file__)), str(folder), *words]
    given = environment(folder / "log", sm=SM)
    done = subprocess.run(command, env=given, stdout=subprocess.PIPE, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@on_fake
def test_empty_kernels_are_found_wrong(folder: Path):
    """The GPU is there, and its product, which nothing computed, is wrong: the end of the check."""
    status, (gpu, product) = checked(folder)
    assert status == 1
    assert gpu["ok"] and gpu["step"] == "load" and gpu["sm"] == SM
    assert not product["ok"] and product["of bound"] > 1


@on_fake
def test_engines_run_with_and_without_graphs(folder: Path):
    status, (line,) = checked(folder, "engines")
    assert status == 1 and line["family"] == "llama"
    assert line["graphs bit-equal"]
    assert line["error"] > line["bound"] and not line["ok"]  # of kernels that compute nothing


@on_fake
def test_operators_are_right(folder: Path):
    tree = check.unpacked(folder)
    found = on_fake_gpu(plugins, str(tree), sm=SM, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert len(found.result) == len(CASES)
    assert all(line["ok"] and line["error"] > 0 for line in found.result)


def plugins(tree: str) -> list[dict[str, Any]]:
    from runtimes import start

    start()
    return list(steps.plugins(Path(tree)))


def test_what_hangs_or_crashes_is_a_line(folder: Path):
    tree = check.unpacked(folder)
    variables = check.environment(tree)
    (late,) = check.checked(tree, ["engines"], 0.01, variables)
    assert not late["ok"] and late["why"].startswith("stopped after 0 s")
    (crashed,) = check.checked(tree, ["models"], 60, variables)  # there are none
    assert not crashed["ok"] and "No such file" in crashed["why"]
    (over,) = check.checked(tree, ["kernels"], 0, variables)
    assert over["why"] == "not begun: 0 s are over"


def test_steps_fit_into_the_limit():
    assert sum(limit for _, limit in steps.STEPS.values()) <= check.LIMIT == 9 * 60


def test_record_has_every_line():
    lines = [
        {"step": "load", "ok": True, "gpu": "one"},
        {"step": "models", "ok": False, "why": "no"},
    ]
    text = check.recorded(lines)
    assert all(json.dumps(line) in text for line in lines)


def test_nothing_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert check.main([str(tmp_path)]) == 2
    assert "no parts" in capsys.readouterr().err


def test_weights_are_drawn_where_the_engine_has_them(tmp_path: Path):
    shape, path = [3, 70], tmp_path / "weights/model.safetensors"
    header = json.dumps({"a": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 420]}}).encode()
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers/0").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "engine").mkdir()
    linked = [{"path": str(path), "mtime_ns": 1_234_567_000}]
    (tmp_path / "engine/engine.json").write_text(json.dumps({"linked": linked}))
    full_size.fill(tmp_path)
    numbers = load_file(path)["a"].float().abs()
    assert list(numbers.shape) == shape and path.stat().st_mtime_ns == 1_234_567_000
    assert 2**-7 <= numbers.min() < numbers.max() < 2**-3
    full_size.remove(tmp_path)
    assert not path.parent.exists()


def image(sm: int, code: bytes) -> bytes:
    header = IMAGE.pack(2, 0x101, 64, len(code)) + bytes(12) + sm.to_bytes(4, "little")
    return header + bytes(64 - len(header)) + code


def test_other_machine_code_becomes_zeros(tmp_path: Path):
    inside = image(80, b"eighty" * 4) + image(90, b"ninety" * 4)
    library = tmp_path / "library.so"
    start = CONTAINER.pack(int.from_bytes(MAGIC, "little"), VERSION, CONTAINER.size, len(inside))
    library.write_bytes(b"before" + MAGIC + b"\xff" * 12 + start + inside + b"behind" + MAGIC)
    before = library.read_bytes()
    assert trim(library, {90}) == {90: 24}
    assert library.read_bytes() == before.replace(b"eighty" * 4, bytes(24))
