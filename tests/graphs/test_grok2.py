"""Grok 2.5 in the files of the hub: experts split for eight ranks, joined while they are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_errors import errors
from forms import rewritten, traced
from safetensors.torch import load_file, save_file
from tiny import case, make, oracle, prompt
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.graphs import WeightError, define, load

CASE = case("grok2/grok-2")
RANKS = 8
AXES = {"w1": 0, "w3": 0, "w2": 1}  # of the inner width
EXPERT = "model.layers.1.block_sparse_moe.experts.5.w2.weight"
GATE = "model.layers.0.block_sparse_moe.gate.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(CASE, tmp_path_factory.mktemp("whole"))


def split(whole: Path, to: Path, ranks: int = RANKS) -> Path:
    """Write a checkpoint as the hub has it: a file per kind of tensor, of experts one per rank."""
    to.mkdir()
    (to / "config.json").write_bytes((whole / "config.json").read_bytes())
    kinds: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(whole / "model.safetensors").items():
        kinds.setdefault(name.split(".")[-2], {})[name] = tensor
    for number, (kind, tensors) in enumerate(sorted(kinds.items())):
        file = f"pytorch_model-{number:05}-TP"
        if kind not in AXES:
            save_file(tensors, to / f"{file}-common.safetensors")
            continue
        parts = {name: tensor.chunk(ranks, AXES[kind]) for name, tensor in tensors.items()}
        for rank in range(ranks):
            mine = {name: part[rank].contiguous() for name, part in parts.items()}
            save_file(mine, to / f"{file}-{rank:03}.safetensors")
    return to


def edit(folder: Path, pattern: str, **change: Any) -> None:
    """Change tensors of the first file that matches; None takes one away."""
    file = sorted(folder.glob(pattern))[0]
    tensors = {**load_file(file), **change}
    save_file({name: t for name, t in tensors.items() if t is not None}, file)


def w2(folder: Path, rank: int) -> str:
    """Return the name of the file that holds a rank's parts of EXPERT."""
    return next(f.name for f in sorted(folder.glob(f"*-{rank:03}.*")) if EXPERT in load_file(f))


def test_parts_are_what_the_whole_is(whole, tmp_path):
    parted = split(whole, tmp_path / "parts")
    source = open_checkpoint(parted)
    assert source.tensors[f"{EXPERT}.TP-007"].shape == (32, 2)
    with torch.no_grad():
        mine = load(parted)(prompt())
        assert torch.equal(mine, load(whole)(prompt()))
    theirs = oracle(CASE, whole, prompt())
    assert (mine - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("weights", ["copy", "link"])
@torch.no_grad()
def test_engine_from_parts(weights, whole, tmp_path, report):
    parted = split(whole, tmp_path / "parts")
    options = {"tokenizer": False, "context": 64, "weights": weights}
    engine = export(parted, tmp_path / "engine", **options)
    assert engine.manifest.fields["graph"]["weights"] == weights
    found = errors(engine, load(whole), load(whole, torch.float64))
    report("Engine logits against eager, fp32", found.row(case=f"grok2, parts, {weights}"))
    assert found.share <= 1


def test_an_index_beside_parts_is_not_needed(whole, tmp_path):
    parted = split(whole, tmp_path / "parts")
    (parted / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    assert len(open_checkpoint(parted).tensors) > 100


def test_a_missing_rank_is_refused(whole, tmp_path):
    parted = split(whole, tmp_path / "parts")
    name = w2(parted, 3)
    (parted / name).unlink()
    with pytest.raises(CheckpointError, match=f"file {name} is missing.*8 ranks"):
        open_checkpoint(parted)


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_another_number_of_ranks_is_refused(ranks, whole, tmp_path):
    source = open_checkpoint(split(whole, tmp_path / "parts", ranks))
    with pytest.raises(WeightError, match=r"\.TP-\d{3} .*(is missing|config\.json asks for)"):
        define(source.config, {name: stored.shape for name, stored in source.tensors.items()})


def test_a_rank_without_a_tensor_is_refused(whole, tmp_path):
    parted = split(whole, tmp_path / "parts")
    edit(parted, w2(parted, 2), **{EXPERT: None})
    with pytest.raises(CheckpointError, match=f"TP-002.* lacks a part of tensor '{EXPERT}'"):
        open_checkpoint(parted)


def test_parts_of_different_shapes_are_refused(whole, tmp_path):
    parted = split(whole, tmp_path / "parts")
    edit(parted, w2(parted, 6), **{EXPERT: torch.zeros(32, 3)})
    with pytest.raises(CheckpointError, match=rf"TP-006.*'{EXPERT}'.*\[32, 3\].*\[32, 2\]"):
        open_checkpoint(parted)


def test_parts_cut_along_another_axis_are_refused(whole, tmp_path):
    parted = split(whole, tmp_path / "parts")
    for rank in range(RANKS):
        edit(parted, w2(parted, rank), **{EXPERT: torch.zeros(4, 16)})
    source = open_checkpoint(parted)
    with pytest.raises(WeightError, match=r"experts\.5\.w2\.weight\.TP-000.*\[4, 128\].*others"):
        define(source.config, {name: stored.shape for name, stored in source.tensors.items()})


def test_a_tensor_both_whole_and_in_parts_is_refused(whole, tmp_path):
    parted = split(whole, tmp_path / "parts")
    edit(parted, "*-TP-common.safetensors", **{EXPERT: torch.zeros(32, 16)})
    with pytest.raises(CheckpointError, match=f"part of tensor '{EXPERT}', which .*common"):
        open_checkpoint(parted)


@pytest.mark.parametrize("equal", [True, False])
def test_a_router_in_every_rank_is_refused(equal, whole, tmp_path):
    # The files of the hub have it once, in a common file: nothing says what eight of them mean.
    parted = split(whole, tmp_path / "parts")
    gate = load_file(whole / "model.safetensors")[GATE]
    for file in parted.glob("*-common.safetensors"):
        if GATE in load_file(file):
            edit(parted, file.name, **{GATE: None})
    for rank in range(RANKS):
        edit(parted, w2(parted, rank), **{GATE: gate + (0 if equal else rank)})
    source = open_checkpoint(parted)
    with pytest.raises(WeightError, match=f"{GATE} is missing"):
        define(source.config, {name: stored.shape for name, stored in source.tensors.items()})


def test_a_tensor_in_two_common_files_is_refused(whole, tmp_path):
    parted = split(whole, tmp_path / "parts")
    edit(parted, "*-TP-common.safetensors", **{GATE: torch.zeros(8, 32)})
    with pytest.raises(CheckpointError, match=f"'{GATE}', as does"):
        open_checkpoint(parted)


# The kernels of both targets have no place for factors behind the softcap, and TensorRT's none for
# a softcap either.
@pytest.mark.parametrize("target", ["cpu", "tensorrt-rtx"])
@pytest.mark.parametrize("temperature", [True, False])
def test_scores_with_a_factor_are_left_to_plain_operators(temperature, target, tmp_path):
    folder = make(case("grok2/temperature, caps"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    if not temperature:
        (folder / "config.json").write_text(json.dumps({**config, "attn_temperature_len": -1}))
    graph = traced(folder, "float32" if target == "cpu" else "float16")
    form = "body" if temperature or target != "cpu" else "native"
    found = rewritten(graph, target)
    assert found["cached_attention"] == {form: config["num_hidden_layers"]}
