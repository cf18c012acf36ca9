"""Budgets of calibration: how bytes are spent, what is measured of them, and quantized heads."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_calibrate import SAME_KL, files, measured, sample

from lmcast.calib import budget
from lmcast.calib.budget import Option, Plan
from lmcast.calib.formats import WEIGHTS
from lmcast.calib.presets import PRESETS, Preset
from lmcast.exporter import export
from lmcast.exporter.calibrate import run
from lmcast.exporter.calibrate.calibrate import Calibration, CalibrationError, calibrate
from lmcast.exporter.calibrate.head import HeadError
from lmcast.exporter.pipeline import identified, understand
from lmcast.exporter.progress import Progress, Step
from lmcast.exporter.weights.recipe_files import open_recipe
from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.plugins.errors import CheckFailed, InputError

RTN = ("rtn",)
INT4 = Preset("int4", PRESETS["int4"].inputs, RTN)


def options(seed: int, weights: int = 6) -> dict[str, list[Option]]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for index in range(weights):
        size = int(torch.randint(1, 9, (), generator=generator)) * 16
        four, eight = torch.rand(2, generator=generator).tolist()
        found[f"w{index}"] = [
            Option("int4", size * 0.5, four),
            Option("int8", size, four * eight / 4),
            Option(None, size * 2, 0.0),
        ]
    return found


def error(plan: Plan) -> float:
    return sum(option.error for option in plan.values())


@pytest.mark.parametrize("seed", range(4))
def test_allocation_is_near_the_best_there_is(seed: int):
    given = options(seed)
    plans = [dict(zip(given, p, strict=True)) for p in itertools.product(*given.values())]
    least, most = (budget.size(of(given)) for of in (budget.narrowest, budget.widest))
    for share in (0, 0.1, 0.3, 0.6, 1):
        bytes = least + share * (most - least)
        plan = budget.allocate(given, bytes)
        assert budget.size(plan) <= bytes + 1e-6
        best = min(error(p) for p in plans if budget.size(p) <= bytes)
        # A greedy choice loses at most what one weight can still gain.
        gain = max(each[0].error for each in given.values())
        assert best <= error(plan) + 1e-9 <= best + gain
    assert budget.allocate(given, most) == budget.widest(given)
    assert budget.allocate(given, least) == budget.narrowest(given)


def test_an_option_that_is_worse_and_larger_is_not_taken():
    given = {"w": [Option("int4", 4, 0.5), Option("int8", 8, 0.6), Option(None, 3, 0.0)]}
    for bytes in (3, 8):
        assert budget.allocate(given, bytes)["w"].format is None


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_search_finds_the_least_bits_within_four_passes(scale: float):
    given, asked = options(1, 40), []

    def kl(plan: Plan) -> float:
        asked.append(plan)
        return scale * error(plan) ** 1.2

    most = 0.3 * scale * error(budget.narrowest(given)) ** 1.2
    plan, tried = budget.least(given, most, kl)
    assert plan is not None
    assert [each.plan for each in tried] == asked
    assert len(asked) <= 4
    assert kl(plan) <= most
    # All that were narrower failed; the next step of the search is within a tenth of the range.
    assert all(t.kl > most for t in tried if budget.size(t.plan) < budget.size(plan))
    best = next(b for b in range(10**6) if kl(budget.allocate(given, b)) <= most)
    span = budget.size(budget.widest(given)) - budget.size(budget.narrowest(given))
    assert budget.size(plan) - best < 0.1 * span


def test_search_ends_where_the_narrowest_does_or_nothing_does():
    given = options(2)
    plan, tried = budget.least(given, 1.0, lambda plan: 0.5)
    assert (plan, len(tried)) == (budget.narrowest(given), 1)
    plan, tried = budget.least(given, 1.0, lambda plan: 2.0)
    assert plan is None
    assert len(tried) == 4
    assert budget.size(tried[-1].plan) >= budget.size(budget.widest(given, quantized=True))
    plan, tried = budget.least(given, 1.0, lambda plan: math.nan)
    assert plan is None


def made(checkpoint: Path, output: Path, recipe: str | Preset = INT4, **more: Any) -> Calibration:
    return calibrate(checkpoint, output, recipe=recipe, ids=sample(), **more)


def least_and_most(checkpoint: Path, output: Path, recipe: str | Preset = INT4) -> list[float]:
    with pytest.raises(CalibrationError, match=r"accepted: between the two") as refused:
        made(checkpoint, output, recipe, bits=1e-3)
    with pytest.raises(CalibrationError, match=r"100 bits .* accepted: between the two"):
        made(checkpoint, output, recipe, bits=100)
    assert not output.exists()
    words = str(refused.value).split()
    return [float(word) for word in words if word.replace(".", "").isdigit() and "." in word][1:]


def test_bits_are_spent_on_what_needs_them(checkpoint: Callable[[str], Path], tmp_path: Path):
    folder = checkpoint("llama/plain")
    least, most = least_and_most(folder, tmp_path / "recipe")
    # Codes of 4 bits and a half of 2 bytes for each 32; columns that are no multiple have 8.
    assert 4.5 < least < most == 32
    kls = []
    for bits in (least + 0.01, (least + most) / 2, most):
        report = made(folder, tmp_path / "recipe", bits=bits).report
        spent = report["budget"]
        assert spent["bits"] <= bits
        kls.append(report["models"][report["written"]]["kl"])
        assert spent["passes"] == [{"bits": spent["bits"], "kl": kls[-1]}]
        assert measured(folder, tmp_path / "recipe") == pytest.approx(
            kls[-1], rel=SAME_KL, abs=1e-9
        )
        check_written(folder, tmp_path / "recipe", report)
    assert kls[0] > 2 * kls[1]
    assert kls[1] > kls[2] == 0


@pytest.mark.parametrize("name", ["layers.0.ffn.gate", "layers.1.mixer.o"])
def test_a_weight_that_suffers_is_the_first_that_gets_more(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
):
    folder = tmp_path / "outliers"
    shutil.copytree(checkpoint("llama/plain"), folder)
    weights = load_file(folder / "model.safetensors")
    theirs = name.replace("ffn", "mlp").replace("mixer", "self_attn") + "_proj.weight"
    weights[f"model.{theirs}"][:, 5] *= 30  # beside it the rest of a block of int4 is nearly 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    least, _ = least_and_most(folder, tmp_path / "recipe")
    model = understand(identified(folder)[0], (), tokenizer=False).model
    report = made(folder, tmp_path / "recipe", bits=least + 1e-3).report
    before = report["budget"]["weights"]
    numbers = sum(model.get_parameter(each).numel() for each in before)
    shape = tuple(model.get_parameter(f"{name}.weight").shape)
    more = WEIGHTS["int8"].scheme.bytes(shape) - WEIGHTS["int4"].scheme.bytes(shape)
    enough = least + 8 * more / numbers + 1e-3  # of 3 digits that a refusal has
    after = made(folder, tmp_path / "recipe", bits=enough).report["budget"]["weights"]
    changed = {each: after[each] for each in after if after[each] != before[each]}
    assert changed == {f"{name}.weight": "int8"}


def check_written(checkpoint: Path, recipe: Path, report: dict[str, Any]) -> None:
    """Count the bytes of the files themselves."""
    source, identities = identified(checkpoint)
    model = understand(source, (), tokenizer=False).model
    stored, weights = open_recipe(recipe, identities), report["budget"]["weights"]
    quantized = {name for name, format in weights.items() if format is not None}
    assert stored.recipe.weights.keys() == quantized
    assert {r["name"]: r["format"] for r in report["weights"]} == {
        name: weights[name] for name in quantized
    }
    parts = [t for name, t in stored.tensors.items() if name.rpartition(".")[0] in quantized]
    numbers = {name: model.get_parameter(name).numel() for name in weights}
    whole = sum(4 * numbers[name] for name in weights.keys() - quantized)
    bits = 8 * (sum(t.nbytes for t in parts) + whole) / sum(numbers.values())
    assert bits == pytest.approx(report["budget"]["bits"])
    assert {name for name, why in report["left"].items() if "budget" in why} == (
        weights.keys() - quantized
    )


@pytest.mark.parametrize("recipe", ["fp8-static", "mxfp4-w4a8", "int8-w8a8"])
def test_bits_of_recipes_that_round_inputs(
    recipe: str, checkpoint: Callable[[str], Path], tmp_path: Path
):
    folder = checkpoint("qwen3_moe/plain")
    preset = Preset(PRESETS[recipe].weights, PRESETS[recipe].inputs, RTN)
    least, most = least_and_most(folder, tmp_path / "recipe", preset)
    found = made(folder, tmp_path / "recipe", preset, bits=(least + most) / 2)
    weights = found.report["budget"]["weights"]
    inputs = json.loads((tmp_path / "recipe/recipe.json").read_text())["inputs"]
    experts = {stack["name"] for stack in found.report["experts"]}
    # Inputs are rounded of what is quantized, but for experts.
    assert inputs.keys() == {
        name.removesuffix(".weight")
        for name, format in weights.items()
        if format is not None and name.rpartition(".")[0] not in experts
    }
    assert 2 <= len(set(weights.values())) <= 3
    assert measured(folder, tmp_path / "recipe") == pytest.approx(
        found.report["models"]["base"]["kl"], rel=SAME_KL
    )
    shown = found.text()
    assert "  as it is " in shown
    assert "the budget has room" in shown
    assert f"{found.report['budget']['bits']:.2f} bits a weight on average" in shown
    assert ("experts: their weights alone" in shown) == bool(experts)


def test_least_bits_of_a_divergence(checkpoint: Callable[[str], Path], tmp_path: Path):
    folder, heard = checkpoint("llama/plain"), list[str]()

    class Listening(Progress):
        def say(self, message: str) -> None:
            heard.append(message)

    narrowest = made(folder, tmp_path / "a", most_kl=1.0).report
    (only,) = narrowest["budget"]["passes"]
    most = only["kl"] / 3
    found = made(folder, tmp_path / "b", most_kl=most, progress=Listening())
    passes = found.report["budget"]["passes"]
    assert passes[0] == only
    assert 2 <= len(passes) <= 4
    assert [line for line in heard if "of at most 4" in line] == [
        f"pass {n} of at most 4: {each['bits']:.2f} bits a weight"
        for n, each in enumerate(passes, 1)
    ]
    kl = found.report["models"][found.report["written"]]["kl"]
    assert measured(folder, tmp_path / "b") == pytest.approx(kl, rel=SAME_KL)
    enough = [each for each in passes if each["kl"] <= most]
    assert min(enough, key=lambda each: each["bits"]) == {
        "bits": found.report["budget"]["bits"],
        "kl": kl,
    }
    assert f"KL {kl:.2e} at {found.report['budget']['bits']:.2f} bits" in found.text()
    check_written(folder, tmp_path / "b", found.report)
    with pytest.raises(CheckFailed, match="of 4 passes, above the 1e-12 allowed"):
        made(folder, tmp_path / "c", most_kl=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_killed_search_goes_on(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = checkpoint("llama/plain")
    whole = made(folder, tmp_path / "whole", most_kl=0.03)
    passes = len(whole.report["budget"]["passes"])
    assert passes > 2

    class Interrupted(Progress):
        """At the end of the second pass."""

        compared = 0

        @contextmanager
        def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
            self.compared += name == "comparing"
            if self.compared == 2:
                raise KeyboardInterrupt
            yield lambda done: None

    with pytest.raises(KeyboardInterrupt):
        made(folder, tmp_path / "recipe", most_kl=0.03, progress=Interrupted())
    assert not (tmp_path / "recipe").exists()
    done, layer = list[int](), run.LayerWork

    def counted(index: int, *given: Any) -> Any:
        done.append(index)
        return layer(index, *given)

    monkeypatch.setattr(run, "LayerWork", counted)
    made(folder, tmp_path / "recipe", most_kl=0.03)
    assert done == [0, 1, 2] * (passes - 2)
    assert files(tmp_path / "recipe") == files(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        made(folder, tmp_path / "recipe", most_kl=0.03, progress=Interrupted())
    assert len(list(tmp_path.iterdir())) == 4
    made(folder, tmp_path / "recipe")  # of other arguments
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe", "whole"]


@pytest.mark.parametrize("case", ["llama/plain", "llama/biases, tied", "gemma3_text/derived types"])
def test_heads(case: str, checkpoint: Callable[[str], Path], tmp_path: Path):
    folder = checkpoint(case)
    plain = made(folder, tmp_path / "plain").report
    found = made(folder, tmp_path / "recipe", head=True)
    report, name = found.report, found.report["head"]
    source, identities = identified(folder)
    model = understand(source, (), tokenizer=False).model
    assert name == ("final.head.weight" if case == "llama/plain" else "embed.weight")
    assert name in dict(model.named_parameters())
    stored = open_recipe(tmp_path / "recipe", identities)
    assert stored.recipe.weights[name].name == "int4"
    (record,) = (r for r in report["weights"] if r["name"] == name)
    assert 0 < record["error"] < record["base_error"] < 0.1
    assert name in plain["left"]
    assert name not in report["left"]
    # What it costs is in what was measured, of both variants; the checkpoint is as it was.
    for variant in ("kept", "base"):
        kl = report["models"][variant]["kl"]
        assert abs(kl / plain["models"][variant]["kl"] - 1) > 0.01
    assert report["perplexity"] == plain["perplexity"]
    kl = report["models"][report["written"]]["kl"]
    assert measured(folder, tmp_path / "recipe") == pytest.approx(kl, rel=1e-3)
    assert f"head: {name} is quantized too" in found.text()


def test_engine_of_mixed_formats_and_a_head(checkpoint: Callable[[str], Path], tmp_path: Path):
    folder, preset = checkpoint("qwen3_moe/plain"), PRESETS["mxfp4-w4a8"]
    preset = Preset(preset.weights, preset.inputs, RTN)
    report = made(folder, tmp_path / "recipe", preset, bits=9, head=True).report
    assert {"mxfp4", "fp8-channel", None} == set(report["budget"]["weights"].values())
    assert report["formats"]["mxfp4"] + report["formats"]["fp8-channel"] > 10
    # The export proves parity, or nothing would be written.
    engine = export(folder, tmp_path / "engine", recipe=tmp_path / "recipe", tokenizer=False)
    assert engine.manifest.fields["graph"]["prepack"]


def test_refusals(
    lmcast: Callable[..., tuple[int, str, str]], checkpoint: Callable[[str], Path], tmp_path: Path
):
    folder, output = checkpoint("llama/plain"), tmp_path / "recipe"
    with pytest.raises(HeadError, match=r"final.head.weight cannot be int4-64: 32 inputs"):
        made(folder, output, "int4-64", head=True)
    with pytest.raises(CalibrationError, match="one of them"):
        made(folder, output, bits=5, most_kl=1)
    with pytest.raises(InputError, match="bits is nan; accepted: a finite number from"):
        made(folder, output, bits=math.nan)
    with pytest.raises(CalibrationError, match="no weight of this model can be quantized"):
        made(folder, output, Preset("int8", InputFormat("int8", rotation=64), RTN), bits=9)
    for budget_, message in (("kl=low", "accepted: kl="), ("bits=4", "accepted: kl=")):
        given = ("--recipe", "int4", "--budget", budget_, "-o", output)
        status, _, error = lmcast("calibrate", folder, *given)
        assert status == 2
        assert message in error
    assert not output.exists()
