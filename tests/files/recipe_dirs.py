"""Recipes made without calibration: weights packed by their largest values, written to disk."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lmcast.calib.formats import WEIGHTS
from lmcast.calib.recipe import Recipe, tensors
from lmcast.exporter import pipeline
from lmcast.exporter.graph.lowering import DTYPES
from lmcast.exporter.weights.place import Entry, as_bytes, write
from lmcast.exporter.weights.quantized import SAFETENSORS
from lmcast.exporter.weights.recipe_files import write_recipe
from lmcast.exporter.weights.values import values
from lmcast.graphs.blocks.quantized import InputFormat

KINDS = {**{dtype: SAFETENSORS[kind] for dtype, kind in DTYPES.items() if kind in SAFETENSORS}}
KINDS |= {torch.uint8: "U8", torch.float8_e8m0fnu: "F8_E8M0", torch.float8_e4m3fn: "F8_E4M3"}


def write_packed(
    checkpoint: Path, directory: Path, formats: Mapping[str, str], inputs: InputFormat | None = None
) -> Path:
    """Write a recipe of a checkpoint; formats: end of a parameter's name -> format of weights.

    inputs: of all linear layers whose weights are quantized; a static scale is 0.02.
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
        held |= {at.packed: packed.codes, at.scales: packed.scales}
        if at.shared and packed.shared is not None:
            held[at.shared] = packed.shared
        weights[name] = packed.scheme
        layer = name.removesuffix(".weight")
        if inputs and isinstance(found.model.get_submodule(layer), nn.Linear):
            layers[layer] = inputs
            if inputs.static:
                held[f"{layer}.input_scale"] = torch.tensor(0.02)
    directory.mkdir()
    write([_entry(name, tensor.contiguous()) for name, tensor in held.items()], directory)
    write_recipe(directory, Recipe(weights, layers), identities)
    return directory


def _entry(name: str, tensor: torch.Tensor) -> Entry:
    data = as_bytes(tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor)
    return Entry(name, KINDS[tensor.dtype], tuple(tensor.shape), len(data), lambda: iter([data]))
