"""Sessions on plans, where no GPU is: what they give is what the portable graph gives."""

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_driver import CUresult, Driver
from fake_tensorrt import ENGINES, GPUS, add_plan
from tiny import case, make
from tiny.llama import tiny_llama

from lmcast.exporter import Engine, bench, export
from lmcast.exporter.backends import cuda
from lmcast.exporter.engine import manifest
from lmcast.exporter.engine.manifest import EngineError, read_manifest, write_manifest
from lmcast.exporter.prove.parity import parity
from lmcast.exporter.runtime.session import Session

CLOSE = 1e-5  # fp32 sums in another order, of logits near 1
VOCABULARY = 97


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a model's name to an engine of it, exported once."""
    folder = tmp_path_factory.mktemp("plans")
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            checkpoint, made[name] = folder / f"{len(made)}", folder / f"{len(made)}-engine"
            tiny_llama(checkpoint) if name == "llama" else make(case(name), checkpoint)
            tokenizer = name == "llama"
            export(checkpoint, made[name], "onnx", parity=False, tokenizer=tokenizer, context=64)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch):
    """A fake GPU and a fake library."""
    GPUS.append(Driver())
    monkeypatch.setattr(cuda, "bindings", lambda: GPUS[-1])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.module())
    yield GPUS[-1]
    assert GPUS[-1].depth == 0
    ENGINES.clear(), GPUS.clear()


# What each has: caches alone; rings of windows beside one; matrices (by a plugin in place),
# convolutions' tails whose rows are of 1008 bytes, and one cache.
MODELS: dict[str, tuple[list[str], list[str]]] = {
    "llama": ([f"layers.{i}.{x}" for i in range(2) for x in ("key", "value")], []),
    "gemma3_text/layer types, linear": (["layers.1.key", "layers.1.value"], []),
    "qwen3_5_text/plain": (
        ["layers.3.key", "layers.3.value"],
        [f"layers.{i}.state" for i in range(3)],
    ),
}
LLAMA, RINGS, MATRICES = MODELS


@pytest.fixture
def both(portable, tmp_path: Path):
    """Return a function from a model and sizes to an engine with a plan, and the portable one."""

    def get(name: str, entry: Any = None, **sizes: int) -> tuple[Engine, Engine]:
        aliased, in_place = MODELS[name]
        entry = {"in_place": in_place, **(entry or {})}
        planned = add_plan(portable(name), tmp_path / "planned", aliased, entry=entry, **sizes)
        return Engine(planned), Engine(planned, threads=1, portable=True)

    return get


def drawn(rows: int, tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, tokens))


def agree(ours: Session, theirs: Session, calls: list[tuple[int, ...]]) -> None:
    """Append calls of so many tokens of each row to both, and compare."""
    for seed, counts in enumerate(calls):
        ids = drawn(len(counts), max(counts), seed)
        got, want = ours.append(ids, counts), theirs.append(ids, counts)
        np.testing.assert_allclose(got, want, atol=CLOSE, err_msg=f"call {seed}: {counts}")
    assert ours.lengths.tolist() == theirs.lengths.tolist()


STEP = (1, 1, 1)


@pytest.mark.parametrize("name", MODELS)
def test_ragged_prompts_and_steps(both, name: str):
    planned, portable = both(name)
    ours, theirs = planned.session(3), portable.session(3)
    agree(ours, theirs, [(20, 7, 1), *[STEP] * 5, (3, 9, 14), *[STEP] * 5])
    (engine,) = ENGINES
    apart = name != LLAMA
    steps = [context for context in engine.contexts if context.profile == 0]
    assert len(steps) == 1 + apart, "a graph for each way that the buffers lie"
    assert sum(context.replays for context in steps) == 10 - len(steps)
    assert sum(state.back is not None for state in ours._states.states) == {
        LLAMA: 0, RINGS: 4, MATRICES: 3,
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_prompts_in_pieces(both, name: str):
    """Rows without a token in later pieces; a piece of one token, which is no step."""
    planned, portable = both(name, max_tokens=5, opt_tokens=2)
    ours, theirs = planned.session(3), portable.session(3)
    agree(ours, theirs, [(13, 6, 1), STEP, (6, 4, 5), (2, 11, 3), STEP, STEP])
    (engine,) = ENGINES
    assert max(c.shapes["input_ids"][1] for c in engine.contexts if c.profile == 1) <= 5


@pytest.mark.parametrize("name", MODELS)
def test_rows_one_by_one_at_the_end(both, name: str):
    """Padding would lie behind the capacity: each row runs alone, its states where they were."""
    planned, portable = both(name, max_context=20, max_tokens=5)
    ours, theirs = planned.session(3), portable.session(3)
    agree(ours, theirs, [(14, 3, 8), STEP, (2, 11, 6), STEP, (1, 2, 1), (1, 2, 3)])
    with pytest.raises(ValueError, match=r"a row would hold 21 tokens.*holds 20: `lmcast build"):
        ours.append(drawn(3, 1))


def test_a_full_row_gets_no_padding(both):
    """The second piece has one token, and none for a row that is full by then."""
    planned, portable = both(MATRICES, max_context=20, max_tokens=5)
    ours, theirs = planned.session(3), portable.session(3)
    agree(ours, theirs, [(10, 15, 1), (6, 5, 2)])


@pytest.mark.parametrize("name", [LLAMA, MATRICES])
def test_logits_of_all_positions_in_pieces(both, name: str):
    planned, portable = both(name, max_tokens=8, opt_tokens=3)
    ids = drawn(2, 11)
    np.testing.assert_allclose(planned.logits(ids), portable.logits(ids), atol=CLOSE)
    (engine,) = ENGINES
    assert engine.contexts[0].shapes["input_ids"][1] <= 3


def test_chosen_positions(both):
    """In any order and twice; rows of different lengths; some pieces have none."""
    planned, _ = both(LLAMA, max_tokens=4, opt_tokens=3)
    ids, at = drawn(2, 11), np.array([[9, 0, 9], [2, 5, 4]])
    got = planned.session(2).run(ids, np.array([11, 6]), at)
    whole = planned.logits(ids)
    np.testing.assert_allclose(got, np.take_along_axis(whole, at[:, :, None], 1), atol=CLOSE)


def test_sessions_are_apart_and_leave_their_contexts(both):
    planned, portable = both(MATRICES)
    one, other, row = planned.session(3), planned.session(3), planned.session(1)
    theirs, alone = portable.session(3), portable.session(1)
    for call in [(4, 9, 2), STEP, STEP, STEP, STEP]:
        ids = drawn(3, max(call), sum(call))
        want = theirs.append(ids, call)
        np.testing.assert_allclose(one.append(ids, call), want, atol=CLOSE)
        np.testing.assert_allclose(other.append(ids, call), want, atol=CLOSE)
        agree(row, alone, [(3,), (1,), (1,)])
    (engine,) = ENGINES
    assert len(engine.contexts) == 1 + 3 * 2
    del one, other, row
    gc.collect()
    agree(planned.session(2), portable.session(2), [(5, 3), *[(1, 1)] * 6])
    assert len(engine.contexts) == 1 + 3 * 2


def test_steps_run_where_nothing_can_be_captured(both):
    planned, portable = both(MATRICES)
    assert planned.runner
    ENGINES[0].capturable = False
    agree(planned.session(2), portable.session(2), [(5, 3), *[(1, 1)] * 4])
    assert not any(context.replays for context in ENGINES[0].contexts)


@pytest.mark.parametrize("capturable", [True, False])
def test_plans_of_tensorrt(both, monkeypatch, capturable: bool):
    """It does not say whether a context can be captured, and compiles nothing later."""
    lacks = ["DynamicShapesKernelSpecializationStrategy", "IRuntimeConfig"]
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module("11.4", "tensorrt", lacks))
    planned, portable = both(MATRICES, {"library": "tensorrt 11.4"}, target="tensorrt")
    assert planned.runner
    ENGINES[0].capturable = capturable
    agree(planned.session(2), portable.session(2), [(5, 3), *[(1, 1)] * 4])
    assert any(context.replays for context in ENGINES[0].contexts) == capturable


def test_generate(both):
    planned, portable = both(LLAMA, max_context=16, max_batch=2, max_tokens=4)
    prompts = ["Hello, who", "a"]
    got, want = (e.generate(prompts, max_new_tokens=6, chat=False) for e in (planned, portable))
    assert [row.ids for row in got] == [row.ids for row in want]
    (longest,) = planned.generate(["Hello"], chat=False)
    assert len(longest.prompt) + len(longest.ids) <= 16
    with pytest.raises(ValueError, match=r"would hold 22 tokens.*--max-context 22 "):
        planned.generate(["Hello, who"], max_new_tokens=12, chat=False)
    with pytest.raises(ValueError, match="would hold 110 tokens; the context of this engine is 64"):
        planned.generate(["Hello, who"], max_new_tokens=100, chat=False)


def test_parity(both, portable):
    """A plan for fewer rows than parity has."""
    checkpoint = portable(LLAMA).parent / portable(LLAMA).name.removesuffix("-engine")
    planned, _ = both(LLAMA, max_batch=2, opt_tokens=16)
    report = parity(planned.directory, checkpoint, tokens=24)
    assert report.passed, report.table()
    assert len(ENGINES) == 1
    assert parity(planned.directory, checkpoint, tokens=8, portable=True).passed
    assert len(ENGINES) == 1
    with pytest.raises(ValueError, match=r"--bisect.*--portable"):
        parity(planned.directory, checkpoint, bisect=True)


def test_bench(both):
    planned, _ = both(LLAMA)
    request = {"directory": str(planned.directory), "threads": None, "prepack": False, "runs": 2,
               "portable": False, "prompt_tokens": 5, "new_tokens": 4, "batch": 2}  # fmt: skip
    found = bench.measure(request)
    assert found["once"]["gpu"] == "Fake"
    assert found["once"]["peak_gpu"] > 4 * 2 * 64 * 2 * 8 * 4, "the states, at least"
    assert found["bandwidth"] == [bench.READ_BYTES * 1000.0] * 2
    assert len(found["decode"]) == 2
    on_cpu = {"portable": True, "runs": 1, "threads": 1}
    assert bench.measure(request | on_cpu)["once"]["peak_gpu"] is None


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


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "triton", "onnx", "onnx_ir")))
import fake_tensorrt, fake_driver
from lmcast.exporter import load
from lmcast.exporter.backends import cuda
fake_tensorrt.GPUS.append(fake_driver.Driver())
cuda.bindings = lambda: fake_tensorrt.GPUS[-1]
sys.modules["tensorrt_rtx"] = fake_tensorrt.module()
session = load(sys.argv[1]).session(2)
for tokens in (3, 1, 1, 1):
    logits = session.append([[1] * tokens] * 2)
print(session.lengths.tolist(), logits.shape)
"""


def test_plans_run_without_torch(both):
    planned, _ = both(LLAMA)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, planned.directory],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == f"[6, 6] (2, {VOCABULARY})", done.stderr


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


def test_the_fake_has_what_the_library_has(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    trt = pytest.importorskip("tensorrt_rtx")
    own = {"sizes", "axes", "outputs", "spans", "check_overlaps", "compute", "view"}
    for fake in fake_tensorrt.CLASSES:
        names = {n for n in vars(fake) if not n.startswith("_")} - own
        names -= {"strategy", "cache", "loaded"}
        assert not [n for n in names if not hasattr(getattr(trt, fake.__name__), n)], fake
    assert hasattr(trt.IExecutionContext, "is_stream_capturable")
