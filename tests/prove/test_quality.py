"""What an engine has lost, against the same numbers computed directly; gates and reports."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from files.rounded import round_weights
from tiny.llama import HEAD, Q0, config, set_tensor, tiny_llama

from lmcast.exporter import Engine, export
from lmcast.exporter.checkpoint import identified, open_checkpoint
from lmcast.exporter.cli.reports import check_reports
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.pipeline import understand
from lmcast.exporter.prove.corpus import chunks, read_corpus, text_of
from lmcast.exporter.prove.divergence import Comparison, LayerError, Mean, Measured, Worst
from lmcast.exporter.prove.quality import eager_quality, quality
from lmcast.exporter.prove.quality_report import html
from lmcast.exporter.prove.rounding import unrounded
from lmcast.exporter.weights.recipe_files import open_recipe
from lmcast.graphs import load
from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.plugins.errors import CheckFailed, InputError

CHUNK, COUNT = 40, 4
SIZE = ("--tokens", CHUNK * COUNT, "--chunk", CHUNK)
FIELDS = {
    "report",
    "chunks", "tokens", "kl", "top1", "perplexity", "reference_perplexity", "perplexity_ratio",
    "worst", "bytes", "reference_bytes", "by_position", "by_chunk", "histogram", "layers",
}  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a changed copy of it, and the engine of that copy."""
    folder = tmp_path_factory.mktemp("quality")
    tiny_llama(folder / "checkpoint")
    shutil.copytree(folder / "checkpoint", folder / "changed")
    random = torch.Generator().manual_seed(1)

    def change(weights):
        return weights[Q0] + torch.randn(weights[Q0].shape, generator=random) * 0.3

    set_tensor(Q0, change)(folder / "changed")
    set_tensor(HEAD, lambda weights: weights[HEAD] * 1.5)(folder / "changed")
    export(folder / "changed", folder / "engine", weights="copy", parity=False)
    return folder


@pytest.fixture(scope="module")
def recipe(made: Path) -> Path:
    """A recipe for the checkpoint: all of layer 1 in 4 bits, its down projection's inputs in 8."""
    inputs = {"layers.1.ffn.down": InputFormat("fp8")}
    return round_weights(
        made / "checkpoint",
        made / "recipe",
        lambda name, _: "int4" if name.startswith("layers.1.mixer") else None,
        inputs,
    )


def sample(folder: Path) -> torch.Tensor:
    source = open_checkpoint(folder / "checkpoint")
    return chunks(read_corpus(None), text_of(source), CHUNK, COUNT, "measuring")


def logs(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def error(each: np.ndarray) -> float:
    return each.std(ddof=1) / len(each) ** 0.5


def test_the_numbers_are_what_they_say(made: Path):
    ids = sample(made)
    measured = quality(made / "engine", made / "checkpoint", None, CHUNK * COUNT - 1, CHUNK)
    p = logs(load(made / "checkpoint")(ids).numpy())
    q = logs(Engine(made / "engine").logits(ids.numpy()))
    kl = (np.exp(p) * (p - q)).sum(-1)
    near = {"rel": 1e-4}  # the logits of both are fp32, which is 1e-7 of numbers that cancel
    assert kl.mean() > 1e-3
    assert measured.kl.value == pytest.approx(kl.mean(), **near)
    assert measured.kl.error == pytest.approx(error(kl.mean(1)), **near)
    assert measured.by_position == pytest.approx(kl.mean(0), **near)
    assert measured.by_chunk == pytest.approx(kl.mean(1), **near)
    same = p.argmax(-1) == q.argmax(-1)
    assert measured.top1.value == pytest.approx(same.mean())
    assert 0 < same.mean() < 1
    index = (np.arange(COUNT)[:, None], np.arange(CHUNK - 1), ids.numpy()[:, 1:])
    losses = {"reference_perplexity": -p[index].mean(1), "perplexity": -q[index].mean(1)}
    losses["perplexity_ratio"] = losses["perplexity"] - losses["reference_perplexity"]
    for name, each in losses.items():
        mean: Mean = getattr(measured, name)
        assert mean.value == pytest.approx(np.exp(each.mean()), **near)
        assert mean.error == pytest.approx(np.exp(each.mean()) * error(each), **near)
    chunk, position = np.unravel_index(kl.argmax(), kl.shape)
    assert (measured.worst.chunk, measured.worst.position) == (chunk, position)
    assert measured.worst.kl == pytest.approx(kl.max(), **near)
    assert (measured.chunks, measured.tokens) == (COUNT, CHUNK)
    assert sum(count for _, _, count in measured.histogram) == kl.size
    for low, high, count in measured.histogram[1:-1]:  # the ends may hold what fp32 moves
        assert count == pytest.approx(((kl >= low) & (kl < high)).sum(), abs=1)
    weights = (made / "checkpoint" / "model.safetensors").stat().st_size
    assert weights - 4096 < measured.bytes == measured.reference_bytes < weights
    assert measured.layers is None


def test_an_engine_of_the_checkpoint_itself_has_lost_nothing(made: Path):
    measured = quality(made / "engine", made / "changed", None, CHUNK, CHUNK)
    assert 0 <= measured.kl.value < 1e-9  # both are fp32
    assert measured.kl.error is None  # of one chunk
    assert measured.top1.value == 1
    assert measured.perplexity_ratio.value == pytest.approx(1, abs=1e-5)


def test_pieces_give_what_the_whole_does():
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (2, 7), generator=random)
    p, q = (torch.randn(2, 7, 50, generator=random) for _ in range(2))
    results = []
    for step in (1, 3, 7):
        compared = Comparison(ids)
        for chunk in range(2):
            for at in torch.arange(7).split(step):
                compared.add(chunk, int(at[0]), p[chunk, at], q[chunk, at])
        results.append(compared.measured(1, 2))
    assert results[0] == results[1] == results[2]
    assert results[0].kl.value > 0.1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(bad: float):
    logits = torch.zeros(4, 5)
    broken = logits.clone()
    broken[2, 1] = bad
    with pytest.raises(CheckFailed, match=r"the engine gives .* not finite at 12 of chunk 1"):
        Comparison(torch.zeros(2, 20, dtype=torch.int64)).add(1, 10, logits, broken)


def test_a_loss_that_has_no_perplexity():
    ids = torch.tensor([[0, 1, 0]])
    compared = Comparison(ids)
    compared.add(0, 0, torch.tensor([[2e3, 0.0]] * 3), torch.zeros(3, 2))
    with pytest.raises(CheckFailed, match="the loss is 1000 nats a token: it has no"):
        compared.measured(1, 1)


def test_the_gate(made: Path, lmcast: Run, tmp_path: Path):
    arguments = ("quality", made / "engine", "--against", made / "checkpoint", *SIZE)
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    status, out, err = lmcast(*arguments, "--json", report, "--html", page, "--max-kl", "1e-9")
    assert status == 1
    read = json.loads(report.read_text())  # written although the gate fails
    assert err.startswith(f"failed: the mean KL per token is {read['kl']['value']:.4g}")
    assert "above the 1e-09 allowed" in err
    assert f"{read['kl']['value']:.3g} ±{read['kl']['error']:.3g} nats" in out
    assert read.keys() == FIELDS
    status, out, err = lmcast(*arguments, "--json", "-", "--max-kl", str(read["kl"]["value"]))
    assert (status, err) == (0, "")
    assert json.loads(out) == read
    assert f"{read['kl']['value']:.4g}" in page.read_text()
    check_reports([report, page], force=False)  # both are known as ours


def test_layers_of_a_recipe(made: Path, recipe: Path, tmp_path: Path):
    """Only what the recipe changes has an error, and the engine has it too."""
    export(made / "checkpoint", tmp_path / "engine", recipe=recipe)
    measured = quality(tmp_path / "engine", made / "checkpoint", None, CHUNK * COUNT, CHUNK, recipe)
    assert measured.layers is not None
    errors = [each.error.value for each in measured.layers]
    assert errors[0] == 0 and 1e-3 < errors[1] < 0.5
    assert [each.layer for each in measured.ranked()] == [1, 0]
    assert measured.kl.value > 1e-6
    assert measured.bytes < measured.reference_bytes
    source, identities = identified(made / "checkpoint")
    found = understand(source, (), True)
    taken = open_recipe(recipe, identities).take(found, source)
    eager = eager_quality(found, source, *taken, sample(made), with_layers=True)
    # The engine rounds the same numbers, so only fp32 in another order is between the two.
    assert eager.kl.value == pytest.approx(measured.kl.value, rel=1e-3)
    assert eager.layers == measured.layers
    with pytest.raises(InputError, match="was made without a recipe"):
        quality(made / "engine", made / "checkpoint", None, CHUNK, CHUNK, recipe)


def test_inputs_of_the_reference_are_not_rounded(made: Path, recipe: Path):
    """What is measured against a checkpoint that rounds inputs shows that loss too."""
    source, identities = identified(made / "checkpoint")
    found, extended = open_recipe(recipe, identities).take(understand(source, (), True), source)
    ids = sample(made)
    assert eager_quality(found, extended, unrounded(found), extended, ids).kl.value < 1e-12
    assert eager_quality(found, extended, found, extended, ids).kl.value > 1e-9


WRONG = {
    "tokens": ({"tokens": 0}, "tokens is 0; accepted: an integer from 1"),
    "chunk": ({"chunk": 0}, "chunk is 0; accepted: an integer from 1"),
    "context": ({"chunk": 129}, "128"),
    "little": ({"tokens": 10**7}, "chunks of 40 for measuring"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_sizes(name: str, made: Path):
    changes, message = WRONG[name]
    given = {"tokens": CHUNK * COUNT, "chunk": CHUNK} | changes
    with pytest.raises(InputError, match=message):
        quality(made / "engine", made / "checkpoint", **given)


def test_another_model(made: Path, tmp_path: Path):
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    config(architectures=["MistralForCausalLM"], model_type="mistral")(tmp_path / "checkpoint")
    with pytest.raises(EngineError, match="architecture is llama, but mistral in"):
        quality(made / "engine", tmp_path / "checkpoint", None, CHUNK, CHUNK)


def test_another_tokenizer(made: Path, tmp_path: Path):
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "tokenizer.json"
    made_of = json.loads(file.read_text())
    vocabulary = made_of["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(made_of))
    with pytest.raises(EngineError, match=r"tokenizer\.json gives other ids"):
        quality(made / "engine", tmp_path / "checkpoint", None, CHUNK, CHUNK)


MEASURED = Measured(
    chunks=2,
    tokens=3,
    kl=Mean(0.0123, 0.002),
    top1=Mean(0.91, 0.01),
    perplexity=Mean(17.5, 1.25),
    reference_perplexity=Mean(16.25, 1.125),
    perplexity_ratio=Mean(1.077, 0.011),
    worst=Worst(1, 2, 0.75),
    bytes=1234,
    reference_bytes=4321,
    by_position=(0.001, 0.02, 0.3),
    by_chunk=(0.0103, 0.0143),
    histogram=((1e-3, 1e-2, 4), (1e-2, 1e-1, 0), (0.1, 1, 2)),
    layers=tuple(LayerError(i, Mean(0.01 * i, None if i == 2 else 0.002)) for i in range(4)),
)
FEW = dataclasses.replace(
    MEASURED,
    kl=Mean(0.0, None),
    by_position=(0.0,),
    by_chunk=(0.0,),
    histogram=((0.1, 1.0, 1),),
    layers=None,
)


@pytest.mark.parametrize("measured", [MEASURED, FEW])
def test_the_page(measured: Measured):
    """One well-formed file with the numbers, nothing from elsewhere, and all of it in the frame."""
    page = html(measured, "a <b> & c")
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert root.findtext("head/title") == "Quality of a <b> & c"
    names = {name for element in root.iter() for name in (element.tag, *element.attrib)}
    assert not names & {"script", "src", "href", "link"}
    assert "url(" not in page and "http" not in page
    heads, values = root.iter("th"), root.iter("td")
    cells = {head.text: value.text for head, value in zip(heads, values, strict=True)}
    assert cells["KL per token"] == f"{measured.kl.text('.4g')} nats"
    assert cells["perplexity of the engine"] == "17.500 ±1.250"
    assert cells["bytes of the engine's weights"] == "1,234"
    plots = list(root.iter("svg"))
    assert len(plots) == (3 if measured.layers else 2)
    for plot in plots:
        wide, high = map(float, plot.attrib["viewBox"].split()[2:])
        for element in plot:
            for name in ("x", "x1", "x2"):
                assert 0 <= float(element.get(name, 0)) <= wide
            for name in ("y", "y1", "y2"):
                assert 0 <= float(element.get(name, 0)) <= high
    bars = [len(plot.findall("rect")) for plot in plots[1:]]
    assert bars == [len(measured.histogram), *([4] if measured.layers else [])]
    if measured.layers:
        assert len(plots[2].findall("line[@class='whisker']")) == 3


def test_the_table():
    lines = MEASURED.table().splitlines()
    assert " ".join(lines[1].split()) == "perplexity 16.25 ±1.12 17.50 ±1.25 1.0770 ±0.0110"
    assert lines[2].split()[-3:] == ["4,321", "1,234", "0.286"]
    worst = [line.strip() for line in lines if line.startswith(" " * 18 + "layer")]
    assert worst == [
        "layer 3: 0.03 ±0.002", "layer 2: 0.02", "layer 1: 0.01 ±0.002", "layer 0: 0 ±0.002",
    ]  # fmt: skip
    assert "--recipe" in FEW.table()
