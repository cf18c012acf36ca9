"""A tiny engine, whose sessions are tried."""

import pytest
import torch
from session_calls import CONTEXT
from tiny.llama import config, tiny_llama

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
