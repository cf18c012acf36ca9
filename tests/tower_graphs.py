"""Graphs of towers with drawn weights, and calls of them, for what each runtime makes of one."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import transformers
from fake_cuda import note, on_fake_gpu
from fake_cuda.log import Log
from tiny.towers import TEXT, Tiny

from lmcast.exporter import passes
from lmcast.exporter.graph.tower import tower_graph
from lmcast.graphs import archs
from lmcast.graphs.archs.multimodal import Multimodal

# Of one grid; towers of pictures of one size have as many tokens.
PICTURES, TOKENS, MERGED = 2, 9, 4
SIZES = {"N": PICTURES, "M": TOKENS, "K": MERGED}
FIXED = ("gemma3", "llama4")  # whose pictures are of one size


def write(tiny: Tiny, dtype: torch.dtype, folder: Path) -> Path:
    """Write the portable graph of a tower, and its weights beside it."""
    found = archs.get(tiny.arch)
    assert isinstance(found, Multimodal) and found.tower is not None
    settings = getattr(transformers, tiny.model).config_class(**tiny.settings).to_json_string()
    config = found.tower.read(json.loads(settings), tiny.arch)
    text = SimpleNamespace(hidden_size=TEXT["hidden_size"], rms_norm_eps=1e-6)
    with torch.device("meta"):
        tower = found.tower.build(config, text).eval().to(dtype)
    graph, data, drawn = tower_graph(tower, ""), b"", np.random.default_rng(0)
    for name, value in graph.graph.initializers.items():
        assert value.shape is not None and value.dtype is not None
        shape = value.shape.numpy()
        numbers = drawn.standard_normal(shape) / math.sqrt(math.prod(shape[1:]) or 1)
        numbers = (numbers + ("norm" in name)).astype(value.dtype.numpy())
        value.const_value = ir.ExternalTensor(
            "weights", len(data), numbers.nbytes, value.dtype, shape=value.shape, name=name,
            base_dir=str(folder),
        )  # fmt: skip
        data += numbers.tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(data)
    (file := folder / "vision.onnx").write_bytes(ir.to_proto(graph).SerializeToString())
    return file


def given(graph: ir.Model) -> dict[str, np.ndarray]:
    """Return inputs of a call; places are few, so that every table has them."""
    return dict(_given(graph, np.random.default_rng(1)))


def _given(graph: ir.Model, drawn: Any) -> Iterator[tuple[str, np.ndarray]]:
    for value in graph.graph.inputs:
        assert value.shape is not None
        shape = [n if isinstance(n, int) else SIZES[str(n.value)] for n in value.shape]
        if value.dtype == ir.DataType.INT64:
            yield str(value.name), drawn.integers(0, 4, shape)
        else:
            yield str(value.name), drawn.standard_normal(shape).astype(np.float32)


def on_gpu(files: dict[str, str]) -> tuple[dict[str, dict[str, list[str]]], Log]:
    """Return what `encoded` does on a fake GPU, and the log."""
    run = on_fake_gpu(encoded, files, timeout=600)
    return run.result, run.log


def encoded(files: dict[str, str]) -> dict[str, dict[str, list[str]]]:
    """Run towers for the CUDA provider, name -> portable graph; return where operators lie.

    Notes in the log say where the second call of each begins, `NAME`.
    """
    import onnxruntime as ort

    found = {}
    for name, file in files.items():
        graph = ir.load(file)
        passes.run(graph, passes.CUDA)
        rewritten = Path(file).with_name("cuda.onnx")
        rewritten.write_bytes(ir.to_proto(graph).SerializeToString())
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        made = ort.InferenceSession(str(rewritten), options, ["CUDAExecutionProvider"])
        binding, held = made.io_binding(), []
        for key, array in given(graph).items():
            held.append(ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
            binding.bind_ortvalue_input(key, held[-1])
        for value in made.get_outputs():
            binding.bind_output(value.name, "cuda")
        for which in (f"{name}, first", name):
            note(which)
            made.run_with_iobinding(binding)
            note(f"{which}, done")
        parts = made.get_provider_graph_assignment_info()
        found[name] = {p.ep_name: [n.op_type for p in parts for n in p.get_nodes()] for p in parts}
    return found
