"""Operators with kernels of ours as graphs of one node: with inputs, and what must come out.

`write` needs torch and Triton; `run` needs neither.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lmcast.exporter.dtypes import DTYPES

DATA, CASE, MODEL = "data", "case.json", "model.onnx"


def write(wanted: tuple[str, int, str, int], sm: int, folder: Path) -> None:
    """Write a case of tests/plugins/runtimes.py, with machine code for an SM."""
    import runtimes
    import torch
    from launch_cases import cast, growing_cases, opened
    from operators import REGISTRY, eager

    from lmcast.plugins.launch.launch_plan import MachineCode, compiled_plan

    name, number, kind, _ = wanted
    plugin, dtype = REGISTRY[name], runtimes.DTYPES[kind]
    args = cast(plugin.cases()[number], dtype)
    given, cases = opened(plugin, args, growing=True), growing_cases(plugin, args)
    code = MachineCode()
    text = compiled_plan(name, given, cases, (sm,), code)
    inputs = [arg for arg in args if isinstance(arg, torch.Tensor)]
    exact = runtimes.as_tuple(eager(plugin, cast(args, torch.float64)))
    folder.mkdir(parents=True)
    graph = runtimes.graph(bytes(code.blob), [(name, text, inputs)])
    (folder / MODEL).write_bytes(graph.SerializeToString())
    outputs = runtimes.outputs_of(text, inputs)
    about = {
        "inputs": [_described(x.dtype, x.shape) for x in inputs],
        "outputs": [[*_described(kind, shape), alias] for kind, alias, shape in outputs],
        "expected": [_described(x.dtype, x.shape) for x in exact],
        "close": vars(plugin.close[dtype]),
    }
    (folder / CASE).write_text(json.dumps(about))
    with (folder / DATA).open("wb") as file:
        for tensor in (*inputs, *exact):
            file.write(runtimes.bytes_of(tensor))


def _described(dtype: Any, shape: Any) -> list[Any]:
    return [str(dtype).removeprefix("torch."), list(shape)]


def run(folder: Path, gpu: Any) -> dict[str, float]:
    """Return the largest error of a case, and the largest in units of what it may be: 1 is right.

    gpu: a lmcast Cuda. The states that the node updates are bound in place.
    """
    about = json.loads((folder / CASE).read_text())
    content = memoryview((folder / DATA).read_bytes())
    arrays = []
    for kind, shape in (*about["inputs"], *about["expected"]):
        size = math.prod(shape) * DTYPES[kind].bytes
        arrays.append(np.frombuffer(content[:size], DTYPES[kind].numpy).reshape(shape))
        content = content[size:]
    inputs, expected = arrays[: len(about["inputs"])], arrays[len(about["inputs"]) :]
    close = about["close"]
    found = [
        far(got, want, **close)
        for got, want in zip(outputs(folder / MODEL, about, inputs, gpu), expected, strict=True)
        if want.size
    ]
    error, share = np.max(found, axis=0, initial=0.0)
    return {"error": float(error), "of bound": float(share)}


def far(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> tuple[float, float]:
    """Return the largest error, and the largest in units of what it may be: infinite for anything
    that is no number, and for any error where none is allowed."""
    wide, exact = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(wide == exact, 0.0, np.abs(wide - exact))
        share = np.where(off == 0, 0.0, off / (atol + rtol * np.abs(exact)))
    return float(off.max()), float(np.nan_to_num(share, nan=np.inf).max())


def outputs(model: Path, about: Any, inputs: list[np.ndarray], gpu: Any) -> list[np.ndarray]:
    from lmcast_native import LIBRARY

    from lmcast.exporter.backends.cuda_provider.machine import PROVIDER
    from lmcast.exporter.backends.ort import ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = (PROVIDER, {"user_compute_stream": str(gpu.stream)})
    with gpu.active():
        session = ort.InferenceSession(str(model), options, [provider], enable_fallback=0)
        binding, made = session.io_binding(), []
        held = [
            gpu.empty(x.shape, kind) for x, (kind, _) in zip(inputs, about["inputs"], strict=True)
        ]
        for i, (array, given) in enumerate(zip(held, inputs, strict=True)):
            if given.nbytes:
                gpu.put(array, np.ascontiguousarray(given))
            bind(binding.bind_input, f"in{i}", array)
        for i, (kind, shape, alias) in enumerate(about["outputs"]):
            made.append(held[alias] if alias >= 0 else gpu.zeros(tuple(shape), kind))
            bind(binding.bind_output, f"out{i}", made[-1])
        session.run_with_iobinding(binding)
        found = [np.empty(array.shape, DTYPES[array.dtype].numpy) for array in made]
        for to, array in zip(found, made, strict=True):
            if to.nbytes:
                gpu.get(to, array)
        gpu.wait()
    return found


def bind(how: Any, name: str, array: Any) -> None:
    how(name, "cuda", 0, DTYPES[array.dtype].onnx, list(array.shape), array.address)
