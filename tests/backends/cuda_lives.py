"""Lives of sessions of target cuda, in a process on a fake GPU; it loads no more than they take."""

import gc
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from fake_cuda import note
from fake_cuda.log import library
from fake_cuda.machine_code import Handed, hand_launches

from lmcast.exporter import load
from lmcast.exporter.backends.cuda import OutOfMemory
from lmcast.exporter.backends.cuda_provider import machine, runner
from lmcast.exporter.backends.ort import ort
from lmcast.exporter.engine.manifest import read_manifest
from lmcast.exporter.runtime import session as sessions

ROWS, FIRST = 3, 8  # rows, and the first capacity
CASTS = {"torch", "triton", "onnx", "onnx_ir", "huggingface_hub"}
STEPS = ("plain", "captured", "replayed", "again")


def ones(tokens: int, rows: int = ROWS) -> np.ndarray:
    return np.ones((rows, tokens), np.int64)


def whole_life(path: str) -> list[Any]:
    """Run prompts, steps, rows of different lengths, growth, and a session after another; without
    what casts engines."""
    assert not CASTS & sys.modules.keys()
    sys.modules.update(dict.fromkeys(CASTS))  # type: ignore[arg-type]  # as if there were none
    sessions.FIRST_CAPACITY = FIRST
    engine = load(path)
    with mock.patch.object(runner, "_provider", partial(exactly, runner._provider)):
        assert engine.runner
    note("prompt")
    one = engine.session(ROWS)
    one.append(ones(2))
    for name in STEPS:
        note(name)
        logits = one.append(ones(1))
    note("ragged")
    one.append(ones(2), [2, 1, 2])
    note("grown")
    one.append(ones(1))
    note("captured again")
    one.append(ones(1))
    seen = [logits.shape, str(logits.dtype), one.lengths.tolist()]
    del one
    note("another prompt")
    other = engine.session(ROWS)
    other.append(ones(2))
    note("another step")
    other.append(ones(1))
    note("end")
    last, most = engine.session(2), engine.context
    last.append(ones(most - 4, 2), [most - 4, 3])
    last.append(ones(8, 2), [1, 8])  # padded beyond the context
    last.append(ones(1, 2))
    shrink(engine.runner)
    return seen


def exactly(provider: Any, *given: Any) -> Any:
    """Let the arena take what each call needs, as then it can give back all of it."""
    options, [(name, own)] = provider(*given)
    return options, [(name, own | {"arena_extend_strategy": "kSameAsRequested"})]


def shrink(runner: Any) -> None:
    """Run a prompt whose end lets the provider's arena give back what nothing is kept in."""
    given = {"input_ids": ones(1, 1), "logit_rows": ones(1, 1) * 0}
    given |= {"cache_lengths": np.zeros(1, np.int64), "token_counts": np.ones(1, np.int64)}
    states = [(s.name, tuple(FIRST if n == "C" else 1 if n == "B" else n for n in s.shape), s.dtype)
              for s in runner._graph.states]  # fmt: skip
    held, options = runner.allocate(states), ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:0")
    with runner.gpu.active():
        held.buffers.call.put(given)
        note("shrunk")
        runner._session.run_with_iobinding(held.buffers.binding, options)
        note("over")


def shifted(path: str) -> list[list[bool]]:
    """Say which of a convolution's last inputs are left after each of three steps; and, of others,
    after a call of two tokens that has failed once."""
    from fake_cuda import interpret

    def run(launch: Handed) -> None:
        if "causal_conv" in launch.text:  # the others write no convolution's inputs
            interpret.run(launch)

    hand_launches(run)
    engine = load(path)
    one = engine.session(1)
    held = one.reserve(1)
    (conv, *_) = [array for name, array in held.buffers.states if name.endswith("conv")]
    gpu, marks = engine.runner.gpu, np.empty(conv.shape, np.uint16)
    marks[...] = 0x4000 + np.arange(marks.shape[1])[:, None]  # 2 and a bit in bfloat16
    now, found = marks.copy(), []
    step = partial(one.append, ones(1, 1))
    for call in (step, step, step, partial(repeated, engine, one)):
        with gpu.active():
            if call is not step or not found:
                gpu.put(conv, marks)
        call()
        with gpu.active():
            gpu.get(now, conv)
            gpu.wait()
        found.append([bool((now == marks[:, i : i + 1]).all(2).any()) for i in range(3)])
    return found


def repeated(engine: Any, one: Any) -> None:
    """Append two tokens by a call that finds no memory at its end, and by another, which has that
    of a session that has ended."""
    other = engine.session(2)
    other.reserve(1)
    del other
    runner, ran = engine.runner, list[int]()
    run = runner._run

    def ends(binding: Any, graph: int) -> None:
        run(binding, graph)
        ran.append(graph)
        if len(ran) == 1:
            raise OutOfMemory("none is left")

    runner._run = ends
    one.append(ones(2, 1))
    assert len(ran) == 2


def refusal(path: str) -> str:
    """Return what is said by a load, or by a prompt; "" where it runs."""
    return said(lambda: load(path).session(ROWS).append(ones(2)))


def refusals(path: str) -> dict[str, str]:
    """Return the same for each of FAULTS."""
    found = {}
    for fault, patches in FAULTS.items():
        with ExitStack() as patched:
            for patch in patches:
                patched.enter_context(patch)
            found[fault] = refusal(path)
    return found


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


FOR_CPUS = mock.patch.object(ort, "get_available_providers", return_value=["CPUExecutionProvider"])
FAULTS: dict[str, list[AbstractContextManager[Any]]] = {
    "no native library": [mock.patch.dict(sys.modules, {"lmcast_native": None})],
    "ONNX Runtime for CPUs": [FOR_CPUS],
    "two packages": [FOR_CPUS, mock.patch.object(machine, "version", return_value="1.31.1")],
    "a library": [mock.patch.object(machine, "LINKED", ("libcublas.so.none",))],
    "none": [],
}


def why_not(path: str) -> str:
    """Return why parity is not proven at export; "" where it is."""
    return runner.absent(read_manifest(Path(path)))


def beyond(path: str) -> None:
    """Run steps where no more graphs may be captured, with room for padding behind the context; and
    prompts, each longer than all before."""
    runner.MOST_GRAPHS = 0
    engine = load(path)
    session, most = engine.session(ROWS), engine.context - len(STEPS) - 1
    session.append(ones(most), [most, 1, 1])
    session.append(ones(len(STEPS) + 2), [1, len(STEPS) + 2, 1])
    for name in STEPS:
        note(name)
        session.append(ones(1))
    note("prompts")
    for tokens in range(1, engine.context, 2):
        engine.session(ROWS).append(ones(tokens))
    note("end")


def endings(path: str, numbers: Iterable[int]) -> list[tuple[str, list[str]]]:
    """Let memory end behind each number of allocations, for a whole life.

    Return of each what is done last, and what is said by that and by the call after it; a note
    follows when all is gone.
    """
    sessions.FIRST_CAPACITY = FIRST
    found = []
    for number in numbers:
        made: list[Any] = []
        calls = {
            "load": lambda made=made: made.append(load(path).session(ROWS)),
            "prompt": lambda made=made: made[0].append(ones(2)),
            "step": lambda made=made: made[0].append(ones(1)),
            "capture": lambda made=made: made[0].append(ones(1)),
            "ragged": lambda made=made: made[0].append(ones(2), [2, 1, 2]),
            "growth": lambda made=made: made[0].append(ones(4)),
        }
        library().fake_grant(number)
        for last in calls:
            if first := said(calls[last]):
                break
        library().fake_grant(-1)
        again = said(calls[last]) if made and first else ""
        del made[:], calls
        gc.collect()
        note("gone")
        found.append((last, [first, again]))
    return found
