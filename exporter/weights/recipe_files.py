"""Recipes on disk: recipe.json, and the weights that calibration has packed."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmcast.calib.recipe import Recipe, RecipeError, apply, read_recipe
from lmcast.exporter.checkpoint.files import read_capped
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.safetensors_header import read_header
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensors import Checkpoint, StoredTensor
from lmcast.exporter.engine.names import RECIPE_JSON
from lmcast.exporter.weights.quantized import format_name
from lmcast.graphs import Definition
from lmcast.graphs.weights.sources import shape_of

VERSION = 1
MOST_BYTES = 64 << 20  # of recipe.json: a few hundred bytes for each weight


@dataclasses.dataclass(frozen=True)
class RecipeFiles:
    """A recipe from a directory, with its tensors."""

    path: Path
    recipe: Recipe
    tensors: Mapping[str, StoredTensor]
    sha256: str  # of recipe.json

    def extend(self, source: Checkpoint) -> Checkpoint:
        """Return a checkpoint with the tensors of the recipe added."""
        return dataclasses.replace(source, tensors={**source.tensors, **self.tensors})

    def summary(self, found: Definition) -> dict[str, Any]:
        """Return the recipe's entry in engine.json: numbers of parameters by format, and of
        layers by the formats of inputs and of caches."""
        formats, inputs = Counter[str](), Counter[str]()
        for name, scheme in self.recipe.weights.items():
            formats[format_name(scheme)] += found.model.get_parameter(name).numel()
        for given in self.recipe.inputs.values():
            inputs[given.format or "unrounded"] += 1
        counts = {
            "formats": formats,
            "inputs": inputs,
            "caches": Counter(self.recipe.caches.values()),
        }
        return {"sha256": self.sha256, **{what: dict(count) for what, count in counts.items()}}

    def take(self, found: Definition, source: Checkpoint) -> tuple[Definition, Checkpoint]:
        """Apply the recipe: return the quantized definition, and the checkpoint with its tensors.

        Raises RecipeError or WeightError where the recipe belongs to another model.
        """
        extended = self.extend(source)
        quantized = apply(found, self.recipe, frozenset(self.tensors))
        shapes = {name: stored.shape for name, stored in extended.tensors.items()}
        for name, parameter in quantized.model.named_parameters():
            shape = shape_of(quantized.binding.sources[name], shapes)
            if shape != tuple(parameter.shape):
                raise RecipeError(
                    f"{self.path}: is of another model: {name} has shape {list(shape)} there, and"
                    f" {list(parameter.shape)} in this"
                )
        return quantized, extended


def write_recipe(directory: Path, recipe: Recipe, identities: Iterable[SourceFile]) -> None:
    """Write recipe.json; the tensors lie in weights/*.safetensors already."""
    fields = {"version": VERSION, "source": identity(identities), **recipe.as_json()}
    text = json.dumps(fields, indent=1, sort_keys=True) + "\n"
    (directory / RECIPE_JSON).write_text(text, encoding="utf-8")


def identity(identities: Iterable[SourceFile]) -> list[dict[str, Any]]:
    """Return the identity of a checkpoint: sizes and headers of its files."""
    return [
        {"name": s.path.name, "size": s.size, "header_sha256": s.header_sha256} for s in identities
    ]


def open_recipe(path: Path, identities: Iterable[SourceFile]) -> RecipeFiles:
    """Return the recipe of a directory; raises RecipeError if it is of another checkpoint."""
    file = path / RECIPE_JSON
    if not file.is_file():
        raise RecipeError(f"{path}: has no {RECIPE_JSON}; accepted: what `lmcast calibrate` writes")
    data = read_capped(file, MOST_BYTES)
    fields = parse_object(data, file)
    if fields.get("version") != VERSION:
        raise RecipeError(f"{file}: version is {fields.get('version')!r:.40}; accepted: {VERSION}")
    if fields.get("source") != json.loads(json.dumps(identity(identities))):
        raise RecipeError(f"{path}: was calibrated on another checkpoint than the one given")
    found: dict[str, StoredTensor] = {}
    for weights in sorted((path / "weights").glob("*.safetensors")):
        found |= read_header(weights.resolve(), weights)
    return RecipeFiles(path, read_recipe(fields), found, hashlib.sha256(data).hexdigest())


def recipe_of(
    engine: Path,
    fields: Mapping[str, Any],
    recipe: Path | None,
    identities: Iterable[SourceFile],
) -> RecipeFiles | None:
    """Return the recipe that an engine was made with, None for none.

    fields: of its engine.json. Raises RecipeError where another one is given, or one is missing.
    """
    made_with = fields.get("recipe")
    if recipe is None:
        if made_with is None:
            return None
        raise RecipeError(
            f"{engine}: was made with a recipe; give it (--recipe DIR), whose recipe.json has the"
            f" SHA-256 {made_with['sha256']}"
        )
    if made_with is None:
        raise RecipeError(f"{engine}: was made without a recipe; leave out --recipe")
    files = open_recipe(recipe, identities)
    if files.sha256 != made_with["sha256"]:
        raise RecipeError(
            f"{recipe}: is another recipe than {engine} was made with, whose recipe.json has the"
            f" SHA-256 {made_with['sha256']}; accepted is that one"
        )
    return files
