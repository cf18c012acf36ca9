"""Tiny engines, whose sessions are tried: of a text model, and of one that takes pictures."""

from pathlib import Path

import pytest
import torch
from picture_calls import WIDE, A, B
from PIL import Image
from session_calls import CONTEXT
from tiny.llama import config, tiny_llama
from tiny.pictures import tiny_mistral3

from lmcast.exporter import Engine, export


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("session")
    tiny_llama(folder / "checkpoint")
    config(max_position_embeddings=CONTEXT)(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", parity=False)
    torch.set_num_threads(before)
    return Engine(folder / "engine", threads=1)


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of one checkpoint: whole, and its text alone; and the pictures as files."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pictures")
    tiny_mistral3(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", parity=False)
    export(folder / "checkpoint", folder / "text", parity=False, text_only=True)
    for name, picture in (("a", A), ("b", B), ("wide", WIDE)):
        Image.fromarray(picture).save(folder / f"{name}.png")
    torch.set_num_threads(before)
    return folder
