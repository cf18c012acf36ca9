"""MiniMax-Text-01 and M1_80K: settings in both spellings, decays, kinds of layers."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import changed, defined, logits, ours, read
from tiny.llama import DROP, WEIGHTS
from tiny.minimax import ALONE, GAINED, HF, LINEAR, M1_80K, TEXT_01_HUB
from tiny.minimax_files import model as oracle_model

from lmcast.exporter.graph.capture import capture
from lmcast.graphs import WeightError
from lmcast.graphs.blocks.lightning import EPS, Decay


def test_both_spellings_mean_the_same(checkpoint):
    theirs, values = read(checkpoint(HF))
    for name in (M1_80K, TEXT_01_HUB):
        assert torch.equal(logits(read(checkpoint(name))[0], values), logits(theirs, values))


def test_heads_that_turn_whole_by_either_key(checkpoint):
    config, values = read(checkpoint(HF))
    whole = logits(changed(config, {"rotary_dim": DROP}), values)
    assert torch.equal(logits(config | {"rotary_dim": 16}, values), whole)


# Tensors


def test_stacks_that_hugging_face_writes_are_read(checkpoint, tmp_path):
    config, values = read(checkpoint(ALONE))
    oracle_model(checkpoint(ALONE)).save_pretrained(tmp_path, save_original_format=False)
    other = load_file(tmp_path / WEIGHTS)
    assert not any(".experts.0." in tensor for tensor in other)
    assert torch.equal(logits(config, other), logits(config, values))


WRITTEN = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


def test_decays_that_hugging_face_writes_are_passed_over(checkpoint):
    config, values = read(checkpoint(GAINED))
    computed = {n for n in values if n.endswith(WRITTEN)}
    assert len(computed) == 4 * len(WRITTEN)
    wrong = values | {n: torch.full_like(values[n], torch.nan) for n in computed}
    assert torch.equal(logits(config, wrong), logits(config, values))
    assert not defined(config, values).binding.ignored
    with pytest.raises(WeightError, match=r"self_attn\.value_decay .*nothing reads it"):
        defined(config, values | {"model.layers.0.self_attn.value_decay": torch.ones(4)})


@pytest.mark.parametrize("name", [GAINED, ALONE])
def test_decays_are_hugging_faces_bit_for_bit(name, checkpoint):
    theirs = oracle_model(checkpoint(name)).model.layers
    config, values = read(checkpoint(name))
    pairs = [
        (layer.mixer, other.self_attn)
        for layer, other in zip(ours(config, values).layers, theirs, strict=True)
        if hasattr(other.self_attn, "slope_rate")
    ]
    assert len(pairs) == config["layer_types"].count(LINEAR)
    for mixer, other in pairs:
        assert torch.equal(mixer.decay.slope, other.slope_rate.flatten())
        assert mixer.norm.eps == other.norm.variance_epsilon == EPS


def test_the_last_layer_still_forgets():
    assert torch.equal(Decay(2, 0, 1).slope, torch.tensor([2.0**-4, 2.0**-8]) * (1 + 1e-5))
    assert 0 < Decay(64, 79, 80).slope.max() < 2e-5
    falling = torch.stack([Decay(64, layer, 80).slope for layer in range(80)])
    assert (falling.diff(dim=0) < 0).all()
    assert (falling.diff(dim=1) < 0).all()


# Kinds of layers


def test_layers_that_decay_otherwise_are_traced_once(checkpoint):
    config, values = read(checkpoint(GAINED))
    found = defined(config, values)
    layers = capture(found.model).layers
    kinds = [call.part.name for call in layers]
    assert kinds == ["Layer0", "Layer0", "Layer1", "Layer0", "Layer0"]
    taken = [call.takes[0] for call in layers]
    assert taken == ["decay.log", "decay2.log", "rope.cos", "decay3.log", "decay4.log"]
