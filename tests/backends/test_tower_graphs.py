"""What each runtime makes of a tower: fused attention in all its layers, and nothing beside."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import tower_graphs
from fake_cuda import libraries
from onnx import parser
from plan_builder import Builder
from tiny.towers import TOWERS, Tiny

from lmcast.exporter import passes
from lmcast.exporter.backends.cuda_provider import kernels
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt import build
from lmcast.exporter.backends.tensorrt.plan import read_plan
from lmcast.exporter.backends.tensorrt.request import Sizes, resolve
from lmcast.exporter.backends.tensorrt.worker import Job
from lmcast.exporter.progress import silent

BY_TINY = pytest.mark.parametrize("tiny", TOWERS, ids=lambda tiny: tiny.arch)
SMS = (89, 120)
# Features up to 5 of a few layers, whose sums in fp32 are in another order.
CLOSE = 2e-5


def layers(graph: ir.Model) -> int:
    """Return how many blocks a tower has."""
    return len(
        {found[1] for node in graph.graph if (found := re.match(r"blocks\.(\d+)", node.name))}
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("towers")
    return {t.arch: tower_graphs.write(t, torch.float16, folder / t.arch) for t in TOWERS}


def run(graph: ir.Model, file: Path) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    file.write_bytes(ir.to_proto(graph).SerializeToString())
    return ort.InferenceSession(str(file), options).run(None, tower_graphs.given(graph))


@BY_TINY
def test_on_a_cpu(tiny: Tiny, tmp_path: Path):
    file = tower_graphs.write(tiny, torch.float32, tmp_path)
    graph, portable = ir.load(file), ir.load(file)
    passes.run(graph, passes.CPU)
    operators = Counter(node.op_type for node in graph.graph)
    assert operators["MultiHeadAttention"] == layers(portable) > 1
    # No scores, no copy of a weight or of what a layer computes.
    inside = {node.op_type for node in graph.graph if str(node.name).startswith("blocks.")}
    assert not inside & {"Attention", "MatMul", "Transpose", "Concat", "Slice", "Loop", "If"}
    before, after = (run(g, tmp_path / f"{i}.onnx") for i, g in enumerate((portable, graph)))
    for a, b in zip(before, after, strict=True):
        assert 0.1 < np.abs(a).max() < 50
        np.testing.assert_allclose(a, b, atol=CLOSE, rtol=CLOSE)


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    made = Builder()
    yield made
    made.close()


@BY_TINY
def test_plans(tiny: Tiny, files, builder: Builder, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build, "run", builder.run)
    file = files[tiny.arch]
    tokens = tower_graphs.TOKENS
    few = (tokens, tokens, tokens) if tiny.arch in tower_graphs.FIXED else (1, tokens, 64)
    axes = {"N": (1, 1, 4), "M": few, "K": (1, 4, 16)}
    request = resolve("tensorrt-rtx", SMS, 64, Sizes())
    job = Job(str(file), str(file.parent), tiny.arch, str(tmp_path / "plan"), request, axes)
    facts = build.build_checked(job, silent)
    count = layers(ir.load(file))
    assert facts["operators"] == {"Attention": {"native": count}}
    found = read_plan(tmp_path / "plan")
    assert found.sms == SMS and dict(found.fused) == {"_gemm_mha_v2": count}
    assert not found.plugins


def test_convolutions_are_refused_on_a_gpu():
    text = """<ir_version: 11, opset_import: ["" : 24]>
        g (float16[N,3,8,8] pixels, float16[4,3,3,3] w) => (float16[N,4,6,6] y) {
        y = Conv (pixels, w) }"""
    graph = ir.from_proto(parser.parse_model(text))
    passes.run(graph, passes.CUDA)
    with pytest.raises(BackendError, match=r"convolutions, which .* cuDNN; give --text-only, or"):
        kernels.embed(graph, (90,))


@pytest.mark.skipif(libraries.compiler() is None, reason="no C++ compiler")
def test_on_a_gpu(files):
    placed, log = tower_graphs.on_gpu({name: str(file) for name, file in files.items()})
    for name, file in files.items():
        count = layers(ir.load(file))
        assert list(placed[name]) == ["CUDAExecutionProvider"]
        assert placed[name]["CUDAExecutionProvider"].count("Attention") == count
        made = log.after(name)
        kernels = Counter(event.name for event in made.launches)
        assert kernels["flash::flash_fwd_kernel"] == count, kernels
        assert not made.copies("DtoH") and not made.copies("HtoD")
