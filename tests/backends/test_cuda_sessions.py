"""Sessions of target cuda on a fake GPU: what is launched, copied, captured and kept in memory.

Numbers of ONNX Runtime's own kernels are nothing there; those of our operators are interpreted.
"""

import _ctypes
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_calls import shortened
from cuda_lives import (
    FIRST,
    ROWS,
    STEPS,
    beyond,
    endings,
    refusal,
    refusals,
    shifted,
    whole_life,
    why_not,
)
from fake_cuda import Log, Run, missing, on_fake_gpu
from fake_cuda.interpret import stand_in
from files.recipe_dirs import write_packed
from operators import FOLDER
from test_cuda_low_precision import FULL, attentions
from tiny import case

from lmcast.exporter import export, load
from lmcast.exporter.backends.cuda_provider import machine
from lmcast.exporter.bench import bench
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.engine.graph_file import read_graph
from lmcast.exporter.engine.manifest import EngineError, read_manifest, write_manifest
from lmcast.exporter.pack import pack
from lmcast.plugins.launch import launch_plan
from lmcast.plugins.launch.launch_plan import host_code

why = missing() or ("" if find_spec("cuda") else "cuda-bindings is not installed")
pytestmark = pytest.mark.skipif(bool(why), reason=why)
Made = Callable[[str], Path]
DRY = Path(__file__).parents[1] / "benchmarks/cuda_dry.py"
STAND_IN = b"FAKECUDA"
PLAIN, MATRICES, CODES = "qwen3/plain", "kimi_linear/plain", "states in FP8"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Return a function from a case's name to an engine with stand-ins for machine code."""
    folder = tmp_path_factory.mktemp("cuda")
    found: dict[str, Path] = {}
    for path in FOLDER.glob("*/*_triton.py"):
        # What compiles them turns the interpreter off: for kernels that are not yet imported.
        host_code(path.stem.removesuffix("_triton"))

    def get(name: str) -> Path:
        if name not in found:
            found[name] = folder / str(len(found))
            held = name == CODES
            source = shortened(FULL if held else case(name), folder / f"{len(found)}-checkpoint")
            options = {"dtype": "bfloat16", "parity": False, "tokenizer": False, "sms": (90,)}
            if held:
                given = (source, folder / "recipe", {}, None, attentions(source), torch.bfloat16)
                options["recipe"] = write_packed(*given)
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(launch_plan, "cubin", stand_in)
                export(source, found[name], "cuda", **options)
        return found[name]

    return get


@pytest.fixture(scope="module")
def lived(made: Made) -> Callable[[str], Run]:
    """Return a function from a case's name to what became of its sessions."""
    return cache(lambda name: on_fake_gpu(whole_life, str(made(name))))


@pytest.mark.parametrize("name", [PLAIN, MATRICES, CODES])
def test_whole_life(made: Made, lived: Callable[[str], Run], name: str):
    about, run = read_manifest(made(name)).about, lived(name)
    if name == PLAIN:  # and has weights of its own beside those
        assert about.graph.weights == "link"
    assert run.result == [[ROWS, about.vocab_size], "float32", [10, 9, 10]]
    plain, captured, *replayed = (run.log.after(call) for call in STEPS)
    if name == PLAIN:  # queries with keys and values, outputs, gates with ups, downs; and the head
        assert len(plain.of("blas")) == 4 * about.layers + 1
    assert not plain.of("graph") and len(captures(captured)) == 1
    # ONNX Runtime runs it twice, and captures it; then it is run as the step that was asked for.
    assert len(captured.launches) == 4 * len(plain.launches)
    for step in replayed:
        assert [event.name for event in step.launches] == [e.name for e in plain.launches]
        assert len(step.of("graph")) == 1 and not captures(step)
        assert not step.of("allocate", "free") and len(step.of("fill")) == len(plain.of("fill"))
    for step in (plain, *replayed):
        assert [len(step.copies(way)) for way in ("HtoD", "DtoH")] == [1, 1]
        assert sum(event.fields["bytes"] for event in step.copies("DtoD")) < 64 * ROWS
    # What running it again would change is kept meanwhile, and put back.
    fixed = sum(sizes(about.graph.states, 0, fixed=True))
    assert moved(captured) - moved(plain) * 4 == 2 * fixed
    grown = run.log.after("grown")
    assert moved(grown) - moved(plain) == sum(sizes(about.graph.states, FIRST))
    assert len(captures(run.log.after("captured again"))) == 1
    # Memory of a session that has ended, and its graph, are another's.
    assert not states_made(run.log.after("another prompt"), about.graph.states)
    step = run.log.after("another step")
    assert len(step.of("graph")) == 1 and not captures(step)


@pytest.mark.parametrize("name", [PLAIN, MATRICES])
def test_memory_within_graphs_is_theirs(lived: Callable[[str], Run], name: str):
    """What is no state of a graph lies in the provider's arena, where the next call has it again:
    so no memory is given back, nothing is kept there from one call to another, and all that uses
    it is in one stream, where graphs and calls follow each other."""
    events = lived(name).log.events
    places = {e.fields["name"]: i for i, e in enumerate(events) if e.kind == "note"}
    calls, end = Log(events[places["prompt"] : places["shrunk"]]), lived(name).log.after("shrunk")
    assert calls.of("graph") and not arena(calls, "free")
    assert arena(end, "free") == arena(calls, "allocate") and not arena(end, "allocate")
    work = calls.of("kernel", "blas", "copy", "fill", "graph")
    assert len({event.fields["stream"] for event in work}) == 1


def arena(log: Log, kind: str) -> list[int]:
    """Return the bytes of what is not ours, which is the driver's."""
    return sorted(e.fields["bytes"] for e in log.of(kind) if e.fields["api"] == "runtime")


def captures(log: Log) -> list[Any]:
    return [event for event in log.events if event.kind == "capture"]


def moved(log: Log) -> int:
    """Return the bytes that were copied on the device."""
    return sum(event.fields["bytes"] for event in log.copies("DtoD"))


def sizes(states: Any, capacity: int, fixed: bool = False) -> list[int]:
    """Return the bytes of states; fixed: only those that do not grow."""
    axes = {"B": ROWS, "C": capacity}
    shapes = [[axes.get(n, n) for n in s.shape] for s in states if not fixed or "C" not in s.shape]
    widths = [DTYPES[s.dtype].bytes for s in states if not fixed or "C" not in s.shape]
    return [int(np.prod(shape)) * width for shape, width in zip(shapes, widths, strict=True)]


def states_made(log: Log, states: Any) -> list[int]:
    made = set(sizes(states, FIRST)) - set(sizes(states, FIRST, fixed=True))
    return [e.fields["bytes"] for e in log.of("allocate") if e.fields["bytes"] in made]


def test_capturing_changes_no_state(made: Made):
    run = on_fake_gpu(shifted, str(made(MATRICES)), TRITON_INTERPRET="1")
    steps, repeated = run.result[:3], run.result[3]
    assert steps == [[False, True, True], [False, False, True], [False] * 3]
    assert repeated == [False, False, True]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "SM100": ({"sm": 100}, r"SM100.*no kernels.*there runs --target tensorrt, built on such a GPU"),
    "SM75": ({"sm": 75}, r"SM75.*no bfloat16.*there runs --target tensorrt-rtx$"),
    "another SM": ({"sm": 80}, "is for SM90, and this GPU, Fake GPU SM80, is SM80: export again"),
    "no GPU": ({"sm": None}, "no NVIDIA GPU is here; without one `lmcast inspect`"),
    "weights": ({"memory": 40_000}, r"weights are [\d,]+ bytes, and this GPU, .*, has 40,000 free"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(made: Made, what: str):
    facts, words = REFUSED[what]
    run = on_fake_gpu(refusal, str(made(PLAIN)), **facts)
    assert re.search(words, run.result), run.result
    assert "\n" not in run.result and not run.output.strip()


# What was done when memory ended -> what is said of it; and of a call after a call that failed, as
# some states may be those of the call before, others of the one that failed.
ENDS = {
    "load": "has too little free memory to load it$",
    "prompt": r"3 rows need [\d,]+ bytes of state, and this GPU|3 rows of 2 tokens at once need",
    "capture": "3 rows of 1 tokens at once need more memory",
    "ragged": "3 rows of 2 tokens at once need more memory",
    "growth": r"3 rows need [\d,]+ bytes of state, and this GPU|3 rows of 4 tokens at once need",
}
OVER = "a call of this session has failed, or is still running in another thread: begin another"


def test_memory_that_ends(made: Made):
    """Wherever it does, that is one line, and nothing stays behind."""
    run = on_fake_gpu(endings, str(made(MATRICES)), [0, 1, 2, 30, *range(82, 150, 4)])
    in_use = 0
    for event in run.log.events:
        in_use = event.fields.get("in_use", in_use)
        assert event.kind != "note" or in_use == 0
    for last, (said, again) in run.result:
        assert re.search(ENDS[last], said) and "\n" not in said
        state = "bytes of state" in said
        assert again == "" if state else last == "load" or again.startswith(OVER)
    assert {last for last, _ in run.result} == ENDS.keys() and not run.output.strip()


def test_packed(made: Made, tmp_path: Path):
    """The same weights, all from files of its own."""
    linked, packed = made(PLAIN), tmp_path / "packed"
    assert read_manifest(linked).about.graph.weights == "link"
    assert pack(linked, packed).linked is False
    one, other = weights(linked), weights(packed)
    assert one == other and b"FAKECUDA" in b"".join(one.values())
    assert on_fake_gpu(refusal, str(packed)).result == ""


def weights(engine: Path) -> dict[str, bytes]:
    """Return the bytes of the initializers of its graph."""
    initializers = read_graph(read_manifest(engine)).graph.initializers
    return {name: value.const_value.tobytes() for name, value in initializers.items()}


WHY = {"": {}, "is for SM90, and this GPU": {"sm": 89}}


@pytest.mark.parametrize("said", WHY)
def test_parity_is_proven_where_it_can_be(made: Made, said: str):
    found = on_fake_gpu(why_not, str(made(PLAIN)), **WHY[said]).result
    assert said in found and bool(said) == bool(found), found


def test_steps_beyond_the_last_graph_run_without(made: Made):
    run = on_fake_gpu(beyond, str(made(PLAIN)))
    plain, *others = (run.log.after(call) for call in STEPS)
    for step in others:
        assert step.kernels == plain.kernels and not step.of("graph") and not captures(step)
    # For each length what no other length fits into would be more and more.
    assert len(arena(run.log.after("prompts"), "allocate")) < 2


def test_libraries_of_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where NVIDIA's packages have them, which no system looks into."""
    folder = tmp_path / "nvidia/cu13/lib"
    folder.mkdir(parents=True)
    (folder / "liblmcast_none.so").symlink_to(_ctypes.__file__)
    assert not machine.load_library("liblmcast_none.so")
    monkeypatch.syspath_prepend(tmp_path)
    assert machine.load_library("liblmcast_none.so")


MISSING = {
    "no native library": "operators of ours, needs the package lmcast_native",
    "ONNX Runtime for CPUs": r"is installed for CPUs alone: pip uninstall -y onnxruntime-gpu, then",
    "two packages": "onnxruntime and onnxruntime-gpu are both installed, one over the other",
    "a library": r"libcublas\.so\.none, which ONNX Runtime's CUDA provider links, is not installed",
    "none": "^$",
}


def test_what_is_missing(made: Made):
    run = on_fake_gpu(refusals, str(made(PLAIN)))
    for fault, said in run.result.items():
        assert re.search(MISSING[fault], said) and "\n" not in said, (fault, said)
    assert run.result.keys() == MISSING.keys() and not run.output.strip()


def test_damaged_machine_code(made: Made, tmp_path: Path):
    """One byte of it, where no hash tells."""
    path = shutil.copytree(made(MATRICES), tmp_path / "engine")
    with_code = [f for f in path.rglob("*") if f.is_file() and STAND_IN in f.read_bytes()]
    for file in with_code:
        data = file.read_bytes()
        place = data.index(STAND_IN) + 40
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    write_manifest(path, read_manifest(path).fields)
    run = on_fake_gpu(refusal, str(path))
    assert "its machine code is damaged" in run.result and "\n" not in run.result
    assert not run.output.strip()


def test_what_an_engine_asks_for_is_counted(made: Made):
    """The same in two runs; a step captured is the step as it was."""
    sizes = ["--prompt-tokens", "5", "--new-tokens", "3", "--json"]
    command = [sys.executable, DRY, made(PLAIN), *sizes]
    one, again = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert one.returncode == 0 and one.stdout == again.stdout, one.stderr
    found = json.loads(one.stdout)
    plain, step = found["first step"], found["step"]
    launched = [what for what in plain if what.startswith(("kernels", "products"))]
    assert all(plain[what] == step[what] for what in launched) and plain["kernels of ONNX Runtime"]
    weights = sum(w.bytes for w in read_manifest(made(PLAIN)).about.weights.values())
    assert weights < found["load"]["most memory"] <= step["most memory"] <= found["peak memory"]


UNREAD: dict[str, dict[str, Any]] = {
    "--threads": {"threads": 1},
    "--prepack": {"prepack": True},
    "--portable": {"portable": True},
    "--threads, --prepack": {"threads": 2, "prepack": True},
}


@pytest.mark.parametrize("named", UNREAD)
def test_what_only_cpus_read_is_refused(made: Made, named: str):
    words = f"target cuda does not read {named}, as it runs on a GPU; leave that out, or export"
    for call in (load, bench):
        with pytest.raises(EngineError, match=f"{words} with --target cpu or onnx"):
            call(made(PLAIN), **UNREAD[named])
