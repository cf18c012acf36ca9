"""lmcast calibrate: what it writes is what it measured, in every family; kills, and refusals."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CASES, VOCABULARY, Case
from tiny.llama import tiny_llama
from torch import Tensor

from lmcast.calib.algorithms import ALGORITHMS, Candidate, Outputs, Problem
from lmcast.calib.formats import WEIGHTS
from lmcast.calib.presets import PLAIN, PRESETS, Preset
from lmcast.calib.recipe import RecipeError
from lmcast.exporter.calibrate import choice, run
from lmcast.exporter.calibrate.calibrate import Calibration, calibrate
from lmcast.exporter.calibrate.work import WHOLE, Work
from lmcast.exporter.checkpoint import CheckpointError
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.pipeline import identified, understand
from lmcast.exporter.progress import Progress, Step
from lmcast.exporter.prove.quality import eager_quality
from lmcast.exporter.weights.recipe_files import open_recipe
from lmcast.graphs.blocks.moe import Experts
from lmcast.plugins.errors import InputError

# One scale for each row: what widths of 24 and experts of 16 outputs allow too.
ROWS = Preset("int8", PLAIN, ("rtn", "gptq"))
FAMILIES = list({case.architecture: case for case in reversed(CASES)}.values())


def sample(tokens: int = 16, held: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (2 + held, tokens), generator=generator)
    return ids[:2], ids[2:]


def made(
    checkpoint: Path, output: Path, recipe: str | Preset | None = ROWS, **options: Any
) -> Calibration:
    return calibrate(checkpoint, output, recipe=recipe, ids=sample(), **options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# A divergence measured again, of the same products in other batches: equal to the bit when this was
# written. Another machine may sum in another order: 1e-6 of a logit, by which the least of these
# divergences (1e-4, logits 0.01 apart) changes by 2e-4 of itself.
SAME_KL = 1e-3


def measured(checkpoint: Path, recipe: Path) -> float:
    """Return the divergence of what the files of a recipe make of a checkpoint."""
    source, identities = identified(checkpoint)
    found = understand(source, (), tokenizer=False, text_only=True)  # as calibration takes it
    other = open_recipe(recipe, identities).take(found, source)
    return eager_quality(found, source, *other, sample()[1]).kl.value


class Larger:
    """An algorithm that costs nothing, and whose weights are not those of rounding."""

    smoothing = None

    def run(self, problem: Problem, format: Any) -> Candidate:
        weight = problem.original
        return Candidate(format.pack(weight, format.scales(weight)[0] * 1.01))


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.architecture)
def test_every_family(
    case: Case,
    checkpoint: Callable[[Case], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(choice, "ALGORITHMS", {**ALGORITHMS, "larger": Larger()})
    folder, ladder = checkpoint(case), ("rtn", "larger")
    report = made(folder, tmp_path / "recipe", dataclasses.replace(ROWS, ladder=ladder)).report
    assert {record["algorithm"] for record in report["weights"]} <= set(ladder)
    assert report["models"]["kept"]["kl"] != report["models"]["base"]["kl"]
    kl = report["models"][report["written"]]["kl"]
    assert 0 < kl < 0.5
    assert measured(folder, tmp_path / "recipe") == pytest.approx(kl, rel=SAME_KL)
    # Whatever is a matrix is either quantized or listed.
    model = understand(identified(folder)[0], (), tokenizer=False, text_only=True).model
    matrices = {name for name, p in model.named_parameters() if p.dim() >= 2}
    quantized = {record["name"] for record in report["weights"]}
    assert quantized | report["left"].keys() == matrices
    assert not quantized & report["left"].keys()
    stacks = [name for name, module in model.named_modules() if isinstance(module, Experts)]
    assert [entry["name"] for entry in report["experts"]] == stacks


# Of each kind of inputs the cheapest algorithm that does something to them.
ROUNDED = {
    "fp8": "smoothquant",
    "fp8-static": "gptq",
    "int8-w8a8": "smoothquant",
    "mxfp4-w4a4": "balance+clip",
    "nvfp4": "awq+clip",
}


@pytest.mark.parametrize("recipe", ROUNDED)
def test_rounded_inputs(recipe: str, checkpoint: Callable[[str], Path], tmp_path: Path):
    folder = checkpoint("qwen3/plain")
    preset = dataclasses.replace(PRESETS[recipe], ladder=("rtn", ROUNDED[recipe]))
    report = made(folder, tmp_path / "recipe", preset).report
    kl = report["models"][report["written"]]["kl"]
    assert measured(folder, tmp_path / "recipe") == pytest.approx(kl, rel=SAME_KL)
    given = json.loads((tmp_path / "recipe/recipe.json").read_text())["inputs"].values()
    assert len(given) == len(report["weights"]) > 10
    expected = (preset.inputs.format, preset.inputs.static, preset.inputs.rotation)
    assert {(each["format"], each["static"], each["rotation"]) for each in given} == {expected}


def test_observers_choose_static_scales(checkpoint: Callable[[str], Path], tmp_path: Path):
    scales = {}
    for observer in ("maximum", "mse"):
        output = tmp_path / observer
        made(checkpoint("qwen3/plain"), output, "fp8-static", observer=observer)
        source, identities = identified(checkpoint("qwen3/plain"))
        found = open_recipe(output, identities)
        name = "layers.0.mixer.q.input_scale"
        scales[observer] = float(found.extend(source).read(name))
    assert 0 < scales["mse"] < scales["maximum"]


def test_a_killed_run_goes_on(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, put = checkpoint("qwen3_moe/plain"), Work.put
    made(folder, tmp_path / "whole")

    def killing(self: Work, index: int, variant: str, *given: Any) -> None:
        put(self, index, variant, *given)
        if (index, variant) == (1, "kept"):  # of its two variants one is there
            os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        Work.put = killing  # in this process alone
        made(folder, tmp_path / "recipe")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "recipe").exists()
    done = list[int]()
    layer = run.LayerWork

    def counted(index: int, *given: Any) -> Any:
        done.append(index)
        return layer(index, *given)

    monkeypatch.setattr(run, "LayerWork", counted)
    made(folder, tmp_path / "recipe")
    assert done == [1, 2]
    assert files(tmp_path / "recipe") == files(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["recipe", "whole"]


def test_work_of_other_arguments_is_not_taken(checkpoint: Callable[[str], Path], tmp_path: Path):
    folder = checkpoint("llama/plain")

    class Broken(Progress):
        def warn(self, message: str) -> None:
            raise KeyboardInterrupt

    nothing = dataclasses.replace(ROWS, weights="int4-128")  # no width is a multiple of 128
    with pytest.raises(KeyboardInterrupt):
        made(folder, tmp_path / "recipe", nothing, progress=Broken())
    beside = tmp_path / ".recipe.lmcast-calibration"
    assert (beside / "kept-0002" / WHOLE).exists()
    assert len(made(folder, tmp_path / "recipe").report["weights"]) > 10
    assert not beside.exists()


def test_an_early_failure_leaves_nothing(checkpoint: Callable[[str], Path], tmp_path: Path):
    class Interrupted(Progress):
        @contextmanager
        def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
            if name == "calibrating":
                raise KeyboardInterrupt
            yield lambda done: None

    with pytest.raises(KeyboardInterrupt):
        made(checkpoint("llama/plain"), tmp_path / "recipe", progress=Interrupted())
    assert not os.listdir(tmp_path)


class Zeros:
    """An algorithm that makes every weight 0."""

    smoothing = None

    def run(self, problem: Problem, format: Any) -> Candidate:
        return Candidate(format.pack(torch.zeros_like(problem.original)))


def test_a_bad_algorithm_is_not_kept(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(choice, "ALGORITHMS", {**ALGORITHMS, "zeros": Zeros()})
    bad, folder = dataclasses.replace(ROWS, ladder=("rtn", "zeros")), checkpoint("llama/plain")
    report = made(folder, tmp_path / "recipe", bad).report
    assert {record["algorithm"] for record in report["weights"]} == {"rtn"}
    # One that looks good layer by layer is found out by the whole model.
    true = Outputs.error

    def fooled(self: Outputs, candidate: Candidate) -> float:
        zero = not candidate.quantized.dequantize().any()
        return 0.0 if zero else true(self, candidate)

    monkeypatch.setattr(Outputs, "error", fooled)
    report = made(folder, tmp_path / "fooled", bad).report
    assert report["written"] == "base"
    assert report["models"]["kept"]["kl"] > 10 * report["models"]["base"]["kl"]
    assert {record["algorithm"] for record in report["weights"]} == {"rtn"}
    assert measured(folder, tmp_path / "fooled") == pytest.approx(
        report["models"]["base"]["kl"], rel=SAME_KL
    )


def test_rare_experts(checkpoint: Callable[[str], Path], tmp_path: Path):
    heard = list[str]()

    class Listening(Progress):
        def warn(self, message: str) -> None:
            heard.append(message)

    folder = checkpoint("qwen3_moe/plain")
    report = made(folder, tmp_path / "a", fewest_tokens=10, progress=Listening()).report
    for stack in report["experts"]:
        assert sum(stack["tokens"]) == 2 * sample()[0].numel()  # two experts for each token
        rare = [e for e, count in enumerate(stack["tokens"]) if count < 10]
        assert stack["pooled"] == rare
        assert stack["weight_only"] == []
    (message,) = heard
    assert "experts see fewer than 10 tokens" in message
    every = made(folder, tmp_path / "b", fewest_tokens=1000).report
    assert all(len(stack["weight_only"]) == len(stack["tokens"]) for stack in every["experts"])
    assert made(folder, tmp_path / "c", fewest_tokens=0).report["experts"][0]["pooled"] == []


def test_replaces_recipes_only(checkpoint: Callable[[str], Path], tmp_path: Path):
    output, folder = tmp_path / "recipe", checkpoint("llama/plain")
    made(folder, output)
    before = files(output)
    made(folder, output, dataclasses.replace(ROWS, weights="fp8-channel"))
    assert files(output).keys() == before.keys()
    assert files(output) != before
    (output / "notes.txt").write_text("mine")
    with pytest.raises(EngineError, match="of other files"):
        made(folder, output)


def test_refusals(checkpoint: Callable[[str], Path], tmp_path: Path):
    folder, output = checkpoint("llama/plain"), tmp_path / "recipe"
    for options, message in (
        ({"recipe": "int3"}, "int3.*accepted: fp8"),
        ({"recipe": "fp8-static", "observer": "median"}, "median.*accepted: maximum"),
        ({"recipe": "mxfp4", "observer": "mse"}, "no static scales"),
        ({"recipe": None}, "neither a recipe nor --kv"),
        ({"recipe": None, "kv": "fp8", "head": True}, "are for weights: give --recipe"),
        ({"recipe": None, "kv": "fp8", "bits": 5.0}, "are for weights: give --recipe"),
        ({"recipe": None, "kv": "fp8", "most_kl": 1.0}, "are for weights: give --recipe"),
        ({"recipe": None, "kv": "fp8", "observer": "median"}, "median.*accepted: maximum"),
        ({"recipe": "int8", "ids": sample(2000)}, "at most 64"),
        ({"recipe": "int8", "ids": (sample()[0] + VOCABULARY, sample()[1])}, "accepted: 0 to 96"),
        ({"recipe": "int8", "ids": (sample()[0][:, :1], sample()[1])}, "at least 2"),
        ({"recipe": "int8", "ids": (sample()[0].float(), sample()[1])}, "torch.float32; accepted"),
        ({"recipe": "int8", "ids": (sample()[0], sample()[1].int())}, "torch.int32; accepted"),
        ({"recipe": "int8", "ids": sample(), "data": "a.txt"}, "both ids and data"),
        ({"recipe": "int8", "tokens": 0}, "tokens is 0"),
    ):
        with pytest.raises(InputError, match=message):
            calibrate(folder, output, **options)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        calibrate(folder, output, recipe="int8")
    assert not output.exists()


def test_command(lmcast: Callable[..., tuple[int, str, str]], tmp_path: Path):
    folder, text, output = tmp_path / "llama", tmp_path / "text.txt", tmp_path / "recipe"
    folder.mkdir()
    tiny_llama(folder)
    given = ("--recipe", "int8", "--chunk", 16, "--data", text, "-o", output)
    text.write_text("too short")
    status, _, error = lmcast("calibrate", folder, *given)
    assert status == 2
    assert "give more text" in error
    text.write_text("".join(chr(ord("a") + i * i % 23) for i in range(2000)))
    status, shown, _ = lmcast("calibrate", folder, *given, "--tokens", 64)
    assert status == 0
    assert "written" in shown
    first = files(output)
    status, shown, said = lmcast("calibrate", folder, *given, "--tokens", 64, "--json")
    assert all(f"layer {i} of 2 is done after" in said for i in (1, 2))
    assert json.loads((output / "recipe.json").read_text())["quality"]["text"] == "text.txt"
    report = json.loads(shown)
    assert (status, report["tokens"], report["held_out_tokens"]) == (0, 64, 16)
    assert files(output) == first


def test_a_recipe_belongs_to_its_checkpoint(checkpoint: Callable[[str], Path], tmp_path: Path):
    made(checkpoint("llama/plain"), tmp_path / "recipe")
    _, theirs = identified(checkpoint("qwen3/plain"))
    with pytest.raises(RecipeError, match="another checkpoint"):
        open_recipe(tmp_path / "recipe", theirs)
    source, own = identified(checkpoint("llama/plain"))
    (tmp_path / "recipe/weights/layer-0001-model-00001.safetensors").unlink()
    found = understand(source, (), tokenizer=False)
    with pytest.raises(RecipeError, match=r"layer-0001-model-00001.*missing.*calibrate again"):
        open_recipe(tmp_path / "recipe", own).take(found, source)
    shutil.rmtree(tmp_path / "recipe/weights")
    (tmp_path / "recipe/recipe.json").write_text("{")
    with pytest.raises(ValueError, match=r"recipe\.json"):
        open_recipe(tmp_path / "recipe", own)


def test_every_preset_names_what_there_is():
    for preset in PRESETS.values():
        assert preset.weights in WEIGHTS
        assert set(preset.ladder) <= ALGORITHMS.keys()
