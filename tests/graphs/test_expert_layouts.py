"""Engines of experts: every layout of the weights gives the same, predictors are left out."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files.malformed_moe import (
    EXPERTS,
    GLM,
    QWEN,
    TRINITY,
    expert,
    in_bfloat16,
    in_stacks,
    stacked,
    tiny_moe,
    to_bfloat16,
)
from safetensors.torch import save_file
from tiny.llama import INDEX, WEIGHTS, Build, set_tensor, tensors, tiny_llama, weights, write_json
from torch import Tensor

from lmcast.exporter import Engine, export, load
from lmcast.exporter.cli import main
from lmcast.exporter.weights.place import WeightsError
from lmcast.graphs import WeightError, define
from lmcast.graphs import load as load_eager

IDS = np.arange(2 * 11).reshape(2, 11)


def shards_inside_stacks(folder: Path) -> None:
    """Put even experts, or of stacks the down projections, into another file than the others."""
    values = weights(folder)
    (folder / WEIGHTS).unlink()
    other = [n for n in values if any(f".experts.{e}." in n for e in range(0, EXPERTS, 2))]
    other += [n for n in values if n.endswith(".experts.down_proj")]
    files = {"a.safetensors": values.keys() - set(other), "b.safetensors": set(other)}
    for file, names in files.items():
        assert names
        save_file({name: values[name] for name in sorted(names)}, folder / file)
    places = {name: file for file, names in files.items() for name in names}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": places})


def one_expert_in_bfloat16(folder: Path) -> None:
    set_tensor(expert(2, "up"), lambda t: t[expert(2, "up")].bfloat16())(folder)


LAYOUTS: list[tuple[str, list[Build], bool]] = [  # name, changes, whether it can be linked
    ("per expert", [], True),
    ("stacks", [in_stacks()], True),
    ("shards inside stacks", [shards_inside_stacks], True),
    ("stacks in shards", [in_stacks(), shards_inside_stacks], True),
    ("bfloat16", [in_bfloat16()], False),
    ("bfloat16 stacks", [in_bfloat16(), in_stacks()], False),
    ("bfloat16 shards inside stacks", [in_bfloat16(), shards_inside_stacks], False),
    ("one expert in bfloat16", [one_expert_in_bfloat16], False),
]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The logits of the usual layout, by how the values are stored."""
    found = {}
    for kind, changes in (("float32", []), ("bfloat16", [in_bfloat16()])):
        folder = tmp_path_factory.mktemp("usual")
        found[kind] = cast(build(folder, changes), folder / "engine").logits(IDS)
    return found


def build(folder: Path, changes: list[Build], settings: dict[str, Any] = QWEN) -> Path:
    source = folder / "checkpoint"
    tiny_llama(source)
    for change in (tiny_moe(settings), *changes):
        change(source)
    return source


def cast(source: Path, engine: Path, **options: Any) -> Engine:
    export(source, engine, parity=False, **options)
    return load(engine, threads=1)


@pytest.mark.parametrize(("name", "changes", "linked"), LAYOUTS, ids=[n for n, *_ in LAYOUTS])
def test_layouts_give_the_same_engine(name, changes, linked, usual, tmp_path):
    source = build(tmp_path, changes)
    engine = cast(source, tmp_path / "engine")
    assert engine.linked == linked
    got = engine.logits(IDS)
    np.testing.assert_array_equal(cast(source, tmp_path / "copy", weights="copy").logits(IDS), got)
    want = usual["bfloat16" if name.startswith("bfloat16") else "float32"]
    if name == "one expert in bfloat16":
        assert 1e-6 < np.abs(got - want).max() < 1e-2  # that one expert is rounded, and used
        # Logits up to 2, whose last place is 2e-7: measured 7e-7.
        np.testing.assert_allclose(got, load_eager(source)(torch.tensor(IDS)), atol=5e-6)
    else:
        np.testing.assert_array_equal(got, want)


def test_an_expert_of_another_dtype_cannot_be_linked(tmp_path):
    source = build(tmp_path, [one_expert_in_bfloat16])
    with pytest.raises(WeightsError, match=r"experts\.2\.up_proj.*is stored as bfloat16.*copy"):
        export(source, tmp_path / "engine", weights="link", parity=False)


def to_mixed_layers(values: dict[str, Tensor]) -> None:
    """One layer in stacks, the other by expert."""
    before = {name: t for name, t in values.items() if name.startswith("model.layers.1.")}
    stacked(values)
    values.update(before)
    del values["model.layers.1.mlp.experts.gate_up_proj"]
    del values["model.layers.1.mlp.experts.down_proj"]


def test_layers_may_have_layouts_of_their_own(usual, tmp_path):
    engine = cast(build(tmp_path, [tensors(to_mixed_layers)]), tmp_path / "engine")
    np.testing.assert_array_equal(engine.logits(IDS), usual["float32"])


@pytest.mark.parametrize("settings", [QWEN, GLM, TRINITY], ids=lambda s: s["model_type"])
def test_checkpoints_that_the_malformed_ones_come_from_are_accepted(settings, tmp_path):
    export(build(tmp_path, [], settings), tmp_path / "engine")  # with its parity


def test_a_bfloat16_graph_keeps_the_correction_in_float32(tmp_path):
    """As Hugging Face does where it is stored so; rounded, it would select other experts."""

    def change(values: dict[str, Tensor]) -> None:
        kept = {n: t for n, t in values.items() if n.endswith("correction_bias")}
        to_bfloat16(values)
        values.update(kept)

    source = build(tmp_path, [tensors(change)], GLM)
    engine = Engine(export(source, tmp_path / "e", "onnx", "bfloat16", parity=False).directory)
    assert engine.linked
    found = define(json.loads((source / "config.json").read_text()), _shapes(source))
    assert found.binding.wide == {f"layers.{i}.ffn.router.correction" for i in range(2)}


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights(folder).items()}


# Layers that predict further tokens


def add_predictor(values: dict[str, Tensor], layer: int = 2) -> None:
    """Store one more layer as GLM-4.5 does: an ordinary one with four parts around it."""
    inner = {n: t for n, t in values.items() if n.startswith("model.layers.1.")}
    module = f"model.layers.{layer}"
    values.update({n.replace("model.layers.1", module): t.clone() for n, t in inner.items()})
    values[f"{module}.eh_proj.weight"] = torch.full((32, 64), float("nan"))  # nothing reads it
    for name in ("enorm", "hnorm", "shared_head.norm"):
        values[f"{module}.{name}.weight"] = torch.ones(32)
    for name in ("embed_tokens", "shared_head.head"):
        values[f"{module}.{name}.weight"] = torch.ones(97, 32)


def test_a_layer_that_predicts_further_is_named_and_left_out(tmp_path, capsys, monkeypatch):
    source = build(tmp_path, [], GLM)
    before = cast(source, tmp_path / "before").logits(IDS)
    tensors(add_predictor)(source)
    monkeypatch.setattr(sys, "argv", ["lmcast", "export", str(source), "-o", str(tmp_path / "e")])
    main()
    printed = capsys.readouterr().err
    count = sum(name.startswith("model.layers.2.") for name in weights(source))
    assert f"warning: left out {count} tensors: {count} of model.layers.2\n" in printed
    np.testing.assert_array_equal(load(tmp_path / "e", threads=1).logits(IDS), before)


Change = Callable[[dict[str, Tensor]], Any]
NOT_PREDICTORS: list[tuple[dict[str, Any], Change]] = [
    ({"num_nextn_predict_layers": 0}, add_predictor),
    ({}, lambda values: add_predictor(values, layer=3)),
    ({}, lambda values: (add_predictor(values), values.pop("model.layers.2.eh_proj.weight"))),
    ({"num_hidden_layers": 1}, add_predictor),
]


@pytest.mark.parametrize(("change", "add"), NOT_PREDICTORS)
def test_layers_that_the_config_does_not_speak_of_are_refused(change, add, tmp_path):
    source = build(tmp_path, [tensors(add)], GLM)
    with pytest.raises(WeightError, match=r"tensor model\.layers\.\d\..*nothing reads it"):
        define({**GLM, **change}, _shapes(source))


def test_several_predictors_are_left_out(tmp_path):
    source = build(tmp_path, [tensors(add_predictor), tensors(lambda v: add_predictor(v, 3))], GLM)
    found = define({**GLM, "num_nextn_predict_layers": 2}, _shapes(source))
    assert {name.split(".")[2] for name in found.binding.ignored} == {"2", "3"}
    assert "of model.layers.2, " in found.left_out
    with pytest.raises(WeightError, match=r"model\.layers\.3\."):
        define(GLM, _shapes(source))
