"""The Triton kernels as a compiler sees them: for every SM, and on the GPU where there is one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

CHILD = Path(__file__).with_name("compiled_kernels.py")
# Every way to compile, for an SM with least shared memory.
WHOLE = (89,)
# For these, of each kernel those that take most at SM89: Triton 3.9 gives each way as much shared
# memory at 80 and 120 as there, or less. SM90 multiplies by instructions of its own, and has twice
# the memory.
ALIKE = (80, 90, 120)
# Bytes that a program may have: 99 KB where it is least (SM89, SM120).
SHARED = 99 << 10
# Bytes of a thread outside of its registers: some addresses are, no tile may be.
STACK = 160
KERNELS = {"route", "sort", "gate_up", "down_each", "combine"} | {
    *("write", "each_head", "attend_all", "attend_chosen", "combine_splits"),
    *("score_each", "select"),
    *("one_by_one", "look", "prepare", "carry", "read", "convolve"),
}


def compiled(*task: str) -> subprocess.Popen:
    """Start a process that compiles: without the interpreter.

    Not what this user's cache of Triton has, by all that a compilation depends on: source,
    constants, SM and tools.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CHILD), *task]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def answer(process: subprocess.Popen) -> list[dict]:
    out, errors = process.communicate(timeout=1200)  # a minute of CPU time, on a busy machine too
    assert process.returncode == 0, errors[-2000:]
    return json.loads(out)


def largest(built: list[dict]) -> set[int]:
    """Return the numbers of the steps with most shared memory, and most stack, of each kernel."""

    def most(kernel: str, of: str) -> int:
        own = [b for b in built if b["kernel"] == kernel]
        return max(own, key=lambda b: (b[of], b["shared"]))["step"]

    return {most(kernel, of) for kernel in KERNELS for of in ("shared", "stack")}


@pytest.fixture(scope="module")
def builds() -> Iterator[Callable[[int], list[dict]]]:
    """Return a function from an SM to what was built: for WHOLE in a process, then for ALIKE."""
    made: list[dict] = []
    started: list[subprocess.Popen] = []

    def build(archs: tuple[int, ...], *chosen: int) -> None:
        task = ("build", ",".join(map(str, archs)), *map(str, chosen))
        started.append(compiled(*task))
        made.extend(answer(started[-1]))

    def get(arch: int) -> list[dict]:
        if not made:
            build(WHOLE)
        if arch in ALIKE and all(b["sm"] != arch for b in made):
            build(ALIKE, *largest(get(89)))
        return [b for b in made if b["sm"] == arch]

    yield get
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arch", [*WHOLE, *ALIKE])
def test_every_kernel_compiles_without_a_gpu(arch: int, builds: Callable[[int], list[dict]]):
    built, known = builds(arch), {b["step"]: b["shared"] for b in builds(89)}
    assert {b["kernel"] for b in built} == KERNELS
    assert all(b["elf"] and b["arch"] for b in built)
    assert max(b["shared"] for b in built) <= SHARED
    assert max(b["stack"] for b in built) <= STACK
    # Then what fits SM89 fits ALIKE, also where it is not compiled for them.
    assert arch == 90 or all(b["shared"] <= known[b["step"]] for b in built)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_gpu
def test_kernels_agree_with_eager_on_this_gpu():
    wrong = [c for c in answer(compiled("run")) if not c["of_tolerance"] <= 1]
    assert not wrong
