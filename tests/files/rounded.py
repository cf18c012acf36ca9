"""Recipes by rounding to nearest, without calibration: how tests quantize tiny checkpoints."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from lmcast.calib.formats import WEIGHTS
from lmcast.calib.recipe import Recipe, tensors
from lmcast.exporter.pipeline import identified, understand
from lmcast.exporter.weights.place import Entry, as_bytes, write
from lmcast.exporter.weights.recipe_files import hashed, write_recipe
from lmcast.exporter.weights.values import values
from lmcast.graphs.blocks.quantized import InputFormat

NAMES = {
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float32: "F32",
    torch.float16: "F16",
}


def round_weights(
    checkpoint: Path,
    directory: Path,
    choose: Callable[[str, torch.nn.Parameter], str | None],
    inputs: Mapping[str, InputFormat] | None = None,
    more: Mapping[str, torch.Tensor] | None = None,
    caches: Mapping[str, str] | None = None,
) -> Path:
    """Write a recipe; choose: parameter -> the name of its format, None to leave it as it is.

    more: scales and the like of `inputs` and `caches`, by the names of their parameters.
    """
    source, identities = identified(checkpoint)
    found = understand(source, (), False)
    weights, made = {}, dict(more or {})
    for name, parameter in found.model.named_parameters():
        format = choose(name, parameter)
        if format is None:
            continue
        blocks = list(values(source, found.binding.sources[name]))
        weight = torch.cat([block.flatten() for block in blocks]).reshape(parameter.shape)
        packed = WEIGHTS[format].pack(weight.float())
        weights[name] = scheme = WEIGHTS[format].scheme
        at = tensors(name, scheme)
        made |= {at.packed: packed.codes, at.scales: packed.scales}
        if at.shared is not None:
            assert packed.shared is not None
            made[at.shared] = packed.shared
    directory.mkdir()
    write([entry(name, tensor) for name, tensor in made.items()], directory)
    write_recipe(directory, Recipe(weights, inputs or {}, caches or {}), hashed(identities))
    return directory


def entry(name: str, tensor: torch.Tensor) -> Entry:
    stored = tensor.contiguous()
    shape, size = tuple(stored.shape), stored.numel() * stored.dtype.itemsize
    return Entry(name, NAMES[stored.dtype], shape, size, partial(_once, stored))


def _once(tensor: torch.Tensor):
    yield as_bytes(tensor)
