"""Recipes of several formats: what they stand for is what the checkpoint has, but for rounding."""

import copy
import random
import shutil
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from files.malformed import tiny_llama
from files.recipe_dirs import write_packed
from safetensors.torch import load_file
from torch import Tensor

from fuzz import edits as editing
from fuzz.edits import Edit
from fuzz.files import Files, Kinds
from lmcast.exporter import targets
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.engine.description import MadeWith
from lmcast.exporter.engine.names import RECIPE_JSON
from lmcast.exporter.engine.output import check_output
from lmcast.exporter.engine.sealed import seal, unseal
from lmcast.exporter.pipeline import choose_format, identified, place_weights, understand
from lmcast.exporter.progress import silent
from lmcast.exporter.weights.recipe_files import hashed, identity, open_recipe, recipe_of
from lmcast.exporter.weights.values import values
from lmcast.graphs import Definition, fill
from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.plugins.errors import InputError

WEIGHTS = "weights/model-00001.safetensors"
# Of the size of a weight: the rounding of 4 bits is below half of it, another reading above.
ROUNDING = 0.25
# Formats of the ends of weights' names, how inputs are rounded, and layers with caches in FP8.
MADE = {
    "fp8": (
        {"q.weight": "fp8-channel", "k.weight": "fp8", "o.weight": "fp8-block"},
        InputFormat("fp8", static=True, smooth=True),
        ("layers.0.mixer", "layers.1.mixer"),
    ),
    "few-bits": (
        {"gate.weight": "nvfp4", "up.weight": "mxfp4", "v.weight": "int4", "q.weight": "int8"},
        InputFormat("mxfp8", rotation=16),
        (),
    ),
}


class Recipes(Kinds):
    def __init__(self) -> None:
        more = sealed, sealed, listed, listed
        kinds = [
            Files(name, "", partial(self._make, name), partial(self._use, name), more)
            for name in MADE
        ]
        super().__init__("recipe", "recipes, also such as are sealed again", kinds)

    def prepare(self, folder: Path) -> None:
        """Make a checkpoint, recipes of it, and what they give."""
        self.checkpoint = folder.parent / "checkpoint"
        tiny_llama(self.checkpoint)
        self.source, identities = identified(self.checkpoint)
        self.identities = hashed(identities)
        self.found = understand(self.source, (), tokenizer=False)
        self.logits: dict[str, Tensor] = {}
        self.made_with: dict[str, MadeWith] = {}
        super().prepare(folder)

    def _make(self, name: str, folder: Path) -> None:
        folder.rmdir()
        write_packed(self.checkpoint, folder, *MADE[name])
        files = open_recipe(folder, self.identities)
        self.logits[name] = _logits(*files.take(self._defined(), self.source))
        self.made_with[name] = MadeWith(**files.summary(self.found))

    def _use(self, name: str, recipe: Path, work: Path) -> str | None:
        """Do all that is done with a recipe; raises InputError where one of it is refused."""
        good = self.kinds[name].folder
        expected = identity(self.identities)
        refused: InputError | None = None
        try:
            check_output(recipe, self.source.path, RECIPE_JSON, expected, False)
        except InputError as error:
            refused = error
        made_with = self.made_with[name]
        try:
            recipe_of(Path("engine"), made_with, recipe, self.identities)
        except InputError as error:
            refused = refused or error
        else:
            if _hashes(recipe) != _hashes(good):
                return "taken for that of an engine, which it is not"
        try:  # as the parts of a calibration that goes on are
            open_recipe(recipe, self.identities, whole=False).take(self._defined(), self.source)
        except InputError as error:
            refused = refused or error
        files = open_recipe(recipe, self.identities)
        definition, source = files.take(self._defined(), self.source)
        if (wrong := self._other_weights(definition, source, recipe, good)) is not None:
            return wrong
        for target in map(targets.get, ("cpu", "onnx")):
            format = choose_format(definition, source, target, "float32", False)
            (out := work / "out").mkdir()
            try:
                place_weights(definition, source, format, "copy", target, out, None, silent)
            finally:
                shutil.rmtree(out)
        same = _hashes(recipe) == _hashes(good)
        logits = _logits(definition, source)
        if same and not torch.equal(logits, self.logits[name]):
            return "other logits"
        if refused is not None:
            raise refused
        return None

    def _defined(self) -> Definition:
        return replace(self.found, model=copy.deepcopy(self.found.model))

    def _other_weights(
        self, definition: Definition, source: Checkpoint, recipe: Path, good: Path
    ) -> str | None:
        """Say which weight is not that of the checkpoint, or which scale cannot be one.

        An attacker may write other numbers, and these are then not compared.
        """
        for tensor in sorted(n for n in source.tensors if n.endswith(("_scale", ".smooth"))):
            if not (source.read(tensor).float() > 0).all():
                return f"{tensor} is not above 0"
        if _data(recipe / WEIGHTS) != _data(good / WEIGHTS):
            return None
        for weight in self.found.binding.sources:
            mine = _whole(definition, source, weight)
            theirs = _whole(self.found, self.source, weight)
            if (mine - theirs).norm() > ROUNDING * theirs.norm():
                return f"{weight} is far from that of the checkpoint"
        return None


def _whole(found: Definition, source: Checkpoint, name: str) -> Tensor:
    blocks = values(source, found.binding.sources[name])
    return torch.cat([block.reshape(-1).float() for block in blocks])


@torch.no_grad()
def _logits(found: Definition, source: Checkpoint) -> Tensor:
    fill(found, found.model, source.read, torch.float32)
    return found.model(torch.arange(3, 40)[None])


def _hashes(recipe: Path) -> list[str]:
    return [editing.digest(recipe / name) for name in (RECIPE_JSON, WEIGHTS)]


def _data(path: Path) -> bytes:
    """Return what is behind the header of a safetensors file."""
    data = path.read_bytes()
    return data[8 + struct.unpack_from("<Q", data)[0] :]


def sealed(recipe: Path, chance: random.Random) -> Edit:
    """Return an edit of recipe.json, sealed again."""
    kind = chance.choice([editing.of_json, editing.of_typed_json, editing.of_typed_json])
    edit = kind(recipe / RECIPE_JSON, RECIPE_JSON, chance)

    def change(path: Path) -> None:
        edit.change(path)
        body = editing.json_of(path)
        body.pop("self", None)
        path.write_bytes(seal(body))

    return replace(edit, about=f"{edit.about}, sealed", change=change)


def listed(recipe: Path, chance: random.Random) -> Edit:
    """Return an edit of the tensors, whose new hash is listed."""
    kinds = [editing.of_bytes, editing.of_json, editing.of_typed_json, of_tensor]
    edit = chance.choice(kinds)(recipe / WEIGHTS, WEIGHTS, chance)

    def change(path: Path) -> None:
        edit.change(path)
        file = path.parents[1] / RECIPE_JSON
        body = unseal(editing.file_bytes(file))
        (entry,) = body["files"]
        entry |= {"size": path.stat().st_size, "sha256": editing.digest(path)}
        file.write_bytes(seal(body))

    return replace(edit, about=f"{edit.about}, listed", change=change)


def of_tensor(path: Path, name: str, chance: random.Random) -> Edit:
    """Return a tensor with other numbers in one place: such as no measurement gives."""
    tensor = chance.choice(sorted(load_file(path)))
    patterns = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\x80\x7f", b"\0\0\x80\xbf", b"\0\0\0\1"]
    number = chance.choice(patterns)  # 0, NaN, infinity, -1, and one below all normal ones

    def change(target: Path) -> None:
        begin, end = editing.json_of(target)[tensor]["data_offsets"]
        data = bytearray(target.read_bytes())
        start = 8 + struct.unpack_from("<Q", data)[0] + begin
        size = min(len(number), end - begin)
        data[start : start + size] = number[-size:]
        target.write_bytes(data)

    return Edit(name, f"{tensor} begins with {number.hex()}", change)


PART = Recipes()
