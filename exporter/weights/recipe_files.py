"""Recipes on disk: recipe.json, and the weights that calibration has packed."""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmcast.calib.recipe import Recipe, RecipeError, apply, read_recipe, require_tensors
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.safetensors_header import read_header
from lmcast.exporter.checkpoint.tensors import Checkpoint, StoredTensor
from lmcast.exporter.engine.description import MadeWith, RecipeQuality
from lmcast.exporter.engine.names import RECIPE_JSON
from lmcast.exporter.engine.sealed import (
    DamagedError,
    FileEntry,
    Problem,
    check_seal,
    differs,
    digests,
    list_files,
    parse_object,
    read_files,
    read_regular,
    seal,
    walk,
    wrong_contents,
)
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.weights.quantized import format_name
from lmcast.graphs import Definition
from lmcast.graphs.blocks.kv_cache_format import Fp8Cache
from lmcast.graphs.weights.sources import shape_of

VERSION = 3  # 1 had no hashes, 2 none of its checkpoint
AGAIN = "calibrate again"
WEIGHTS = "weights"  # the folder of tensors


@dataclasses.dataclass(frozen=True)
class RecipeFiles:
    """A recipe from a directory, with its tensors."""

    path: Path
    recipe: Recipe
    tensors: Mapping[str, StoredTensor]
    files: tuple[FileEntry, ...]  # of tensors
    sha256: str  # of recipe.json, and thereby of all of it

    def extend(self, source: Checkpoint) -> Checkpoint:
        """Return a checkpoint with the tensors of the recipe added."""
        return dataclasses.replace(source, tensors={**source.tensors, **self.tensors})

    def summary(self, found: Definition) -> dict[str, Any]:
        """Return the recipe's entry in engine.json: numbers of parameters by format, of layers by
        the formats of inputs and of caches, and what it has lost."""
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
        lost = self.recipe.quality
        quality = lost and RecipeQuality(lost.text, lost.tokens, lost.dtype, lost.kl)
        return {
            "sha256": self.sha256,
            **{what: dict(count) for what, count in counts.items()},
            "quality": quality and dataclasses.asdict(quality),
        }

    def take(self, found: Definition, source: Checkpoint) -> tuple[Definition, Checkpoint]:
        """Apply the recipe: return the quantized definition, and the checkpoint with its tensors.

        Raises RecipeError or WeightError where the recipe belongs to another model, or has scales
        that are not above 0.
        """
        measured, vocabulary = self.recipe.quality, found.config.vocab_size
        if measured and (largest := max(map(max, measured.ids))) >= vocabulary:
            raise RecipeError(
                f"{self.path}: is of another model: it was measured on token {largest}, of"
                f" {vocabulary} in this"
            )
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
        self._require_factors(extended)
        return quantized, extended

    def _require_factors(self, source: Checkpoint) -> None:
        """Refuse scales and factors that nothing can have measured; raises RecipeError."""
        inputs, caches = self.recipe.inputs.items(), self.recipe.caches
        names = [f"{layer}.input_scale" for layer, given in inputs if given.static]
        names += [f"{layer}.smooth" for layer, given in inputs if given.smooth]
        names += [f"{layer}.cache.{scale}" for layer in caches for scale in Fp8Cache.wide]
        for name in names:
            value = source.read(name)
            wrong = value[~((value > 0) & value.isfinite())]
            if wrong.numel():
                raise RecipeError(
                    f"{self.path}: {name} holds {wrong[0].item():.3g}; accepted: finite numbers"
                    f" above 0; {AGAIN}"
                )


def write_recipe(
    directory: Path,
    recipe: Recipe,
    identities: Sequence[SourceFile],
    hashes: Mapping[str, str] | None = None,
) -> None:
    """Write recipe.json; the tensors lie in weights/*.safetensors already.

    identities: of the checkpoint's files, with their sha256. hashes: known sha256 of the tensors'
    files by relative path. Raises RecipeError for a report of numbers that
    are not finite.
    """
    found = {path: status for path, status in walk(directory) if path.startswith(f"{WEIGHTS}/")}
    fields = {
        "version": VERSION,
        "source": identity(identities),
        "source_sha256": contents(identities),
        "files": list_files(directory, found, hashes or {}),
        **recipe.as_json(),
    }
    try:
        data = seal(fields)
    except ValueError as error:
        raise RecipeError(f"what was measured is not finite ({error}): no recipe") from None
    (directory / RECIPE_JSON).write_bytes(data)


def identity(identities: Iterable[SourceFile]) -> list[dict[str, Any]]:
    """Return the identity of a checkpoint: sizes and headers of its files."""
    return [
        {"name": s.path.name, "size": s.size, "header_sha256": s.header_sha256} for s in identities
    ]


def contents(identities: Iterable[SourceFile]) -> list[str | None]:
    """Return the sha256 of all bytes of every file of a checkpoint."""
    return [file.sha256 for file in identities]


def hashed(files: Sequence[SourceFile], progress: Progress = silent) -> list[SourceFile]:
    """Return files with the sha256 of each, read where it is not known.

    Checkpoints of one architecture have the same sizes and headers: a model and what was made of it
    by fine-tuning differ in the weights alone. Raises CheckpointError if a file cannot be read.
    """
    unread = [file for file in files if file.sha256 is None]
    try:
        with progress.stage("hashing the checkpoint", sum(f.size for f in unread)) as step:
            found = dict(zip(unread, digests([f.path for f in unread], step), strict=True))
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return [dataclasses.replace(file, sha256=found.get(file, file.sha256)) for file in files]


def open_recipe(
    path: Path, identities: Sequence[SourceFile], whole: bool = True, progress: Progress = silent
) -> RecipeFiles:
    """Return the recipe of a directory; raises RecipeError if it is damaged, or of another
    checkpoint.

    whole: compute the hashes of its tensors too, which recipe.json lists, and of the checkpoint's
        files where `identities` has none.
    """
    file = path / RECIPE_JSON
    if not file.is_file():
        raise RecipeError(f"{path}: has no {RECIPE_JSON}; accepted: what `lmcast calibrate` writes")
    try:
        data = read_regular(file)
        fields = _unsealed(data)
        files = read_files(fields.pop("files", None))
    except DamagedError as error:
        raise RecipeError(f"{file}: {error}; {AGAIN}") from None
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read: {error.strerror}") from None
    source, recorded = fields.pop("source", None), fields.pop("source_sha256", None)
    try:
        recipe = read_recipe(fields)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from None
    if source != json.loads(json.dumps(identity(identities))):
        raise RecipeError(f"{path}: was calibrated on another checkpoint than the one given")
    if whole and recorded != contents(hashed(identities, progress)):
        raise RecipeError(
            f"{path}: was calibrated on another checkpoint than the one given, whose weights have"
            f" other values; give that one, or {AGAIN}"
        )
    if problems := list(_problems(path, files, whole, progress)):
        raise RecipeError(f"{path}: {problems[0]}; {AGAIN}")
    held = _tensors(path, files)
    try:
        require_tensors(recipe, {name: (t.dtype, t.shape) for name, t in held.items()})
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}; {AGAIN}") from None
    return RecipeFiles(path, recipe, held, files, hashlib.sha256(data).hexdigest())


def _unsealed(data: bytes) -> dict[str, Any]:
    """Return the fields of recipe.json but for its version; raises DamagedError."""
    body = parse_object(data)
    version = body.get("version")
    if type(version) is not int or version != VERSION:
        raise DamagedError(f"version is {version!r:.40}; accepted: {VERSION}, which has all hashes")
    fields = check_seal(body, data)
    del fields["version"]
    return fields


def _problems(
    path: Path, files: Sequence[FileEntry], whole: bool, progress: Progress
) -> Iterator[Problem]:
    """Yield how the tensors of a recipe differ from its list; what else lies there is not read."""
    found = {name: status for name, status in walk(path) if name.partition("/")[0] == WEIGHTS}
    for entry in files:
        if not re.fullmatch(rf"{WEIGHTS}/[^/]+\.safetensors", entry.path):
            yield Problem(entry.path, f"is listed; accepted: {WEIGHTS}/*.safetensors")
        yield from differs(entry, found.get(entry.path))
    for name in sorted(found.keys() - {entry.path for entry in files}):
        yield Problem(name, f"is not part of the recipe: {RECIPE_JSON} does not list it")
    if whole:
        intact = [entry for entry in files if not list(differs(entry, found.get(entry.path)))]
        try:
            with progress.stage("checking the recipe", sum(e.size for e in intact)) as step:
                yield from wrong_contents(path, intact, step)
        except OSError as error:
            yield Problem(str(error.filename), f"cannot be read: {error.strerror}")


def _tensors(path: Path, files: Sequence[FileEntry]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for entry in files:
        held = read_header((path / entry.path).resolve(), path / entry.path)
        if twice := found.keys() & held.keys():
            raise RecipeError(f"{path / entry.path}: has {min(twice):.80} again; {AGAIN}")
        found |= held
    return found


def recipe_of(
    engine: Path,
    made_with: MadeWith | None,
    recipe: Path | None,
    identities: Sequence[SourceFile],
    progress: Progress = silent,
) -> RecipeFiles | None:
    """Return the recipe that an engine was made with, None for none.

    made_with: as its engine.json says. Raises RecipeError where another one is given, or one is
    missing.
    """
    if recipe is None:
        if made_with is None:
            return None
        raise RecipeError(
            f"{engine}: was made with a recipe; give it (--recipe DIR), whose recipe.json has the"
            f" SHA-256 {made_with.sha256}"
        )
    if made_with is None:
        raise RecipeError(f"{engine}: was made without a recipe; leave out --recipe")
    files = open_recipe(recipe, identities, progress=progress)
    if files.sha256 != made_with.sha256:
        raise RecipeError(
            f"{recipe}: is another recipe than {engine} was made with, whose recipe.json has the"
            f" SHA-256 {made_with.sha256}; accepted is that one"
        )
    return files
