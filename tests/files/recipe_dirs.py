"""Recipes made without calibration: weights packed by their largest values, written to disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from lmcast.calib.formats import WEIGHTS
from lmcast.calib.recipe import FP8_CACHE, Recipe, tensors
from lmcast.exporter import pipeline
from lmcast.exporter.dtypes import of_torch
from lmcast.exporter.weights.place import Entry, as_bytes, write
from lmcast.exporter.weights.recipe_files import hashed, write_recipe
from lmcast.exporter.weights.values import values
from lmcast.graphs.blocks.quantized import InputFormat


def write_packed(
    checkpoint: Path,
    directory: Path,
    formats: Mapping[str, str],
    inputs: InputFormat | None = None,
    caches: Sequence[str] = (),
    near: torch.dtype | None = None,
) -> Path:
    """Write a recipe of a checkpoint; formats: end of a parameter's name -> format of weights.

    inputs: of all linear layers whose weights are quantized; a static scale is 0.02, factors are 1.
    caches: attentions whose keys and values are held in FP8, with scales of 1. near: a dtype that
        holds all scales of integers.
    """
    source, identities = pipeline.identified(checkpoint)
    found = pipeline.understand(source, (), tokenizer=False)
    held, weights, layers = {}, {}, {}
    for name, parameter in found.model.named_parameters():
        format = next((f for end, f in formats.items() if name.endswith(end)), None)
        if format is None:
            continue
        weight = torch.cat(list(values(source, found.binding.sources[name])))
        packed = WEIGHTS[format].pack(weight.reshape(parameter.shape))
        at = tensors(name, packed.scheme)
        scales = packed.scales
        if near and packed.scheme.element.integer:
            scales = scales.to(near).to(scales.dtype)
        held |= {at.packed: packed.codes, at.scales: scales}
        if at.shared and packed.shared is not None:
            held[at.shared] = packed.shared
        weights[name] = packed.scheme
        layer = name.removesuffix(".weight")
        if inputs and isinstance(found.model.get_submodule(layer), nn.Linear):
            layers[layer] = inputs
            if inputs.static:
                held[f"{layer}.input_scale"] = torch.tensor(0.02)
            if inputs.smooth:
                held[f"{layer}.smooth"] = torch.ones(parameter.shape[-1])
    ends = ("key_scale", "value_scale")
    held |= {f"{name}.cache.{end}": torch.tensor(1.0) for name in caches for end in ends}
    directory.mkdir()
    write([_entry(name, tensor.contiguous()) for name, tensor in held.items()], directory)
    made = Recipe(weights, layers, dict.fromkeys(caches, FP8_CACHE))
    write_recipe(directory, made, hashed(identities))
    return directory


def _entry(name: str, tensor: torch.Tensor) -> Entry:
    data = as_bytes(tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor)
    named = of_torch(tensor.dtype).safetensors
    assert named is not None
    return Entry(name, named, tuple(tensor.shape), len(data), lambda: iter([data]))
