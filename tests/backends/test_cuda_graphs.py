"""Every graph of target cuda equals its eager definition: run by the CPU, in fp32."""

from pathlib import Path

import pytest
import torch
from cuda_twins import twin
from engine_errors import TOKENS, bound, prefill_error, ragged_error, steps_error
from safetensors.torch import load_file, save_file
from tiny import CASES, Case, make, prompt

from lmcast.exporter import export, load, targets
from lmcast.graphs import load as load_eager


def shortened(case: Case, directory: Path) -> Path:
    """Write a checkpoint in bfloat16."""
    file = make(case, directory) / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t.bfloat16() for n, t in tensors.items()}, file, {"format": "pt"})
    return directory


def as_in_bfloat16(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model with the factors that its definition has rounded to bfloat16."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, dict) and torch.bfloat16 in value:
                setattr(module, name, dict.fromkeys(value, value[torch.bfloat16]))
    return model.eval()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.no_grad()
def test_graph_equals_eager(case: Case, tmp_path: Path, monkeypatch, report):
    monkeypatch.setitem(targets.TARGETS, "cuda", twin())
    checkpoint = shortened(case, tmp_path / "checkpoint")
    options = {"parity": False, "tokenizer": False, "context": 64}
    export(checkpoint, tmp_path / "engine", "cuda", **options)
    engine = load(tmp_path / "engine", threads=1)
    rough, exact = (
        as_in_bfloat16(load_eager(checkpoint, dtype)) for dtype in (torch.float32, torch.float64)
    )
    ids = prompt(2, TOKENS)
    limit = bound(rough(ids), exact(ids))
    row = {"case": case.name, "prefill": prefill_error(engine, rough, ids)}
    row["step by step"] = steps_error(engine, rough, ids)
    row["ragged of 3"] = ragged_error(engine, rough, prompt(3, TOKENS))
    row["bound"] = limit
    report("Graphs of target cuda against eager, fp32", row)
    assert max(row["prefill"], row["step by step"], row["ragged of 3"]) <= limit
