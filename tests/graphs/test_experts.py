"""Families with experts: every setting shows, and what holds by default needs no saying."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import case, defined, gap, logits, oracle_model, prompt, read
from tiny.configs import FULL, SLIDING
from tiny.llama import DROP, WEIGHTS

from lmcast.graphs import ConfigError, fill

# Settings

AIR, M2, MINI = "glm4_moe/GLM-4.5-Air", "minimax_m2/MiniMax-M2", "afmoe/Trinity-Mini"
GROUPED = "glm4_moe/groups, scale, bias, norms"
# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN = [
    (AIR, {"norm_topk_prob": False}),
    (AIR, {"routed_scaling_factor": 2.5}),
    (AIR, {"partial_rotary_factor": 0.25}),
    (AIR, {"num_experts_per_tok": 3}),
    (AIR, {"n_group": 2}),
    (GROUPED, {"topk_group": 3}),
    (GROUPED, {"n_group": 2}),
    (M2, {"rotary_dim": 4}),
    (M2, {"rotary_dim": None}),
    (M2, {"num_experts_per_tok": 3}),
    (MINI, {"route_scale": 1.0}),
    (MINI, {"mup_enabled": False}),
    (MINI, {"sliding_window": 7}),
    (MINI, {"layer_types": [SLIDING] * 4}),
    (MINI, {"rope_theta": 900}),
    ("qwen3_moe/Qwen3-30B-A3B", {"norm_topk_prob": False}),
    ("qwen3_moe/dense layers, window, gelu", {"sliding_window": 7}),
]


@pytest.mark.parametrize(("name", "change"), SHOWN)
def test_settings_show_in_the_logits(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert {key: config.get(key) for key in change} != change
    assert gap(logits(config, values), logits(config | change, values)) > 1e-3


# Settings that say what holds anyway: by default, or because of another.
SILENT = [
    (AIR, {"partial_rotary_factor": DROP}, {}),
    (AIR, {"partial_rotary_factor": None}, {"partial_rotary_factor": 1.0}),
    (AIR, {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1000}}, {}),
    (AIR, {"num_nextn_predict_layers": DROP, "num_mtp_layers": 0}, {}),
    (AIR, {"num_nextn_predict_layers": 0}, {}),
    (M2, {"rotary_dim": None, "partial_rotary_factor": 0.5}, {}),
    (M2, {"num_local_experts": DROP, "num_experts": 8}, {}),
    (MINI, {"layer_types": None}, {}),
    (MINI, {"layer_types": [FULL] * 4}, {"layer_types": [FULL] * 4, "rope_theta": 7.0}),
    (MINI, {"num_dense_layers": 2, "global_attn_every_n_layers": 2}, {}),
]


@pytest.mark.parametrize(("name", "one", "other"), SILENT)
def test_settings_that_mean_the_same(name, one, other, checkpoint):
    config, values = read(checkpoint(name))
    left, right = (
        {key: value for key, value in (config | change).items() if value is not DROP}
        for change in (one, other)
    )
    assert torch.equal(logits(left, values), logits(right, values))


CORRECTIONS = {
    AIR: "e_score_correction_bias",
    GROUPED: "e_score_correction_bias",
    M2: "e_score_correction_bias",
    MINI: "expert_bias",
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_select_and_never_weigh(name, checkpoint):
    config, values = read(checkpoint(name))
    biases = [tensor for tensor in values if tensor.endswith(CORRECTIONS[name])]
    before = logits(config, values)
    assert biases
    raised = {tensor: values[tensor] + 1 for tensor in biases}  # of all: the same are best
    assert torch.equal(logits(config, values | raised), before)
    for tensor in biases:
        assert gap(logits(config, values | {tensor: values[tensor].flip(0)}), before) > 1e-3


@pytest.mark.parametrize("name", [GROUPED, M2, "afmoe/mup, scale, bias, two dense"])
@torch.no_grad()
def test_every_parameter_shows_in_the_logits(name, checkpoint):
    config, values = read(checkpoint(name))
    found = defined(config, values)
    fill(found, found.model, values.__getitem__, torch.float32)
    before, silent = found.model(prompt()), []
    for parameter, value in found.model.named_parameters():
        kept = value.clone()
        value.copy_(kept.flip(-1))
        if gap(found.model(prompt()), before) < 1e-5:
            silent.append(parameter)
        value.copy_(kept)
    assert not silent


# What define refuses, beside what the command does (malformed_moe).
REFUSED = [
    (M2, {"attn_type_list": [1, 1]}, "attn_type_list has 2 entries; num_hidden_layers is 3"),
    (M2, {"attn_type_list": [1, 0, 1]}, r"attn_type_list\[1\] is 0"),
    (M2, {"rotary_dim": 32}, "rotary_dim is 32.*head_dim 16"),
    (M2, {"rotary_dim": 8.0}, "rotary_dim is 8.0; accepted: an integer"),
    (M2, {"rotary_dim": 0}, "rotary_dim is 0; accepted: 1"),
    (M2, {"rotary_dim": 5}, "rotary width is 5"),
    (M2, {"partial_rotary_factor": 0.25}, "rotary_dim is 8, but partial_rotary_factor.* 4 of"),
    (M2, {"qk_norm_type": "per_head"}, "qk_norm_type is 'per_head'"),
    (M2, {"use_qk_norm": False}, "use_qk_norm is False"),
    (M2, {"use_routing_bias": False}, "use_routing_bias is False"),
    (M2, {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    (M2, {"shared_intermediate_size": 64}, "shared_intermediate_size is 64"),
    (M2, {"layernorm_mlp_beta": 2.0}, "layernorm_mlp_beta is 2.0"),
    (M2, {"sliding_window": 8}, "sliding_window"),
    (M2, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    (AIR, {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers is -1"),
    (AIR, {"num_local_experts": 4}, "n_routed_experts is 8, but num_local_experts"),
    (AIR, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    (AIR, {"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
    (MINI, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (MINI, {"score_func": "softmax"}, "score_func is 'softmax'"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_configs_that_no_definition_reads_are_refused(name, change, message, checkpoint):
    config, values = read(checkpoint(name))
    with pytest.raises(ConfigError, match=f"^{config['model_type']}: .*{message}"):
        defined(config | change, values)


# Roundings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_scaled_embedding_and_norms_round_where_hugging_faces_do(dtype, checkpoint):
    config, values = read(checkpoint(MINI))
    found = defined(config, values)
    fill(found, found.model, values.__getitem__, dtype)
    theirs = oracle_model(case(MINI), checkpoint(MINI), dtype).model
    mine = found.model.embed(prompt())
    assert torch.equal(mine, theirs.embed_tokens(prompt()) * config["hidden_size"] ** 0.5)
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(found.model.final.norm(x), theirs.norm(x))


# Stacks


@pytest.mark.parametrize("name", [AIR, M2, MINI, "qwen3_moe/Qwen3-30B-A3B"])
def test_stacks_that_hugging_face_writes_are_read(name, checkpoint, tmp_path):
    directory = checkpoint(name)
    config, values = read(directory)
    model = oracle_model(case(name), directory)
    model.save_pretrained(tmp_path, save_original_format=False)
    other = load_file(tmp_path / WEIGHTS)
    assert not any(".experts.0." in tensor for tensor in other)
    assert any(tensor.endswith("mlp.experts.gate_up_proj") for tensor in other)
    assert torch.equal(logits(config, other), logits(config, values))
