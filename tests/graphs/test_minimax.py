"""MiniMax-Text-01 and M1: settings in both spellings, decays, kinds of layers."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import defined, gap, logits, ours, prompt, read
from tiny.configs import FULL
from tiny.llama import DROP, WEIGHTS
from tiny.minimax import LINEAR
from tiny.minimax_files import model as oracle_model

from lmcast.exporter.graph.capture import capture
from lmcast.graphs import ConfigError, WeightError
from lmcast.graphs.blocks.lightning import EPS, Decay

HF, M1, TEXT_01 = (
    "minimax/MiniMax-M1-40k-hf",
    "minimax_m1/MiniMax-M1-80k",
    "minimax_text_01/MiniMax-Text-01",
)
GAINS, ALONE = "minimax/gains, wide heads, blocks", "minimax/all linear, six heads, tied"
WINDOW = "minimax/window, yarn, gelu, all experts"
LAYERS = [LINEAR, LINEAR, FULL, LINEAR]


def changed(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (config | change).items() if value is not DROP}


# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN: list[tuple[str, dict[str, Any]]] = [
    *((HF, {f"{branch}_alpha_factor": 2.5}) for branch in ("full_attn", "linear_attn", "mlp")),
    *((HF, {f"{branch}_beta_factor": 0.5}) for branch in ("full_attn", "linear_attn", "mlp")),
    *((M1, {f"layernorm_{branch}_alpha": 2.5}) for branch in ("full_attention", "mlp")),
    *((M1, {f"layernorm_{branch}_beta": 0.5}) for branch in ("linear_attention", "mlp")),
    (HF, {"rotary_dim": 4}),
    (HF, {"rotary_dim": None}),
    (M1, {"rotary_dim": 16}),
    (M1, {"rope_theta": 50}),
    (M1, {"num_experts_per_tok": 3}),
    (M1, {"rms_norm_eps": 0.05}),
    (TEXT_01, {"hidden_act": "gelu"}),
    (TEXT_01, {"sliding_window": 5}),
    (WINDOW, {"sliding_window": None}),
]


@pytest.mark.parametrize(("name", "change"), SHOWN)
def test_settings_show_in_the_logits(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert {key: config.get(key) for key in change} != change
    assert gap(logits(config, values), logits(config | change, values)) > 1e-3


# Settings that say what holds anyway: by default, or because of another.
PARTS = {"rope_theta": 1000, "partial_rotary_factor": 0.5}
SILENT: list[tuple[str, dict[str, Any]]] = [
    (HF, {"block_size": 16}),
    (HF, {"postnorm": DROP, "shared_intermediate_size": DROP, "shared_moe_mode": DROP}),
    (HF, {"num_local_experts": DROP, "num_experts": 8}),
    (HF, {"rotary_dim": DROP, "rope_theta": DROP, "rope_parameters": PARTS}),
    (HF, {"rotary_dim": DROP, "partial_rotary_factor": 0.5}),
    (HF, {"full_attn_beta_factor": DROP, "mlp_beta_factor": 1}),
    ("minimax/plain", {"layer_types": None}),
    ("minimax/plain", {"head_dim": 8, "rotary_dim": 8}),
    ("minimax/plain", {"rotary_dim": DROP, "partial_rotary_factor": 1.0}),
    (ALONE, {"rope_theta": 7.0, "rope_parameters": None, "sliding_window": 3, "rotary_dim": 2}),
    (ALONE, {"full_attn_alpha_factor": 2.0}),
    (M1, {"attn_type_list": DROP, "layer_types": [LINEAR, LINEAR, LINEAR, FULL]}),
    (M1, {"layernorm_mlp_beta": DROP, "mlp_beta_factor": 1.0}),
    (M1, {"shared_intermediate_size": [0], "shared_moe_mode": "softmax"}),
    (M1, {"model_type": "minimax_text_01"}),
]


@pytest.mark.parametrize(("name", "change"), SILENT)
def test_settings_that_mean_the_same(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert torch.equal(logits(changed(config, change), values), logits(config, values))


def test_both_spellings_mean_the_same(checkpoint):
    theirs, values = read(checkpoint(HF))
    for name in (M1, TEXT_01):
        assert torch.equal(logits(read(checkpoint(name))[0], values), logits(theirs, values))


def test_heads_that_turn_whole_by_either_key(checkpoint):
    config, values = read(checkpoint(HF))
    whole = logits(changed(config, {"rotary_dim": DROP}), values)
    assert torch.equal(logits(config | {"rotary_dim": 16}, values), whole)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (HF, {"postnorm": False}, "postnorm is False; implemented: True"),
    (HF, {"shared_intermediate_size": 64}, "shared_intermediate_size is 64"),
    (HF, {"shared_intermediate_size": [0, 64]}, "shared_intermediate_size is .0, 64"),
    (HF, {"rotary_dim": 32}, "rotary_dim is 32.* makes it 16 of head_dim 16"),
    (HF, {"rotary_dim": 8.0}, "rotary_dim is 8.0; accepted: an integer"),
    (HF, {"rotary_dim": 0}, "rotary_dim is 0; accepted: 1"),
    (HF, {"rotary_dim": 5}, "rotary width is 5"),
    (HF, {"partial_rotary_factor": 0.25}, "rotary_dim is 8, but partial_rotary_factor.* 4 of"),
    (HF, {"layer_types": LAYERS[:3]}, "layer_types has 3 entries; num_hidden_layers is 4"),
    (HF, {"layer_types": []}, "layer_types has 0 entries; num_hidden_layers is 4"),
    (HF, {"layer_types": [*LAYERS[:3], "mamba"]}, r"layer_types\[3\] is 'mamba'"),
    (HF, {"attn_type_list": [0, 0, 0, 1]}, "attn_type_list = .*, which nothing reads"),
    (HF, {"layernorm_mlp_alpha": 3.5}, "layernorm_mlp_alpha = 3.5, which nothing reads"),
    (HF, {"num_experts": 4}, "num_local_experts is 8, but num_experts"),
    (HF, {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
    (HF, {"mlp_beta_factor": "1"}, "mlp_beta_factor is '1'; accepted: a finite number"),
    (HF, {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple"),
    (M1, {"attn_type_list": [0, 0, 2, 1]}, r"attn_type_list is .*0 \(linear_attention\), 1 \(full"),
    (M1, {"attn_type_list": [0, 1]}, "layer_types has 2 entries; num_hidden_layers is 4"),
    (M1, {"attn_type_list": DROP}, "layer_types is missing"),
    (M1, {"postnorm": DROP}, "postnorm is missing"),
    (M1, {"layernorm_mlp_beta": 2.0, "mlp_beta_factor": 1.0}, "mlp_beta_factor is 1.0, but layern"),
    (M1, {"num_attention_heads": 6}, "num_attention_heads is 6; accepted: a power of two"),
    (TEXT_01, {"postnorm": False}, "postnorm is False"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_configs_that_no_definition_reads_are_refused(name, change, message, checkpoint):
    config, values = read(checkpoint(name))
    with pytest.raises(ConfigError, match=f"^{config['model_type']}: .*{message}") as error:
        defined(changed(config, change), values)
    assert "config.json: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [GAINS, M1])
@torch.no_grad()
def test_every_parameter_shows_in_the_logits(name, checkpoint):
    config, values = read(checkpoint(name))
    model = ours(config, values)
    before, silent = model(prompt()), []
    for parameter, value in model.named_parameters():
        kept = value.clone()
        value.copy_(kept.flatten().flip(0).view_as(kept))
        if gap(model(prompt()), before) < 1e-5:
            silent.append(parameter)
        value.copy_(kept)
    assert not silent


# Tensors


def test_stacks_that_hugging_face_writes_are_read(checkpoint, tmp_path):
    config, values = read(checkpoint(ALONE))
    oracle_model(checkpoint(ALONE)).save_pretrained(tmp_path, save_original_format=False)
    other = load_file(tmp_path / WEIGHTS)
    assert not any(".experts.0." in tensor for tensor in other)
    assert torch.equal(logits(config, other), logits(config, values))


WRITTEN = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


def test_decays_that_hugging_face_writes_are_passed_over(checkpoint):
    config, values = read(checkpoint(GAINS))
    computed = {n for n in values if n.endswith(WRITTEN)}
    assert len(computed) == 4 * len(WRITTEN)
    wrong = values | {n: torch.full_like(values[n], torch.nan) for n in computed}
    assert torch.equal(logits(config, wrong), logits(config, values))
    assert not defined(config, values).binding.ignored
    with pytest.raises(WeightError, match=r"self_attn\.value_decay .*nothing reads it"):
        defined(config, values | {"model.layers.0.self_attn.value_decay": torch.ones(4)})


@pytest.mark.parametrize("name", [GAINS, ALONE])
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
    config, values = read(checkpoint(GAINS))
    found = defined(config, values)
    layers = capture(found.model).layers
    kinds = [call.part.name for call in layers]
    assert kinds == ["Layer0", "Layer0", "Layer1", "Layer0", "Layer0"]
    taken = [call.takes[0] for call in layers]
    assert taken == ["decay.log", "decay2.log", "rope.cos", "decay3.log", "decay4.log"]
