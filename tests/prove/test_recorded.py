"""What calibration records of a recipe's loss, and parity measures again: damage that engine and
eager PyTorch compute alike is found by it."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.llama import tiny_llama
from torch import Tensor

from lmcast.calib.presets import PLAIN, Preset
from lmcast.calib.recipe import Quality, RecipeError
from lmcast.exporter import Engine, export
from lmcast.exporter.calibrate.calibrate import calibrate
from lmcast.exporter.checkpoint import identified
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.engine.sealed import seal, unseal
from lmcast.exporter.pipeline import understand
from lmcast.exporter.prove.divergence import Comparison
from lmcast.exporter.prove.junit import junit
from lmcast.exporter.prove.parity import parity
from lmcast.exporter.prove.parity_report import QualityCheck, Report, Result
from lmcast.exporter.prove.quality import eager_quality
from lmcast.exporter.prove.recorded import MOST_TOKENS, record, recorded
from lmcast.exporter.weights.recipe_files import open_recipe
from lmcast.plugins.errors import InputError

ROWS = Preset("int8", PLAIN, ("rtn",))
CHUNK, HELD = 24, 3
Change = Callable[[dict[str, Any], dict[str, Tensor]], object]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a recipe of it, and the engine made with that."""
    folder = tmp_path_factory.mktemp("recorded")
    tiny_llama(folder / "checkpoint")
    ids = torch.randint(97, (2 + HELD, CHUNK), generator=torch.Generator().manual_seed(0))
    calibrate(folder / "checkpoint", folder / "recipe", recipe=ROWS, ids=(ids[:2], ids[2:]))
    export(folder / "checkpoint", folder / "engine", recipe=folder / "recipe", parity=False)
    return folder


def quality_of(recipe: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recipe / "recipe.json").read_text())["quality"]
    return found


def test_the_record_is_what_its_tokens_give(made: Path, lmcast: Run):
    found = quality_of(made / "recipe")
    assert found.keys() == {"text", "ids", "dtype", "kl"}
    assert (found["text"], found["dtype"]) == ("given token ids", "float32")
    ids = torch.tensor(found["ids"])
    assert ids.shape == (HELD, CHUNK)
    source, identities = identified(made / "checkpoint")
    whole = understand(source, (), True)
    taken = open_recipe(made / "recipe", identities).take(whole, source)
    again = eager_quality(whole, source, *taken, ids).kl.value
    assert 1e-6 < found["kl"] == pytest.approx(again, rel=1e-3)  # logits off by 1e-6 of 0.01
    said = {"text": "given token ids", "tokens": HELD * CHUNK, "dtype": "float32"}
    status, shown, _ = lmcast("inspect", made / "engine", "--json")
    assert (status, json.loads(shown)["recipe"]["quality"]) == (0, {**said, "kl": found["kl"]})
    _, shown, _ = lmcast("inspect", made / "engine")
    assert f"KL {found['kl']:.3g} nats from the checkpoint over 72 tokens of given" in shown


def test_a_record_is_of_the_first_chunks():
    random = torch.Generator().manual_seed(0)
    for tokens, chunks in ((MOST_TOKENS // 2 - 8, 2), (MOST_TOKENS + 1, 1)):
        ids = torch.randint(5, (3, tokens), generator=random)
        compared = Comparison(ids)
        for row in range(3):
            logits = torch.randn(2, tokens, 5, generator=random)
            compared.add(row, 0, logits[0], logits[1])
        found = record(ids, compared.measured(1, 1), "text")
        assert found.ids == tuple(map(tuple, ids[:chunks].tolist()))
        assert found.kl == pytest.approx(float(compared.kl()[:chunks].mean()))


def test_an_engine_loses_what_its_recipe_did(made: Path, tmp_path: Path, lmcast: Run):
    words = ("parity", made / "engine", "--against", made / "checkpoint", "--quality")
    files = ("--json", tmp_path / "report.json", "--junit", tmp_path / "junit.xml")
    status, shown, _ = lmcast(*words, "--recipe", made / "recipe", *files)
    assert status == 0
    found = json.loads((tmp_path / "report.json").read_text())["quality"]
    assert found["recorded"] == quality_of(made / "recipe")["kl"]
    assert (found["tokens"], found["passed"]) == (HELD * CHUNK, True)
    # The kernels of this target round inputs, which eager PyTorch does not: between the two is
    # what that costs, and so it is between the engine's loss and the recipe's.
    assert 1e-7 < found["from_recipe"] < found["kl"] <= found["bound"]
    assert f"KL {found['kl']:.3g} nats from the unquantized checkpoint" in shown
    assert (
        '<testcase classname="lmcast.parity" name="quality" time="0.000"><system-out>'
        in (tmp_path / "junit.xml").read_text()
    )


def scale(fields: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["layers.1.ffn.down.weight.scales"][3] *= 4


def exchanged(fields: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    first, second = (f"layers.{layer}.ffn.up.weight.codes" for layer in range(2))
    tensors[first], tensors[second] = tensors[second], tensors[first]


def rounding(fields: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    inputs = {"format": "mxfp4", "rotation": 0, "static": False, "smooth": False}
    fields["inputs"]["layers.0.ffn.gate"] = inputs


def edited(made: Path, recipe: Path, change: Change) -> Path:
    """Copy the recipe, change it, and seal it again, as nothing but an attacker does."""
    shutil.copytree(made / "recipe", recipe)
    fields = unseal((recipe / "recipe.json").read_bytes())
    held = {entry["path"]: load_file(recipe / entry["path"]) for entry in fields["files"]}
    of = {name: path for path, tensors in held.items() for name in tensors}
    tensors = {name: tensor for each in held.values() for name, tensor in each.items()}
    change(fields, tensors)
    for entry in fields["files"]:
        path = recipe / entry["path"]
        save_file({n: t for n, t in tensors.items() if of[n] == entry["path"]}, path)
        data = path.read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (recipe / "recipe.json").write_bytes(seal(fields))
    return recipe


@pytest.mark.parametrize("change", [scale, exchanged, rounding])
def test_what_parity_alone_does_not_see(change: Change, made: Path, tmp_path: Path):
    recipe = edited(made, tmp_path / "recipe", change)
    export(made / "checkpoint", tmp_path / "engine", recipe=recipe, parity=False)
    report = parity(tmp_path / "engine", made / "checkpoint", recipe=recipe, quality=True)
    assert dataclasses.replace(report, quality=None).passed
    assert report.quality is not None
    assert report.quality.recorded == quality_of(made / "recipe")["kl"]
    assert report.quality.kl > report.quality.bound
    assert not report.passed
    assert "FAILED" in report.table()
    assert b"is above" in junit(report)


def test_what_fails_parity_is_not_measured(
    made: Path, lmcast: Run, monkeypatch: pytest.MonkeyPatch
):
    def failing(*given: Any) -> Report:
        result = Result("prefill", 1, 1.0, 0.1, 0.5, 1.0, 0.0, 2.0)
        return Report("float32", 1, None, (result,))

    monkeypatch.setattr("lmcast.exporter.prove.parity.check", failing)
    words = (made / "engine", "--against", made / "checkpoint", "--recipe", made / "recipe")
    status, shown, said = lmcast("parity", *words, "--quality")
    assert status == 1
    assert "nats" not in shown
    assert "KL is not measured" in said


def test_what_has_no_record_is_refused(made: Path):
    engine, (_, identities) = Engine(made / "engine"), identified(made / "checkpoint")
    files = open_recipe(made / "recipe", identities)
    assert recorded(engine, files) == files.recipe.quality
    with pytest.raises(EngineError, match=r"was made without a recipe.*leave out --quality"):
        recorded(engine, None)
    without = dataclasses.replace(files.recipe, quality=None)
    with pytest.raises(RecipeError, match=r"does not say what it has lost.*calibrate again"):
        recorded(engine, dataclasses.replace(files, recipe=without))
    long = Quality("text", ((5,) * 129,), "float32", 0.1)
    longer = dataclasses.replace(files, recipe=dataclasses.replace(files.recipe, quality=long))
    with pytest.raises(InputError, match=r"takes 128 tokens.*chunks of 129.*--context 129"):
        recorded(engine, longer)


def test_the_bound():
    """Nothing lost, nothing moved: what fp32 leaves is allowed, and no more."""
    assert QualityCheck("text", 1, 1e-10, 0.0, 0.0).passed
    assert not QualityCheck("text", 1, 1e-9, 0.0, 0.0).passed
    assert QualityCheck("text", 1, 0.038, 0.01, 0.01).passed  # (0.1 + 0.1) ** 2, and a little
    assert not QualityCheck("text", 1, 0.045, 0.01, 0.01).passed
    assert not QualityCheck("text", 1, float("nan"), 0.01, 0.01).passed
