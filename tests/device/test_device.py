"""The check of tests/device, where it can be run without a GPU: on a fake one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import missing, on_fake_gpu
from fake_cuda.interpret import stand_in
from fake_cuda.process import environment
from giants import GPT_OSS_120B, cut, gpt_oss
from safetensors.torch import load_file
from triton import knobs

from lmcast.plugins.launch import launch_plan

sys.path.append(str(Path(__file__).parents[1] / "plugins"))

from device import check, full_size, onnxruntime_experts, operators, pack, steps
from device.trim import CONTAINER, IMAGE, MAGIC, VERSION, trim

on_fake = pytest.mark.skipif(bool(missing()), reason=missing())
SM = 90
# A model of one layer whose experts stay in MXFP4, with a vocabulary that is not carried, and sizes
# of experts.
TINY = cut(GPT_OSS_120B, 1) | {
    "hidden_size": 64, "intermediate_size": 64, "num_local_experts": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
FEW = {"tiny": (4, 2, 64, 64), "gpt-tiny": (4, 2, 64, 64)}
CASES = [("moe_route", 0, "float32", 0), ("causal_conv", 0, "bfloat16", 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts with two operators, whose kernels are to be interpreted, a product, and two engines."""
    single, engines, models, parts = (tmp_path_factory.mktemp(name) for name in "oemp")
    machine = pack.Machine(SM, "3.11")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_plan, "cubin", stand_in)
        patch.setattr(knobs.runtime, "interpret", True)  # which launch plans turn off
        patch.setattr(full_size, "shapes", lambda: {"tiny": (TINY, gpt_oss(TINY))})
        patch.setattr(onnxruntime_experts, "MODELS", FEW)
        pack.product(single / "product")
        onnxruntime_experts.write(single / "experts")
        pack.cases(single, CASES, SM)
        pack.engines(engines, machine, ["llama"])
        pack.models(models, machine)
    assert not [f for f in models.rglob("*") if f.stat().st_size > full_size.CARRIED]
    for name, content in (("operators", single), ("engines", engines), ("models", models)):
        assert 0 < pack.archived(content, parts / f"{name}.tar.xz") < pack.MOST
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
    status, (gpu, product, *others) = checked(folder)
    assert status == 1
    assert gpu["ok"] and gpu["step"] == "load" and gpu["sm"] == SM
    assert not product["ok"] and product["of bound"] > 1
    assert [line["step"] for line in others] == list(steps.STEPS)[1:]
    assert all(line["why"] == "not begun: load failed" for line in others)


@on_fake
def test_engines_run_with_and_without_graphs(folder: Path):
    record = folder / "GPU.md"
    status, (line, *models) = checked(folder, "engines", "models", "--record", str(record))
    assert status == 1 and line["family"] == "llama"
    assert line["graphs bit-equal"]
    assert line["of bound"] > 1 and not line["ok"]  # of kernels that compute nothing
    assert [model["prompt_tokens"] for model in models] == list(steps.PROMPTS)
    assert all(model["ok"] and model["decode_tokens_per_second"] > 0 for model in models)
    assert not list(folder.glob("unpacked/models/*/engine/weights/model*"))  # room for the next
    checked(folder, "load", "--record", str(record))
    assert all(f"## {name}" in record.read_text() for name in ("load", "engines", "models"))


@on_fake
def test_operators_are_right(folder: Path):
    tree, _ = check.unpacked(folder)
    found = on_fake_gpu(rest, str(tree), sm=SM, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    plugins, kernels, experts = found.result
    assert len(plugins) == len(CASES)
    assert all(line["ok"] and line["error"] > 0 for line in plugins)
    assert {line["operator"] for line in kernels} == {
        "mla_attention", "linear_attention", "moe_experts",
    }  # fmt: skip
    assert all(line["bytes per second"] > 0 for line in kernels)
    assert [line["tokens"] for line in experts] == list(onnxruntime_experts.TOKENS) * len(FEW)


@pytest.mark.parametrize("close", [{"rtol": 0.0, "atol": 0.0}, {"rtol": 0.1, "atol": 0.0}])
def test_what_is_no_number_or_not_equal_is_wrong(close: dict[str, float]):
    want = np.array([0.0, 2.0, -np.inf])
    assert operators.far(want, want, **close) == (0, 0)
    for wrong in ([1, 2, -np.inf], [0, 3, -np.inf], [0, np.nan, -np.inf], [0, 2, np.nan],
                  [0, 2, 9]):  # fmt: skip
        assert operators.far(np.array(wrong), want, **close)[1] > 1


def rest(tree: str) -> list[list[dict[str, Any]]]:
    """Run the steps with kernels of ours, and ONNX Runtime's experts, at sizes of tiny models."""
    from runtimes import start

    start()
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    from device import kernel_times as times

    times.CONTEXTS, times.LENGTHS, times.TOKENS = (64,), (1, 40), (1, 3)
    times.LATENTS = (times.LATENTS[0].__class__("tiny", 2, 16, 16, rank=32, turned_width=16),)
    times.QWEN3_8 = times.DeltaNet("tiny", 2, 1, 16, 16)
    times.MODELS = (times.MODELS[0].__class__("tiny", 4, 2, 32, 32),)
    times.SPREAD = 0
    onnxruntime_experts.MODELS = FEW
    gpu = steps.at_hand()
    experts = onnxruntime_experts.lines(gpu, Path(tree) / "experts")
    return [list(steps.plugins(Path(tree))), list(times.lines("cpu")), list(experts)]


SAYS = 'print(\'{"step": "load", "ok": true, "gpu": "one"}\', flush=True)\n'
# What a step does behind its first line -> how the line that is added begins.
ENDS = {
    "": None,
    """print('{"step" no', '[1]', b'\\xff', '{"step": "other", "ok": true}', sep='\\n')""": None,
    "raise SystemExit(3)": "ended with 3; it last said: nothing",
    "import os; os.abort()": "ended with -6",
    # What it has started would hold a pipe open.
    "import subprocess, time; subprocess.Popen(['sleep', '99']); time.sleep(99)": "stopped after",
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_what_a_step_said_before_its_end_is_kept(end: str, tmp_path: Path, monkeypatch):
    script = tmp_path / "steps.py"
    script.write_text(SAYS + end)
    monkeypatch.setattr(check, "STEPS", script)
    line, *added = check.said("load", tmp_path, 1.5, dict(os.environ))
    assert line["gpu"] == "one"
    assert [a["ok"] for a in added] == [False] * (ENDS[end] is not None)
    assert all(a["why"].startswith(str(ENDS[end])) for a in added)


def test_what_cannot_begin_is_a_line(folder: Path, tmp_path: Path):
    def said(step: str, limit: float) -> dict[str, Any]:
        ((name, lines),) = check.checked(tree, [step], limit, {})
        (line,) = lines
        assert name == step == line["step"] and not line["ok"]
        return line

    shutil.copy(folder / "operators.tar.xz", tmp_path)
    part = tmp_path / "engines.tar.xz"
    part.write_bytes((folder / part.name).read_bytes()[:-1000])
    tree, (broken,) = check.unpacked(tmp_path)
    assert broken["why"].startswith("engines.tar.xz: ") and not broken["ok"]
    assert said("engines", 60)["why"] == (
        "not begun: engines.tar.xz of tests/device/pack.py is missing"
    )
    assert said("plugins", 0)["why"] == "not begun: 0 s are over"
    shutil.copy(folder / part.name, tmp_path)  # brought again
    assert check.unpacked(tmp_path)[1] == []


def test_steps_fit_into_the_limit():
    assert sum(limit for _, limit, _ in steps.STEPS.values()) <= check.LIMIT == 9 * 60
    assert {part for *_, part in steps.STEPS.values()} <= pack.GROUPS.keys()


def test_record_has_every_line(tmp_path: Path):
    lines = [{"step": "models", "ok": False, "why": "no"}, {"step": "models", "ok": True}]
    memory = {"models": {"day": "2030-01-01", "lines": lines}}
    text = check.recorded(memory)
    assert all(json.dumps(line) in text for line in lines)
    assert "2030-01-01: 2 lines, 1 of them bad." in text
    for content in ("", "[]", '{"load": 1}', json.dumps(memory)):
        (tmp_path / check.REMEMBERED).write_text(content)
        assert check.remembered(tmp_path) == (memory if "models" in content else {})


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
