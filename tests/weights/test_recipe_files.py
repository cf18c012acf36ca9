"""Recipes on disk: whatever of one is damaged or edited is refused in one line, by every reader."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from files.recipe_dirs import write_packed
from safetensors.torch import load_file, save_file
from tiny.llama import tiny_llama

from lmcast.calib.formats import WEIGHTS
from lmcast.calib.recipe import Recipe, RecipeError, require_tensors, tensors
from lmcast.exporter.calibrate.work import Work
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.engine.lock import Place
from lmcast.exporter.engine.sealed import seal, unseal
from lmcast.exporter.pipeline import export, identified, understand
from lmcast.exporter.weights.place import Entry, as_bytes, write
from lmcast.exporter.weights.recipe_files import RecipeFiles, hashed, identity, open_recipe
from lmcast.graphs.blocks.quantized import InputFormat

FILE = "weights/model-00001.safetensors"
Change = Callable[[Path], object]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a recipe of it, and the engine made with that."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny_llama(folder / "checkpoint")
    inputs, caches = InputFormat("fp8", static=True, smooth=True), ["layers.1.mixer"]
    formats = {"q.weight": "fp8-channel"}
    write_packed(folder / "checkpoint", folder / "recipe", formats, inputs, caches)
    export(folder / "checkpoint", folder / "engine", recipe=folder / "recipe", parity=False)
    return folder


def opened(made: Path, recipe: Path) -> RecipeFiles:
    """Open a recipe and apply it, as all that read one do."""
    source, identities = identified(made / "checkpoint")
    files = open_recipe(recipe, identities)
    files.take(understand(source, (), tokenizer=False), source)
    return files


def flip(name: str, place: int) -> Change:
    def change(recipe: Path) -> None:
        data = bytearray((recipe / name).read_bytes())
        data[place] ^= 1
        (recipe / name).write_bytes(data)

    return change


def edit(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change recipe.json and seal it again, as nothing but an attacker does."""

    def edited(recipe: Path) -> None:
        body = unseal((recipe / "recipe.json").read_bytes())
        change(body)
        (recipe / "recipe.json").write_bytes(seal(body))

    return edited


def put(*path: Any) -> Change:
    """Put the last of `path` at the place that the others name; 0 as a key: of the first."""
    *parents, key, value = path

    def change(body: dict[str, Any]) -> None:
        held: Any = body
        for parent in parents:
            held = (
                next(iter(held.values()))
                if parent == 0 and isinstance(held, dict)
                else held[parent]
            )
        held[key] = value

    return edit(change)


def more_tensors(recipe: Path, names: list[str]) -> None:
    """Add a listed file of tensors, each a single zero."""
    data = as_bytes(torch.zeros(1))
    entries = [Entry(name, "F32", (1,), 4, lambda: iter([data])) for name in names]
    _, hashes = write(entries, recipe / "more")
    (recipe / "more" / FILE).rename(recipe / "weights/z.safetensors")
    shutil.rmtree(recipe / "more")
    size, digest = (recipe / "weights/z.safetensors").stat().st_size, hashes[FILE]
    entry = {"path": "weights/z.safetensors", "size": size, "sha256": digest}
    edit(lambda body: body["files"].append(entry))(recipe)


def surplus(*names: str) -> Change:
    def change(recipe: Path) -> None:
        (recipe / "more").mkdir()
        more_tensors(recipe, list(names))

    return change


def flag_in_text(recipe: Path) -> None:
    """Edit a flag as with an editor: the seal stays."""
    text = (recipe / "recipe.json").read_text()
    assert '"static": true' in text
    (recipe / "recipe.json").write_text(text.replace('"static": true', '"static": false', 1))


def linked(recipe: Path) -> None:
    (recipe / FILE).rename(recipe / "elsewhere")
    (recipe / FILE).symlink_to(recipe / "elsewhere")


def called(part: str, dtype: str, shape: list[int]) -> Change:
    """Call the first tensor of that kind another of as many bytes, with all hashes right."""

    def change(recipe: Path) -> None:
        data = (recipe / FILE).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        name = next(name for name in header if name.endswith(part))
        header[name] |= {"dtype": dtype, "shape": shape}
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= end - 8
        data = data[:8] + text.ljust(end - 8) + data[end:]
        (recipe / FILE).write_bytes(data)
        put("files", 0, "sha256", hashlib.sha256(data).hexdigest())(recipe)

    return change


def rewritten(name: str, value: torch.Tensor) -> Change:
    """Write a tensor anew, and list what it is in then."""

    def change(recipe: Path) -> None:
        held = load_file(recipe / FILE)
        save_file({**held, name: value}, recipe / FILE)
        data = (recipe / FILE).read_bytes()
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit(lambda body: body["files"][0].update(entry))(recipe)

    return change


SCALE = "layers.0.mixer.q.input_scale"
SCHEME = {"element": "int4", "block": [1, 7], "scale": "float16", "shared": False, "zeros": False}
MEASURED = {"text": "a.txt", "ids": [[1, 2], [3, 4]], "dtype": "float32", "kl": 0.1}
# What happens to a recipe -> a part of the refusal.
DAMAGE: dict[str, tuple[Change, str]] = {
    "a bit of a weight": (flip(FILE, -1), "sha256 differs"),
    "a bit of a header": (flip(FILE, 20), "sha256 differs"),
    "a bit of recipe.json": (flip("recipe.json", 40), "damaged"),
    "an edited flag": (flag_in_text, "does not match its own sha256"),
    "zeros behind it": (lambda r: os.truncate(r / "recipe.json", 10_000), "not valid JSON"),
    "no weights": (lambda r: shutil.rmtree(r / "weights"), "missing"),
    "a file cut short": (lambda r: os.truncate(r / FILE, 100), "size differs"),
    "a file more": (lambda r: (r / "weights/a.safetensors").touch(), "not part of the recipe"),
    "a link": (linked, "is a symbolic link"),
    "a FIFO": (lambda r: (os.unlink(r / FILE), os.mkfifo(r / FILE)), "is a FIFO"),
    "no JSON": (lambda r: (r / "recipe.json").write_text("{"), "not valid JSON"),
    "too deep": (lambda r: (r / "recipe.json").write_text("[" * 99999), "not valid JSON"),
    "too large": (lambda r: os.truncate(r / "recipe.json", 1 << 32), "larger than 64 MiB"),
    "an earlier version": (put("version", 1), "version is 1; accepted: 3"),
    "a true version": (put("version", True), "version is True"),
    "another checkpoint": (put("source", 0, "size", 1), "another checkpoint"),
    "no source": (put("source", None), "another checkpoint"),
    "another value in the checkpoint": (put("source_sha256", 0, "0" * 64), "have other values"),
    "no hash of the checkpoint": (edit(lambda b: b.pop("source_sha256")), "have other values"),
    "an unknown field": (put("extra", None), "extra is unknown"),
    "no inputs": (edit(lambda body: body.pop("inputs")), "inputs is missing"),
    "weights, a list": (put("weights", []), "weights is []; accepted: an object"),
    "a scheme, a text": (put("weights", "layers.0.mixer.q.weight", "int4"), "accepted: an object"),
    "an unknown scheme": (put("weights", "layers.0.mixer.q.weight", SCHEME), "the formats fp8,"),
    "another block": (put("weights", 0, "block", [1, 2, 3]), "accepted: a list of 2"),
    "a negative block": (put("weights", 0, "block", [-1, 2]), "block[0] is -1; accepted: 0 to"),
    "a flag that is a number": (put("weights", 0, "shared", 1), "shared is 1; accepted: true or"),
    "zeros": (put("weights", 0, "zeros", True), "accepted: the formats"),
    "a field of a scheme": (put("weights", 0, "extra", 1), "extra is unknown"),
    "a weight of no model": (
        edit(lambda b: b["weights"].update({"no\nname": b["weights"]["layers.0.mixer.q.weight"]})),
        r"no\nname",
    ),
    "an unknown format": (put("inputs", 0, "format", "fp9"), "format is 'fp9'"),
    "a rotation of 3": (put("inputs", 0, "rotation", 3), "a power of two"),
    "a rotation below 0": (put("inputs", 0, "rotation", -1), "rotation is -1"),
    "a rotation that is too wide": (put("inputs", 0, "rotation", 4096), "in runs of 4096"),
    "a static mxfp8": (put("inputs", 0, "format", "mxfp8"), "static is true for format mxfp8"),
    "static, none": (put("inputs", 0, "format", None), "static is true for format None"),
    "a scale that nothing reads": (put("inputs", 0, "static", False), "which nothing reads"),
    "inputs of no layer": (
        put("inputs", "layers.9.mixer.q", {
            "format": "fp8", "rotation": 0, "static": False, "smooth": False}),
        "it has no layer layers.9.mixer.q",
    ),
    "another cache": (put("caches", "layers.0.mixer", "fp4"), "in 'fp4'; accepted: fp8"),
    "a report, a text": (put("report", "good"), "report is 'good'; accepted: an object"),
    "a measurement, a number": (put("quality", 0.1), "quality is 0.1; accepted: an object"),
    "a measurement of nothing": (put("quality", {**MEASURED, "ids": []}), "quality.ids is no list"),
    "a chunk of nothing": (put("quality", {**MEASURED, "ids": [[]]}), "quality.ids is no list"),
    "chunks of two lengths": (put("quality", {**MEASURED, "ids": [[1, 2], [3]]}), "of one length"),
    "a token below 0": (put("quality", {**MEASURED, "ids": [[-1]]}), "quality.ids[0][0] is -1"),
    "a token of no model": (put("quality", {**MEASURED, "ids": [[97]]}), "token 97, of 97 in"),
    "a divergence below 0": (put("quality", {**MEASURED, "kl": -0.1}), "quality.kl is -0.1"),
    "another dtype": (put("quality", {**MEASURED, "dtype": "float16"}), "accepted: 'float32'"),
    "a field of a measurement": (put("quality", {**MEASURED, "a": 1}), "quality.a is unknown"),
    "a path out of it": (put("files", 0, "path", "../a.safetensors"), "a relative path inside"),
    "an absolute path": (put("files", 0, "path", "/a.safetensors"), "a relative path inside"),
    "a path elsewhere in it": (put("files", 0, "path", "recipe.json"), "accepted: weights/*"),
    "a negative size": (put("files", 0, "size", -1), "size is -1"),
    "no hash": (put("files", 0, "sha256", "0"), "64 digits"),
    "a tensor that nothing reads": (surplus("strange"), "the tensor strange, which nothing reads"),
    "a tensor of the checkpoint": (surplus("model.norm.weight"), "model.norm.weight, which"),
    "signed codes": (
        called(".codes", "I8", [32, 32]),
        "is torch.int8 [32, 32]; accepted: torch.uint8 [32, 32]; calibrate again",
    ),
    "codes of one axis": (called(".codes", "U8", [1024]), "is missing or has shape [1024]"),
    "codes of a stack": (called(".codes", "U8", [2, 16, 32]), "accepted: torch.float32 [2, 16, 1]"),
    "whole scales": (called(".scales", "I32", [32, 1]), "accepted: torch.float32 [32, 1]"),
    "shorter scales": (called(".scales", "F16", [32, 2]), "accepted: torch.float32 [32, 1]"),
    "scales of columns": (called(".scales", "F32", [1, 32]), "accepted: torch.float32 [32, 1]"),
    "a whole scale of inputs": (called("input_scale", "I32", []), "accepted: torch.float32 []"),
    "a scale of inputs in a list": (called("input_scale", "F32", [1]), "has shape [1] there"),
    "a scale of 0": (rewritten(SCALE, torch.tensor(0.0)), f"{SCALE} holds 0; accepted: finite"),
    "a scale below 0": (rewritten(SCALE, torch.tensor(-1.0)), f"{SCALE} holds -1; accepted"),
    "a scale that is no number": (rewritten(SCALE, torch.tensor(math.nan)), f"{SCALE} holds nan"),
    "an infinite scale": (rewritten(SCALE, torch.tensor(math.inf)), f"{SCALE} holds inf"),
    "a factor of 0": (rewritten("layers.1.mixer.q.smooth", torch.zeros(32)), "smooth holds 0"),
    "a cache's scale of 0": (
        rewritten("layers.1.mixer.cache.value_scale", torch.tensor(0.0)), "value_scale holds 0",
    ),
    "a tensor twice": (surplus("layers.0.mixer.q.input_scale"), "again"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name: str, made: Path, tmp_path: Path):
    change, message = DAMAGE[name]
    shutil.copytree(made / "recipe", tmp_path / "recipe")
    change(tmp_path / "recipe")
    with pytest.raises((RecipeError, CheckpointError)) as refusal:
        opened(made, tmp_path / "recipe")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("command", ["export", "parity", "quality"])
def test_every_command_refuses(command: str, made: Path, tmp_path: Path, lmcast: Run):
    """A weight of other bits, which the engine and eager PyTorch would compute alike."""
    shutil.copytree(made / "recipe", tmp_path / "recipe")
    flip(FILE, -1)(tmp_path / "recipe")
    words: tuple[object, ...] = (made / "engine", "--against", made / "checkpoint")
    if command == "export":
        words = (made / "checkpoint", "-o", tmp_path / "engine")
    chunk = ("--chunk", 8) if command == "quality" else ()
    status, _, error = lmcast(command, *words, *chunk, "--recipe", tmp_path / "recipe")
    assert (status, error.splitlines()[-1][:6]) == (2, "error:")
    assert f"{FILE}: sha256 differs" in error
    assert not (tmp_path / "engine").exists()


def test_a_fine_tune_is_another_checkpoint(made: Path, tmp_path: Path, lmcast: Run):
    """Sizes and headers are the same: with the recipe, the engine would be half of each model."""
    tuned = shutil.copytree(made / "checkpoint", tmp_path / "tuned")
    flip("model.safetensors", -1)(tuned)
    own, theirs = identified(made / "checkpoint")[1], identified(tuned)[1]
    assert identity(own) == identity(theirs)
    status, _, error = lmcast("export", tuned, "-o", tmp_path / "e", "--recipe", made / "recipe")
    assert (status, "other values" in error) == (2, True)
    assert not (tmp_path / "e").exists()


def test_a_run_goes_on_without_what_is_damaged(made: Path, tmp_path: Path):
    source, identities = identified(made / "checkpoint")
    work = Work(Place(tmp_path / "recipe"), source, hashed(identities))
    work.begin({"a": 1})
    for index in range(3):
        work.put(index, "kept", Recipe({}, {}), {"value": torch.ones(2)})
    flip(FILE, -1)(work.folder / "kept-0001")
    flip("recipe.json", 9)(work.folder / "kept-0002")
    again = Work(Place(tmp_path / "recipe"), source, hashed(identities))
    again.begin({"a": 1})
    assert [again.has(index, ["kept"]) for index in range(3)] == [True, False, False]
    again.begin({"a": 2})
    assert not again.has(0, ["kept"])


def test_no_recipe_of_what_is_not_finite(made: Path, tmp_path: Path):
    source, identities = identified(made / "checkpoint")
    work = Work(Place(tmp_path / "recipe"), source, hashed(identities))
    work.begin({})
    with pytest.raises(RecipeError, match="not finite"):
        work.put(0, "kept", Recipe({}, {}, {}, {"kl": float("nan")}), {})


@pytest.mark.parametrize("shape", [(32, 128), (3, 32, 128)], ids=str)
@pytest.mark.parametrize("name", WEIGHTS)
def test_tensors_are_as_their_format_has_them(name: str, shape: tuple[int, ...]):
    packed = WEIGHTS[name].pack(torch.linspace(-1, 1, math.prod(shape)).reshape(shape))
    recipe, at = Recipe({"w": packed.scheme}, {}), tensors("w", packed.scheme)
    parts = {at.packed: packed.codes, at.scales: packed.scales}
    if at.shared is not None and packed.shared is not None:
        parts[at.shared] = packed.shared
    found = {part: (value.dtype, tuple(value.shape)) for part, value in parts.items()}
    require_tensors(recipe, found)
    for part, (dtype, size) in found.items():
        for other in ((torch.float64, size), (dtype, (*size, 1)), (dtype, (2, *size[1:], 2))):
            with pytest.raises(RecipeError, match="accepted: "):
                require_tensors(recipe, found | {part: other})
    with pytest.raises(RecipeError, match=r"w\.codes, .* is missing"):
        require_tensors(recipe, {})


def test_what_is_written_is_accepted(made: Path):
    assert opened(made, made / "recipe").files[0].path == FILE
    fields = json.loads((made / "recipe/recipe.json").read_text())
    assert [entry["path"] for entry in fields["files"]] == [FILE]
    assert fields["version"] == 3
