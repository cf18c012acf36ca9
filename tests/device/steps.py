"""The steps of the check, each `python steps.py NAME FOLDER`: prints one JSON line a result.

`ok` is whether what the line says is as it must be; steps that only measure say true. Lines are
written as they are found: what a step said before it hung is kept.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

PROMPTS = (512, 4096)  # tokens of which the time to the first token is measured
NEW = 32
Line = dict[str, Any]


def at_hand() -> Any:
    """Return the GPU, with the libraries of ONNX Runtime's provider; raises InputError."""
    from lmcast.exporter.backends.cuda import Cuda
    from lmcast.exporter.backends.cuda_provider import machine

    machine.require_package()
    gpu = Cuda()
    machine.require_sm(gpu.sm)
    machine.load_libraries()
    return gpu


def load(folder: Path) -> Iterator[Line]:
    """The GPU, the libraries, and a product in bf16 that is right to its last bit but one."""
    from lmcast.exporter.backends.ort import ort

    gpu = at_hand()
    yield {"gpu": gpu.name, "sm": gpu.sm, "bytes": gpu.bytes, "onnxruntime": ort.__version__}
    from device import operators

    yield bounded({"product": "bf16"}, operators.run(folder / "product", gpu))


def plugins(folder: Path) -> Iterator[Line]:
    """Every case of every operator of ours, in each dtype, within its own tolerance of fp64."""
    from device import operators

    gpu = at_hand()
    for case in sorted((folder / "operators").iterdir()):
        yield bounded({"case": case.name}, operators.run(case, gpu))


def bounded(line: Line, found: dict[str, float]) -> Line:
    return {**line, **found, "ok": found["of bound"] <= 1}


def engines(folder: Path) -> Iterator[Line]:
    """Engines of tiny families: as parity has it, and steps bit-equal without CUDA graphs."""
    import numpy as np

    from device import families
    from lmcast.exporter.backends.cuda_provider import runner
    from lmcast.exporter.runtime.engine import Engine

    for place in sorted((folder / "engines").iterdir()):
        results = []
        for most in (runner.MOST_GRAPHS, 0):
            runner.MOST_GRAPHS = most
            results.append(families.run(Engine(place / "engine"), place))
        captured, plain = results
        equal = all(np.array_equal(a, b) for a, b in zip(captured, plain, strict=True))
        found = families.compared(captured, place)
        yield {"family": place.name, "graphs bit-equal": equal, **found,
               "ok": equal and found["of bound"] <= 1}  # fmt: skip


def kernels(folder: Path) -> Iterator[Line]:
    """How long our kernels take at the sizes of released models, beside what bytes or products do.

    By PyTorch and Triton of the machine itself.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    measured = importlib.import_module("device.kernel_times")
    yield from measured.lines()


def experts(folder: Path) -> Iterator[Line]:
    """ONNX Runtime's MoE at the sizes at which `kernels` measures our experts."""
    from device import onnxruntime_experts

    yield from onnxruntime_experts.lines(at_hand(), folder / "experts")


def models(folder: Path) -> Iterator[Line]:
    """Whole models of random weights: time to the first token, a step, and memory."""
    from device import full_size
    from lmcast.exporter.bench import bench

    places = sorted((folder / "models").iterdir())
    for place in places:
        full_size.remove(place)  # what a step that was killed has left
    for place in places:
        full_size.fill(place)
        for tokens in PROMPTS:
            report = asdict(bench(place / "engine", prompt_tokens=tokens, new_tokens=NEW, runs=1))
            yield {"model": place.name, **{key: report[key] for key in (
                "prompt_tokens", "prefill_tokens_per_second", "decode_tokens_per_second",
                "bandwidth_share", "peak_gpu", "load_seconds",
            )}}  # fmt: skip
        full_size.remove(place)


# Name -> the step, its limit in seconds, together 540, and the part that it wants.
STEPS: dict[str, tuple[Callable[[Path], Iterator[Line]], int, str]] = {
    "load": (load, 30, "operators"),
    "plugins": (plugins, 60, "operators"),
    "engines": (engines, 80, "engines"),
    "kernels": (kernels, 90, "site"),
    "experts": (experts, 40, "operators"),
    "models": (models, 240, "models"),
}


def main(name: str, folder: Path) -> None:
    begin = time.perf_counter()
    for line in STEPS[name][0](folder):
        seconds = round(time.perf_counter() - begin, 1)
        print(json.dumps({"step": name, "ok": True, **line, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).absolute())
