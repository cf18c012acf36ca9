"""safetensors files, their index and config: read as the safetensors library does."""

from pathlib import Path

import torch
from files.malformed import tiny_llama
from safetensors import safe_open
from tiny.llama import shards

from fuzz.files import Files
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.weights.values import values
from lmcast.graphs import defined


def make(folder: Path) -> None:
    """Write a checkpoint of two shards, an index and a tokenizer."""
    tiny_llama(folder)
    shards()(folder)


def use(folder: Path, work: Path) -> str | None:
    """Read every tensor that a model takes, and compare it with the library's."""
    source = open_checkpoint(folder)
    binding = defined(source.config, source.tensors).binding
    for taken in binding.sources.values():
        for _ in values(source, taken):  # which refuses what is no number
            pass
    for name in binding.tensors():
        mine = torch.cat([block.reshape(-1) for block in source.blocks(name)])
        with safe_open(source.tensors[name].file, framework="pt") as file:
            theirs = file.get_tensor(name).reshape(-1)
        if mine.dtype != theirs.dtype or not torch.equal(mine, theirs):
            return f"{name} is not what the safetensors library reads"
    return None


PART = Files("weights", "weights of a checkpoint, its index and config", make, use)
