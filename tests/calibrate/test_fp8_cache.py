"""Keys and values in FP8: what engines hold, what calibration finds, and what is refused."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from backends.plan_builder import Builder
from files.rounded import round_weights
from test_calibrate import SAME_KL, files, made, measured, sample
from tiny.llama import tiny_llama
from torch import Tensor

from lmcast.calib.recipe import RecipeError
from lmcast.exporter import Engine, export
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt import build, caches
from lmcast.exporter.backends.tensorrt.request import Request, Sizes
from lmcast.exporter.calibrate.caches import CacheError
from lmcast.exporter.calibrate.calibrate import CalibrationError
from lmcast.exporter.calibrate.work import Work
from lmcast.exporter.engine.names import MODEL
from lmcast.exporter.pipeline import identified, understand
from lmcast.exporter.prove.parity import parity
from lmcast.exporter.prove.rounding import exact_engine, unrounded
from lmcast.exporter.weights.recipe_files import open_recipe
from lmcast.graphs import Definition, fill
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.keeps import Ring
from lmcast.plugins.errors import InputError
from lmcast.plugins.rounding import E4M3_MOST

Checkpoint = Callable[[str], Path]
FULL, RINGS = "llama/plain", "gemma3_text/derived types"  # the latter has rings of 8, and full ones
SCALE = 0.01
LAST = 0x7E  # the code of 448; the one behind it is NaN


def attentions(model: Decoder) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Attention)]


def held(checkpoint: Path, folder: Path, scale: float = SCALE, **more: Any) -> Path:
    """Write a recipe whose attention holds keys and values by this scale, and nothing else."""
    names = attentions(understand(identified(checkpoint)[0], (), False).model)
    ends = ("cache.key_scale", "cache.value_scale")
    scales = {f"{name}.{end}": torch.tensor(scale) for name in names for end in ends}
    given = {"caches": dict.fromkeys(names, "fp8"), "more": scales, **more}
    return round_weights(checkpoint, folder, lambda *_: None, **given)


def taken(checkpoint: Path, recipe: Path) -> Definition:
    """Return what a recipe makes of a checkpoint, with its weights."""
    source, identities = identified(checkpoint)
    found, extended = open_recipe(recipe, identities).take(understand(source, (), False), source)
    fill(found, found.model, extended.read, torch.float32)
    return found


def ids_of(tokens: int) -> Tensor:
    return sample(tokens)[0][:1]


@torch.no_grad()
def presents(model: Decoder, ids: Tensor) -> list[Tensor]:
    """Return the states of all layers behind these tokens."""
    batch, tokens = ids.shape
    lengths, counts = torch.zeros(batch, dtype=torch.int64), torch.full((batch,), tokens)
    states = model.step(ids, lengths, counts, model.empty_states(batch, tokens))[1]
    return [state for layer in states for state in layer]


def codes(array: Any) -> np.ndarray:
    """Return the bits of FP8 numbers."""
    if isinstance(array, Tensor):
        return array.view(torch.uint8).numpy()
    return array.view(np.uint8)


@pytest.mark.parametrize("target", ["cpu", "onnx"])
@pytest.mark.parametrize("name", [FULL, RINGS])
def test_engine(name: str, target: str, checkpoint: Checkpoint, tmp_path: Path):
    recipe = held(checkpoint(name), tmp_path / "recipe")
    options = {"recipe": recipe, "tokenizer": False}
    engine = export(checkpoint(name), tmp_path / "engine", target, **options)
    report = parity(engine.directory, checkpoint(name), recipe=recipe)
    assert report.passed and report.results[0].scenario == "exact"
    assert {s["dtype"] for s in engine.manifest.fields["graph"]["states"]} == {"float8_e4m3fn"}
    assert engine.manifest.fields["recipe"]["caches"] == {"fp8": len(report_layers(engine))}

    ids = ids_of(12)
    model = taken(checkpoint(name), recipe).model
    session = engine.session(1)
    before = [array.ctypes.data for _, array in session.reserve(12)]
    session.append(ids.numpy())
    after = session.reserve(12)
    assert [array.ctypes.data for _, array in after] == before, "written where they lie"
    for (_, array), state in zip(after, presents(model, ids), strict=True):
        assert array.itemsize == 1
        ours, theirs = codes(array[:, :, : state.shape[2]]), codes(state)
        # In fp32 two sums in another order may lie on either side of a tie: 3e-5 of all numbers.
        assert (ours != theirs).mean() < 1e-2
        assert len(np.unique(ours)) > 20


def report_layers(engine: Engine) -> list[str]:
    return [s["name"] for s in engine.manifest.fields["graph"]["states"] if "key" in s["name"]]


@pytest.mark.parametrize("name", [FULL, RINGS])
def test_tokens_are_seen_as_they_are_kept(name: str, checkpoint: Checkpoint, tmp_path: Path):
    recipe = held(checkpoint(name), tmp_path / "recipe")
    options = {"recipe": recipe, "tokenizer": False, "parity": False}
    engine = export(checkpoint(name), tmp_path / "engine", **options)
    ids = ids_of(24)
    found = taken(checkpoint(name), recipe)
    with torch.no_grad():
        rounded = found.model(ids)[0].numpy()
    session = engine.session(1)
    steps = np.concatenate([session.append(ids[:, t : t + 1].numpy()) for t in range(24)])
    exact = exact_engine(engine.directory).logits(ids.numpy())[0]
    cost = np.abs(rounded - exact).max()
    # A number on the other side of a tie changes far less than rounding all of them.
    for got in (engine.logits(ids.numpy())[0], steps):
        assert np.abs(got - rounded).max() < cost / 10


def test_numbers_saturate(checkpoint: Checkpoint, tmp_path: Path):
    recipe = held(checkpoint(FULL), tmp_path / "recipe", 1e-4)
    engine = export(checkpoint(FULL), tmp_path / "engine", recipe=recipe, tokenizer=False)
    session = engine.session(1)
    assert np.isfinite(session.append(ids_of(8).numpy())).all()
    magnitudes = np.concatenate([codes(array).ravel() & 0x7F for _, array in session.reserve(8)])
    assert magnitudes.max() == LAST
    assert (magnitudes == LAST).sum() > 50


def test_memory_is_that_of_bytes(checkpoint: Checkpoint, tmp_path: Path, lmcast):
    sizes = {}
    for what, recipe in (("fp8", held(checkpoint(FULL), tmp_path / "recipe")), ("plain", None)):
        options = {"recipe": recipe, "tokenizer": False, "parity": False}
        engine = export(checkpoint(FULL), tmp_path / what, **options)
        status, out, _ = lmcast("inspect", engine.directory, "--json")
        sizes[what] = json.loads(out)["state"]
        assert status == 0
        need, _ = engine.runner.memory(engine.session(2)._shaped(16))
        assert need == 2 * 16 * sizes[what]["bytes_per_token"]
    assert sizes["plain"]["bytes_per_token"] == 4 * sizes["fp8"]["bytes_per_token"]
    assert sizes["fp8"]["format"] == "float8_e4m3fn"


@pytest.mark.parametrize("name", [FULL, RINGS])
def test_calibrated(name: str, checkpoint: Checkpoint, tmp_path: Path):
    folder, recipe = checkpoint(name), tmp_path / "recipe"
    report = made(folder, recipe, kv="fp8").report
    source, identities = identified(folder)
    found = understand(source, (), False)
    names = attentions(found.model)
    opened = open_recipe(recipe, identities)
    assert opened.recipe.caches == dict.fromkeys(names, "fp8")
    assert report["caches"] == {"fp8": len(names)}
    kl = report["models"][report["written"]]["kl"]
    assert measured(folder, recipe) == pytest.approx(kl, rel=SAME_KL)
    assert kl > 2 * made(folder, tmp_path / "plain").report["models"]["kept"]["kl"], "is measured"

    fill(found, found.model, source.read, torch.float32)
    states = presents(found.model, sample()[0])
    for index, name in enumerate(names):
        pair = states[2 * index : 2 * index + 2]
        mixer = found.model.get_submodule(name)
        scales = (opened.tensors[f"{name}.cache.{x}"] for x in ("key_scale", "value_scale"))
        for state, tensor in zip(pair, scales, strict=True):
            scale, most = float(opened.extend(source).read(tensor.name)), float(state.abs().max())
            if isinstance(mixer.keeps, Ring):  # it has the last tokens alone
                assert scale * E4M3_MOST > most * (1 - 1e-5)
            else:
                assert scale * E4M3_MOST == pytest.approx(most, rel=1e-5)


def test_caches_alone(checkpoint: Checkpoint, tmp_path: Path):
    """Weights stay; what is measured is what the caches lose."""
    folder, recipe = checkpoint(FULL), tmp_path / "recipe"
    made_here = made(folder, recipe, None, kv="fp8")
    report = made_here.report
    (row,) = report["models"].values()
    assert (report["recipe"], report["bits"], report["weights"]) == (None, 0.0, [])
    assert report["left"] == {} and row["name"] == "calibrated"
    assert "weights as they are; " in made_here.text() and "chosen" not in made_here.text()
    opened = open_recipe(recipe, identified(folder)[1]).recipe
    assert not opened.weights and not opened.inputs
    assert opened.caches == dict.fromkeys(attentions(taken(folder, recipe).model), "fp8")
    assert 0 < row["kl"] == pytest.approx(measured(folder, recipe), rel=SAME_KL)
    engine = export(folder, tmp_path / "engine", recipe=recipe, tokenizer=False)
    assert engine.manifest.fields["recipe"]["formats"] == {}


def test_a_run_goes_on(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made(checkpoint(FULL), tmp_path / "whole", kv="fp8")
    put = Work.put

    def stopping(self: Work, index: int, *given: Any) -> None:
        if index == 1:
            raise KeyboardInterrupt
        put(self, index, *given)

    monkeypatch.setattr(Work, "put", stopping)
    with pytest.raises(KeyboardInterrupt):
        made(checkpoint(FULL), tmp_path / "recipe", kv="fp8")
    monkeypatch.setattr(Work, "put", put)
    made(checkpoint(FULL), tmp_path / "recipe", kv="fp8")
    assert files(tmp_path / "recipe") == files(tmp_path / "whole")


def test_observer_chooses_scales(checkpoint: Checkpoint, tmp_path: Path):
    scales = {}
    for observer in ("maximum", "percentile"):
        made(checkpoint(FULL), tmp_path / observer, "int8", observer=observer, kv="fp8")
        source, identities = identified(checkpoint(FULL))
        extended = open_recipe(tmp_path / observer, identities).extend(source)
        scales[observer] = float(extended.read("layers.1.mixer.cache.key_scale"))
    assert 0 < scales["percentile"] <= scales["maximum"]
    with pytest.raises(CalibrationError, match=r"no static scales to observe.*any with --kv"):
        made(checkpoint(FULL), tmp_path / "recipe", "int8", observer="percentile")


def test_reference_is_not_rounded(checkpoint: Checkpoint, tmp_path: Path):
    found = taken(checkpoint(FULL), held(checkpoint(FULL), tmp_path / "recipe"))
    plain = unrounded(found).model
    assert {s.dtype for states in plain.states() for s in states} == {None}
    assert not [name for name, _ in plain.named_parameters() if "cache" in name]
    assert {s.dtype for states in found.model.states() for s in states} == {torch.float8_e4m3fn}


REFUSED = {
    "deepseek_v3/plain": r"no layer of this model has keys and values of heads; what they hold is"
    r" latent,",
    "gemma3n_text/one of each shared": r"layers\.\d+\.mixer lends its keys and values",
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_without_such_a_cache(name: str, checkpoint: Checkpoint, tmp_path: Path):
    with pytest.raises(CacheError, match=REFUSED[name]):
        made(checkpoint(name), tmp_path / "recipe", kv="fp8")
    assert not (tmp_path / "recipe").exists()


def test_other_states_stay(checkpoint: Checkpoint, tmp_path: Path):
    recipe = held(checkpoint("qwen3_5_text/plain"), tmp_path / "recipe")
    model = taken(checkpoint("qwen3_5_text/plain"), recipe).model
    kinds = {s.name: s.dtype for states in model.states() for s in states}
    assert kinds.pop("key") == kinds.pop("value") == torch.float8_e4m3fn
    assert set(kinds.values()) == {torch.float32, None}


def test_refused(checkpoint: Checkpoint, tmp_path: Path):
    with pytest.raises(InputError, match="kv is 'int8'; accepted: fp8"):
        made(checkpoint(FULL), tmp_path / "recipe", kv="int8")
    wrong = {
        "no-format": ({"layers.0.mixer": "int4"}, "a cache of layers.0.mixer in 'int4'; accepted"),
        "no-layer": ({"layers.9.mixer": "fp8"}, "it has no layer layers.9.mixer"),
        "no-cache": ({"layers.0.ffn": "fp8"}, "layers.0.ffn, which holds no keys and values"),
    }
    for name, (given, words) in wrong.items():
        recipe = held(checkpoint(FULL), tmp_path / name, caches=given)
        with pytest.raises(RecipeError, match=words):
            taken(checkpoint(FULL), recipe)
    recipe = held(checkpoint(FULL), tmp_path / "no-scale", more={})
    with pytest.raises(RecipeError, match=r"has no tensor layers.0.mixer.cache.key_scale"):
        taken(checkpoint(FULL), recipe)
    lender = "gemma3n_text/one of each shared"
    with pytest.raises(RecipeError, match=r"a cache of layers.\d.mixer: a layer that lends"):
        taken(checkpoint(lender), held(checkpoint(lender), tmp_path / "lends"))


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    builder = Builder(1)
    yield builder
    builder.close()


@pytest.mark.parametrize(("name", "dtype"), [(RINGS, "float16"), (FULL, "bfloat16")])
def test_plans(
    name: str, dtype: str, builder: Builder, checkpoint: Checkpoint, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(build, "run", builder.run)
    recipe = held(checkpoint(name), tmp_path / "recipe")
    given = {"recipe": recipe, "tokenizer": False, "parity": False}
    engine = export(
        checkpoint(name), tmp_path / "engine", "tensorrt-rtx", dtype, sms=(89, 120),
        sizes=Sizes(max_context=64), **given,
    )  # fmt: skip
    (entry,) = engine.manifest.fields["plans"]
    graph = engine.manifest.fields["graph"]
    # As every other attention: a kernel of TensorRT. Rings move, so they are written elsewhere.
    assert {form for forms in entry["operators"].values() for form in forms} == {"native"}
    assert entry["in_place"] == sorted(s["name"] for s in graph["states"] if "C" in s["shape"])
    assert entry["in_place"]
    model = ir.load(engine.directory / MODEL)
    request = Request("tensorrt-rtx", (75, 89), 1, 64, 64, 1, 64)
    with pytest.raises(BackendError, match=r"layers.0.key is held in FP8, which SM75 has no"):
        caches.require(model, request)
    caches.require(model, dataclasses.replace(request, sms=(89, 121)))


def test_command(tmp_path: Path, lmcast):
    (tmp_path / "model").mkdir()
    tiny_llama(tmp_path / "model")
    words = ["calibrate", tmp_path / "model", "--recipe", "int8", "--tokens", 64, "--chunk", 32]
    words += ["-o", tmp_path / "recipe", "--kv"]
    status, _, err = lmcast(*words, "int8")
    assert status == 2
    assert "kv is 'int8'; accepted: fp8" in err
    status, out, _ = lmcast(*words, "fp8")
    assert status == 0
    assert "keys and values of 2 layers are held in fp8" in out
    alone = [word for word in words if word not in ("--recipe", "int8")]
    status, out, err = lmcast(*alone, "fp8")
    assert status == 0 and "weights as they are" in out
    assert "no weight of this model" not in err
