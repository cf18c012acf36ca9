"""Graphs of target cuda equal their eager definition: run by the CPU, in fp32.

Whole models are not run on the fake GPU, whose kernels of ONNX Runtime are empty.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from cuda_calls import shortened
from cuda_twins import twin
from engine_errors import errors
from tiny import CASES, Case
from torch import Tensor

from lmcast.exporter import export, load, targets
from lmcast.exporter.engine.manifest import verify
from lmcast.exporter.pack import pack
from lmcast.exporter.passes.whole_windows import whole_windows
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.weights import made
from lmcast.graphs import load as load_eager
from lmcast.graphs.blocks.attention import Positions
from lmcast.graphs.blocks.rope import Rotation, rotate, rotate_interleaved


def as_in_bfloat16(model: torch.nn.Module, tables: bool) -> torch.nn.Module:
    """Return a model with the numbers that its definition has rounded to bfloat16.

    tables: the angles of rotations too, which the graph holds as weights.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, dict) and torch.bfloat16 in value:
                setattr(module, name, dict.fromkeys(value, value[torch.bfloat16]))
        if tables and isinstance(module, Positions) and module.rotation in NARROW:
            module.rotation = partial(turned, module.rotation)
    return model.eval()


# Those that rotate in the dtype of the model, by angles that are rounded to it.
NARROW = (rotate, rotate_interleaved)


def turned(rotation: Rotation, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    return rotation(x, cos.bfloat16().to(cos.dtype), sin.bfloat16().to(sin.dtype), heads)


def has_tables(engine: Path) -> bool:
    """Whether the graph of an engine holds the angles of rotations."""
    names = ir.load(engine / "engine.onnx").graph.initializers
    return any(name.endswith(".table") for name in names)


# Each with passes or bodies of its own: packed products; products with biases, not packed; norms of
# heads; windows and norms in fp32; sinks and experts; widths, chunks and factors without a kernel;
# latents; chosen positions; caches that are shared; gains that 16 bits do not hold; convolutions.
NAMES = (
    "llama/head_dim, MHA, gelu",
    "qwen2/plain",
    "qwen3/plain",
    "gemma2/plain",
    "gpt_oss/plain",
    "mimo_v2_flash/derived layers",
    "llama4_text/plain",
    "grok2/temperature, caps",
    "deepseek_v32/plain",
    "gemma3n_text/one of each shared",
    "minimax_m1/whole heads, other gains",
    "qwen3_next/plain",
)
WIDE = "gemma2/plain"  # is taken for one with wide windows, of which all tokens are kept
SAMPLE = [case for case in CASES if case.name in NAMES]


IDS = [[1, 2, 3]]


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
@torch.no_grad()
def test_graph_equals_eager(case: Case, tmp_path: Path, monkeypatch, report):
    monkeypatch.setitem(targets.TARGETS, "cuda", twin())
    monkeypatch.setattr(made, "LEAST", 0)  # bytes of a weight that is kept in the graph
    if case.name == WIDE:
        monkeypatch.setattr(
            sys.modules[whole_windows.__module__], "WIDEST", 0
        )  # of the windows that are moved
    checkpoint = shortened(case, tmp_path / "checkpoint")
    options = {"parity": False, "tokenizer": False, "context": 64}
    export(checkpoint, tmp_path / "engine", "cuda", **options)
    engine = load(tmp_path / "engine", threads=1)
    if case.name == WIDE:
        assert {state.shape[2] for state in engine.manifest.about.graph.states} == {"C"}
    tables = has_tables(engine.directory)
    rough, exact = (
        as_in_bfloat16(load_eager(checkpoint, dtype), tables)
        for dtype in (torch.float32, torch.float64)
    )
    found = errors(engine, rough, exact)
    report("Graphs of target cuda against eager, fp32", found.row(case=case.name))
    assert found.share <= 1
    if engine.linked:
        packs(engine, checkpoint)


def packs(engine: Engine, checkpoint: Path) -> None:
    """Check that an engine computes the same elsewhere, and without its checkpoint."""
    logits = engine.logits(IDS)
    moved = engine.directory.rename(engine.directory.with_name("moved"))
    np.testing.assert_array_equal(load(moved, threads=1).logits(IDS), logits)
    pack(moved)
    shutil.rmtree(checkpoint)
    packed = load(moved, threads=1, verify=True)
    np.testing.assert_array_equal(packed.logits(IDS), logits)
    assert not packed.linked and not verify(moved)
