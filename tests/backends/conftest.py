"""Engines with plans, on a fake GPU and a fake library."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
from fake_driver import Driver
from fake_tensorrt import ENGINES, GPUS, add_plan
from planned import MODELS
from tiny import case, make
from tiny.llama import tiny_llama

from lmcast.exporter import Engine, export
from lmcast.exporter.backends import cuda


@pytest.fixture(scope="session")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a model's name to an engine of it, exported once."""
    folder = tmp_path_factory.mktemp("plans")
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            checkpoint, made[name] = folder / f"{len(made)}", folder / f"{len(made)}-engine"
            tiny_llama(checkpoint) if name == "llama" else make(case(name), checkpoint)
            tokenizer = name == "llama"
            export(checkpoint, made[name], "onnx", parity=False, tokenizer=tokenizer, context=64)
        return made[name]

    return get


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """A fake GPU and a fake library."""
    GPUS.append(Driver())
    monkeypatch.setattr(cuda, "bindings", lambda: GPUS[-1])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.module())
    yield GPUS[-1]
    assert GPUS[-1].depth == 0
    ENGINES.clear(), GPUS.clear()


@pytest.fixture
def both(portable, gpu, tmp_path: Path):
    """Return a function from a model and sizes to an engine with a plan, and the portable one."""

    def get(name: str, entry: Any = None, **sizes: int) -> tuple[Engine, Engine]:
        aliased, in_place = MODELS[name]
        entry = {"in_place": in_place, **(entry or {})}
        planned = add_plan(portable(name), tmp_path / "planned", aliased, entry=entry, **sizes)
        return Engine(planned), Engine(planned, threads=1, portable=True)

    return get
