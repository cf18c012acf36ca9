"""Results of finished layers, written beside the destination: a killed run continues from them."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmcast.calib.recipe import Recipe, hold, tensors
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import of_torch
from lmcast.exporter.engine.lock import Place
from lmcast.exporter.weights.place import Entry, as_bytes, write
from lmcast.exporter.weights.recipe_files import RecipeFiles, open_recipe, write_recipe
from lmcast.graphs import Definition, fill
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.kv_cache_format import Fp8Cache
from lmcast.graphs.blocks.quantized import InputFormat, QuantizedLinear
from lmcast.graphs.weights.quantized import Scheme
from lmcast.graphs.weights.sources import Packed, View, load_into
from lmcast.plugins.errors import InputError

KEY = "key.json"
WHOLE = "whole"  # written last into the directory of a layer


class Work:
    """Directories that are recipes, each of one layer in one variant.

    Used in a with statement: once there are any, they stay only if it is left by an exception.
    number: which of several calibrations for one destination.
    """

    def __init__(
        self,
        place: Place,
        source: Checkpoint,
        identities: Iterable[SourceFile],
        number: int = 0,
    ):
        self.folder = place.beside(f"calibration-{number}" if number else "calibration")
        self.source, self.identities = source, list(identities)

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not any(self.folder.glob(f"*/{WHOLE}")):
            self.end()

    def begin(self, key: Mapping[str, Any]) -> None:
        """Keep the results of a run with the same key, and remove those of any other.

        key: everything that the results depend on.
        """
        file, text = self.folder / KEY, json.dumps(key, sort_keys=True).encode()
        if file.is_file() and file.read_bytes() == text:
            self._drop_damaged()
            return
        self.end()
        self.folder.mkdir()
        file.write_bytes(text)

    def _drop_damaged(self) -> None:
        """Remove results that are not as they were written: their layers are quantized again."""
        for whole in list(self.folder.glob(f"*/{WHOLE}")):
            try:
                open_recipe(whole.parent, self.identities)
            except InputError:
                shutil.rmtree(whole.parent)

    def end(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what only the run itself needs: hidden states."""
        for file in self.folder.iterdir():
            if file.is_file() and file.name != KEY:
                file.unlink()

    def has(self, index: int, variants: Iterable[str]) -> bool:
        return all((self._at(index, variant) / WHOLE).exists() for variant in variants)

    def put(self, index: int, variant: str, recipe: Recipe, values: Mapping[str, Tensor]) -> None:
        """Write the results of a layer."""
        folder = self._at(index, variant)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _, hashes = write((_entry(name, value) for name, value in values.items()), folder)
        write_recipe(folder, recipe, self.identities, hashes)
        (folder / WHOLE).touch()

    def get(self, index: int, variant: str) -> RecipeFiles:
        # Its hashes are known: `begin` has checked what was there, and `put` has written the rest.
        return open_recipe(self._at(index, variant), self.identities, whole=False)

    def publish(self, variant: str, layers: int, directory: Path) -> tuple[Recipe, dict[str, str]]:
        """Move the tensors of all layers into `directory`; return what belongs to them, and the
        hashes of their files."""
        parts = [self.get(index, variant) for index in range(layers)]
        hashes = {}
        (directory / "weights").mkdir()
        for index, part in enumerate(parts):
            (part.path / WHOLE).unlink()
            for file in part.files:
                moved = f"weights/layer-{index:04}-{Path(file.path).name}"
                (part.path / file.path).rename(directory / moved)
                hashes[moved] = file.sha256
        return joined(part.recipe for part in parts), hashes

    def _at(self, index: int, variant: str) -> Path:
        return self.folder / f"{variant}-{index:04}"


@contextmanager
def filled(found: Definition, part: nn.Module, source: Checkpoint) -> Iterator[nn.Module]:
    """Give a part of a model its weights, in fp32, for the duration of the block."""
    fill(found, part, source.read, torch.float32)
    try:
        yield part
    finally:
        part.to("meta")


def joined(parts: Iterable[Recipe]) -> Recipe:
    """Merge recipes, without their reports."""
    weights: dict[str, Scheme] = {}
    inputs: dict[str, InputFormat] = {}
    caches: dict[str, str] = {}
    for part in parts:
        weights |= part.weights
        inputs |= part.inputs
        caches |= part.caches
    return Recipe(weights, inputs, caches)


def install(model: Decoder, files: RecipeFiles, source: Checkpoint) -> None:
    """Give layers, which have their weights, those of a recipe, in place."""
    read, recipe = files.extend(source).read, files.recipe
    for name, scheme in recipe.weights.items():
        with torch.no_grad():
            values = model.get_parameter(name)
            load_into(values, Packed(View(name), tensors(name, scheme)), read)
        layer = name.removesuffix(".weight")
        if layer != name and not isinstance(model.get_submodule(layer), nn.Embedding):
            inputs = recipe.inputs.get(layer, InputFormat())
            smooth = read(f"{layer}.smooth") if inputs.smooth else None
            scale = read(f"{layer}.input_scale") if inputs.static else None
            round_inputs(model, layer, inputs, smooth, scale)
    for name, format in recipe.caches.items():
        scales = (read(f"{name}.cache.{leaf}") for leaf in Fp8Cache.wide)
        hold_cache(model, name, format, *scales)


def hold_cache(
    model: Decoder, name: str, format: str, key_scale: Tensor, value_scale: Tensor
) -> None:
    """Make attention cache keys and values in FP8 with scales ()."""
    cache = hold(model, name, format)
    cache.key_scale = nn.Parameter(key_scale.float(), requires_grad=False)
    cache.value_scale = nn.Parameter(value_scale.float(), requires_grad=False)


def round_inputs(
    model: nn.Module,
    name: str,
    inputs: InputFormat,
    smooth: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    """Make a linear layer round its inputs like this, and no other way; its parameters stay."""
    old = model.get_submodule(name)
    weight, bias = old.get_parameter("weight"), dict(old.named_parameters()).get("bias")
    outputs, width = weight.shape
    linear = nn.Linear(width, outputs, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = bias
    new: nn.Module = linear
    if inputs != InputFormat():
        new = QuantizedLinear(linear, inputs)
        for leaf, value in (("smooth", smooth), ("input_scale", scale)):
            if value is not None:
                setattr(new, leaf, nn.Parameter(value.float(), requires_grad=False))
    model.set_submodule(name, new)


def _entry(name: str, value: Tensor) -> Entry:
    value = value.contiguous()

    def blocks() -> Iterator[memoryview]:
        yield as_bytes(value)

    named = of_torch(value.dtype).safetensors
    assert named is not None
    return Entry(name, named, tuple(value.shape), value.nbytes, blocks)
