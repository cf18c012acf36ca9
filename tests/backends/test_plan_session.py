"""Sessions on plans, where no GPU is: what they give is what the portable graph gives."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import ENGINES
from planned import CLOSE, LLAMA, MATRICES, MODELS, RINGS, STEP, VOCABULARY, agree, drawn

from lmcast.exporter import bench
from lmcast.exporter.prove.parity import parity


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


def test_bench(both, monkeypatch):
    monkeypatch.setattr(bench, "READ_BYTES", 1 << 20)  # how fast memory is, is not looked at here
    planned, _ = both(LLAMA)
    request = {"directory": str(planned.directory), "threads": None, "prepack": False, "runs": 2,
               "portable": False, "prompt_tokens": 5, "new_tokens": 4, "batch": 2,
               "image": None}  # fmt: skip
    found = bench.measure(request)
    assert found["once"]["gpu"] == "Fake"
    assert found["once"]["peak_gpu"] > 4 * 2 * 64 * 2 * 8 * 4, "the states, at least"
    assert found["bandwidth"] == [bench.READ_BYTES * 1000.0] * 2
    assert len(found["decode"]) == 2
    on_cpu = {"portable": True, "runs": 1, "threads": 1}
    assert bench.measure(request | on_cpu)["once"]["peak_gpu"] is None


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


def test_the_fake_has_what_the_library_has(gpu, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    trt = pytest.importorskip("tensorrt_rtx")
    own = {"sizes", "axes", "outputs", "spans", "check_overlaps", "compute", "view"}
    for fake in fake_tensorrt.CLASSES:
        names = {n for n in vars(fake) if not n.startswith("_")} - own
        names -= {"strategy", "cache", "loaded"}
        assert not [n for n in names if not hasattr(getattr(trt, fake.__name__), n)], fake
    assert hasattr(trt.IExecutionContext, "is_stream_capturable")
