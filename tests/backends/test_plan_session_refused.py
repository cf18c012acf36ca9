"""Plans that are not loaded, and calls that they refuse, on a fake GPU and a fake library."""

import json
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_tensorrt
import pytest
from fake_driver import CUresult
from fake_tensorrt import ENGINES, GPUS, add_plan
from planned import LLAMA, MATRICES, MODELS, STEP, VOCABULARY, agree, drawn

from lmcast.exporter import Engine
from lmcast.exporter.engine import manifest
from lmcast.exporter.engine.manifest import EngineError, read_manifest, write_manifest

pytestmark = pytest.mark.usefixtures("gpu")


def test_what_only_cpus_read_is_refused(both):
    planned, _ = both(LLAMA)
    words = "target tensorrt-rtx does not read --threads, --prepack, as .* or give --portable, wh"
    with pytest.raises(EngineError, match=words):
        Engine(planned.directory, threads=1, prepack=True)


def test_a_call_without_memory_is_one_line(both):
    """And the last of its session: some states may be its own, others those of the call before."""
    planned, portable = both(MATRICES)
    session = planned.session(2)
    session.append(drawn(2, 3))
    gpu = GPUS[-1]
    gpu.bytes, before = gpu.bytes - gpu.cuMemGetInfo()[1], gpu.bytes
    with pytest.raises(ValueError, match="2 rows of 3 tokens at once need more memory than this G"):
        session.append(drawn(2, 3))
    gpu.bytes = before
    with pytest.raises(ValueError, match="a call of this session has failed"):
        session.append(drawn(2, 3))
    agree(planned.session(2), portable.session(2), [(5, 3), STEP[:2]])


def test_limits_are_refused(both):
    planned, portable = both(LLAMA, max_batch=2, max_context=16, max_tokens=8, opt_tokens=4)
    build = f"`lmcast build {planned.directory} --target tensorrt-rtx --sm 89,120"
    others = "--max-tokens 8 --opt-batch 1 --opt-tokens 4`"
    with pytest.raises(ValueError, match=r"batch is 5.*up to 2 rows") as refused:
        planned.session(5)
    assert f"{build} --max-batch 5 --max-context 16 {others}" in str(refused.value)
    with pytest.raises(ValueError, match=r"would hold 17 tokens.*holds 16") as refused:
        planned.session(2).append(drawn(2, 17))
    assert f"{build} --max-batch 2 --max-context 17 {others}" in str(refused.value)
    with pytest.raises(ValueError, match="would hold 65 tokens; the context of this engine is 64"):
        planned.logits(drawn(1, 65))
    portable.session(5).append(drawn(5, 17))


def test_memory_of_the_gpu(both, gpu):
    planned, _ = both(MATRICES)
    assert planned.session(1)
    planned.runner.gpu.bytes = 1000
    with pytest.raises(
        ValueError, match=r"need [\d,]+ bytes of state; this GPU \(Fake\) has 1,000"
    ):
        planned.session(1)
    planned.runner.gpu.bytes, gpu.bytes = 1 << 40, 20_000
    with pytest.raises(ValueError, match=r"need [\d,]+ bytes of state.* less than that free"):
        planned.session(3).append(drawn(3, 2))


def _refused(planned: Engine, *words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as refused:
        assert planned.runner
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not ENGINES, "loaded all the same"


def test_other_bytes_are_never_loaded(both, monkeypatch):
    planned, _ = both(LLAMA)
    path = planned.directory / "plans/p.plan"
    path.write_bytes(path.read_bytes().replace(b"layers.0.key", b"layers.1.key"))
    with pytest.raises(EngineError, match=r"plans/p\.plan: sha256 differs"):
        Engine(planned.directory)
    monkeypatch.setattr(manifest, "SMALL", 0)  # plans are larger as a rule: read where they run
    _refused(Engine(planned.directory), "sha256 differs", "it is not loaded")


def test_another_gpu(both, gpu):
    planned, _ = both(LLAMA)
    gpu.sm = 86
    build = f"`lmcast build {planned.directory} --target tensorrt-rtx --sm 86` makes one"
    _refused(planned, "has plans for SM89 and SM120 with tensorrt-rtx", "Fake, is SM86", build)


def test_another_version(both, monkeypatch):
    planned, _ = both(LLAMA)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.module("1.8.0.2"))
    build = f"`lmcast build {planned.directory} --target tensorrt-rtx --sm 89,120 --max-batch 3"
    versions = "was built by tensorrt_rtx 1.7.1.116, and here is tensorrt_rtx 1.8.0.2"
    _refused(planned, versions, build)


def test_no_library(both, monkeypatch):
    planned, _ = both(
        LLAMA, {"library": "tensorrt 11.4", "file": "plans/p.plan"}, target="tensorrt"
    )
    _refused(planned, "pip install 'lmcast[tensorrt]'")


WHY: dict[str, tuple[dict[str, Any], str]] = {
    "no GPU": ({"initialized": CUresult.CUDA_ERROR_NO_DEVICE}, "no NVIDIA GPU is here"),
    "an old driver": ({"version": 12080}, "is for CUDA 12.8, and lmcast's packages"),
    "a broken driver": ({"initialized": CUresult.CUDA_ERROR_UNKNOWN}, "see what `nvidia-smi` says"),
}


@pytest.mark.parametrize("name", WHY)
def test_no_gpu(both, gpu, name: str):
    facts, words = WHY[name]
    planned, portable = both(LLAMA)
    for fact, value in facts.items():
        setattr(gpu, fact, value)
    _refused(planned, words, "SM89 and SM120", "--portable")
    assert portable.logits(drawn(1, 2)).shape == (1, 2, VOCABULARY)


def test_plugins(both, monkeypatch):
    operators = {"causal_conv": {"plugin": 3}, "moe_route": {"inlined": 1}}
    planned, portable = both(LLAMA, {"operators": operators})
    monkeypatch.setitem(sys.modules, "lmcast_native", None)  # as if it were not installed
    _refused(planned, "causal_conv of ours, needs the package lmcast_native, which is not")
    package: Any = ModuleType("lmcast_native")
    package.__spec__, package.LIBRARY = ModuleSpec("x", None), Path("/l.so")
    monkeypatch.setitem(sys.modules, "lmcast_native", package)
    agree(planned.session(1), portable.session(1), [(5,)])
    assert fake_tensorrt.IPluginRegistry.loaded == ["/l.so"]


# What of an entry is another -> a part of the refusal.
BAD_ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "a file that is not listed": ({"file": "plans/other.plan"}, "a listed file"),
    "a file outside": ({"file": "../p.plan"}, "a relative path inside"),
    "an unknown target": ({"target": "cuda"}, "for cuda and SMs"),
    "no SMs": ({"sms": []}, "at least one SM"),
    "no library": ({"library": None}, "library is None; accepted: a text"),
    "a size that is none": ({"max_context": "9"}, "max_context is '9'; accepted: an integer"),
    "a plugin that is none": ({"operators": {"a": 1}}, "operators.a is 1; accepted: an object"),
    "a state that is none": ({"in_place": [1]}, "in_place[0] is 1; accepted: a text"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_bad_entries(portable, tmp_path, name: str):
    (aliased, _), (changes, message) = MODELS[LLAMA], BAD_ENTRIES[name]
    planned = add_plan(portable(LLAMA), tmp_path / "p", aliased)
    fields = dict(read_manifest(planned).fields)
    (entry,) = fields["plans"]
    for key, value in changes.items():
        held = entry if key in entry else entry["request"]
        held[key] = value
    write_manifest(planned, fields)
    with pytest.raises(EngineError) as refusal:
        assert Engine(planned).runner
    assert message in str(refusal.value)


def test_a_plan_of_another_graph(both, portable):
    planned, _ = both(LLAMA)
    path = planned.directory / "plans/p.plan"
    text = json.loads(path.read_text()) | {"directory": str(portable(MATRICES))}
    rewrite(planned, json.dumps(text).encode())
    with pytest.raises(ValueError, match=r"is not of this engine: layers\.0\.conv\.past is in one"):
        assert Engine(planned.directory).runner


def rewrite(planned: Engine, plan: bytes) -> None:
    (planned.directory / "plans/p.plan").write_bytes(plan)
    write_manifest(planned.directory, planned.manifest.fields)


def test_what_is_no_plan(both):
    planned, _ = both(LLAMA)
    rewrite(planned, b"no plan")
    _refused(Engine(planned.directory), "tensorrt_rtx 1.7.1.116 does not take it",
             "it said: magic tag is wrong")  # fmt: skip
