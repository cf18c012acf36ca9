"""Recipes on disk: recipe.json, and the weights that calibration packed."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmcast.calib.recipe import Recipe, RecipeError, read_recipe
from lmcast.exporter.checkpoint.files import read_capped
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.safetensors_header import read_header
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensors import Checkpoint, StoredTensor

RECIPE = "recipe.json"
VERSION = 1
MOST_BYTES = 64 << 20  # of recipe.json: a few hundred bytes for each weight


@dataclasses.dataclass(frozen=True)
class RecipeFiles:
    """A recipe of a directory, and the tensors that lie beside it."""

    path: Path
    recipe: Recipe
    tensors: Mapping[str, StoredTensor]

    def extend(self, source: Checkpoint) -> Checkpoint:
        """Return a checkpoint that has the tensors of the recipe too."""
        return dataclasses.replace(source, tensors={**source.tensors, **self.tensors})


def write_recipe(directory: Path, recipe: Recipe, identities: Iterable[SourceFile]) -> None:
    """Write recipe.json; the tensors lie in weights/*.safetensors already."""
    fields = {"version": VERSION, "source": identity(identities), **recipe.as_json()}
    text = json.dumps(fields, indent=1, sort_keys=True) + "\n"
    (directory / RECIPE).write_text(text, encoding="utf-8")


def identity(identities: Iterable[SourceFile]) -> list[dict[str, Any]]:
    """Return what tells one checkpoint from another: sizes and headers of its files."""
    return [
        {"name": s.path.name, "size": s.size, "header_sha256": s.header_sha256} for s in identities
    ]


def open_recipe(path: Path, identities: Iterable[SourceFile]) -> RecipeFiles:
    """Return the recipe of a directory; raises RecipeError if it is of another checkpoint."""
    file = path / RECIPE
    if not file.is_file():
        raise RecipeError(f"{path}: has no {RECIPE}; accepted: what `lmcast calibrate` writes")
    fields = parse_object(read_capped(file, MOST_BYTES), file)
    if fields.get("version") != VERSION:
        raise RecipeError(f"{file}: version is {fields.get('version')!r:.40}; accepted: {VERSION}")
    if fields.get("source") != json.loads(json.dumps(identity(identities))):
        raise RecipeError(f"{path}: was calibrated on another checkpoint than the one given")
    found: dict[str, StoredTensor] = {}
    for weights in sorted((path / "weights").glob("*.safetensors")):
        found |= read_header(weights.resolve(), weights)
    return RecipeFiles(path, read_recipe(fields), found)
