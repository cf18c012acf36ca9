"""Gated DeltaNets: settings, names, what is left out, FP8, roundings."""

from typing import Any

import pytest
import torch
from files.fp8 import CONFIG, RAGGED, blocks, in_fp8
from safetensors.torch import load_file
from tiny import case, defined, gap, logits, oracle_model, ours, prompt, read
from tiny.configs import FULL
from tiny.delta_nets import LINEAR, NEAR, SECTIONS
from tiny.llama import DROP, WEIGHTS

from lmcast.graphs import ConfigError, WeightError, fill

NEXT, DENSE = "qwen3_next/Qwen3-Next-80B-A3B", "qwen3_5_text/Qwen3.5-27B (text)"
MOE, GELU = "qwen3_5_moe_text/Qwen3.5-35B-A3B (text)", "qwen3_next/dense layers, gelu"
BIAS = "qwen3_next/as they are, bias, tied"
OUTER, OUTER_MOE = "qwen3_5/Qwen3.5-27B", "qwen3_5_moe/Qwen3.5-35B-A3B"
QUARTER = {**NEAR, "partial_rotary_factor": 0.25}


def changed(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (config | change).items() if value is not DROP}


# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN = [
    (NEXT, {"norm_topk_prob": False}),
    (NEXT, {"num_experts_per_tok": 2}),
    (NEXT, {"rms_norm_eps": 1e-6}),
    (NEXT, {"rope_theta": 50}),
    (NEXT, {"partial_rotary_factor": 0.5}),
    (NEXT, {"partial_rotary_factor": None}),
    (NEXT, {"linear_num_key_heads": 1, "linear_key_head_dim": 12}),
    (GELU, {"hidden_act": "silu"}),
    (MOE, {"num_experts_per_tok": 2}),
    (DENSE, {"rope_parameters": {**QUARTER, "rope_theta": 50.0}}),
    (DENSE, {"linear_num_key_heads": 1, "linear_key_head_dim": 12}),
]


@pytest.mark.parametrize(("name", "change"), SHOWN)
def test_settings_show_in_the_logits(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert {key: config.get(key) for key in change} != change
    assert gap(logits(config, values), logits(config | change, values)) > 1e-3


# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, dict[str, Any]]] = [
    (NEXT, {"partial_rotary_factor": DROP}),
    (NEXT, {"rope_theta": DROP, "partial_rotary_factor": DROP, "rope_parameters": QUARTER}),
    (NEXT, {"full_attention_interval": 4, "layer_types": [LINEAR, LINEAR, FULL]}),
    (NEXT, {"num_experts": DROP, "num_local_experts": 8}),
    (NEXT, {"mlp_only_layers": None}),
    (DENSE, {"layer_types": DROP}),
    (DENSE, {"full_attention_interval": 7}),
    (DENSE, {"rope_parameters": QUARTER}),
    (DENSE, {"rope_parameters": {**QUARTER, **SECTIONS, "mrope_interleaved": False}}),
    (DENSE, {"rope_parameters": {**QUARTER, "mrope_section": [0, 1, 1]}}),
    (DENSE, {"attn_output_gate": DROP, "output_gate_type": "swish", "mtp_num_hidden_layers": 0}),
    (MOE, {"norm_topk_prob": True, "intermediate_size": DROP}),
]


@pytest.mark.parametrize(("name", "change"), SILENT)
def test_settings_that_mean_the_same(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert torch.equal(logits(changed(config, change), values), logits(config, values))


@pytest.mark.parametrize("name", [NEXT, GELU, BIAS, DENSE, MOE])
@torch.no_grad()
def test_every_parameter_shows_in_the_logits(name, checkpoint):
    model = ours(*read(checkpoint(name)))
    before, silent = model(prompt()), []
    for parameter, value in model.named_parameters():
        kept = value.clone()
        value.copy_(kept.flip(-1))
        if gap(model(prompt()), before) < 1e-4:  # noise of fp32 moves them by less
            silent.append(parameter)
        value.copy_(kept)
    assert not silent


REFUSED = [
    (NEXT, {"layer_types": [LINEAR, FULL]}, "layer_types has 2 entries; num_hidden_layers is 3"),
    (NEXT, {"layer_types": [LINEAR, FULL, "sliding_attention"]}, r"layer_types\[2\] is 'sliding"),
    (NEXT, {"linear_num_key_heads": 4}, "linear_num_value_heads 6 is not a multiple of .* 4"),
    (NEXT, {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of .* 3"),
    (NEXT, {"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim is 0; accepted: 1"),
    (NEXT, {"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
    (NEXT, {"use_sliding_window": True}, "use_sliding_window = True, which nothing reads"),
    (NEXT, {"attn_output_gate": True}, "attn_output_gate = True, which nothing reads"),
    (NEXT, {"rope_parameters": {"mrope_section": [1, 1, 0]}}, "mrope_section = .*, which nothing"),
    (NEXT, {"partial_rotary_factor": 0.1}, "rotary width is 1"),
    (DENSE, {"attn_output_gate": False}, "attn_output_gate is False; implemented: True"),
    (DENSE, {"output_gate_type": "sigmoid"}, "output_gate_type is 'sigmoid'"),
    (DENSE, {"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype is 'bfloat16'"),
    (DENSE, {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\], which nothing reads"),
    (DENSE, {"rope_parameters": {"mrope_section": [1, 1]}}, "mrope_section has 2 entries"),
    (DENSE, {"rope_parameters": {"mrope_section": [1, 1, -1]}}, r"mrope_section\[2\] is -1"),
    (DENSE, {"rope_parameters": {"mrope_interleaved": 1}}, "mrope_interleaved is 1"),
    (MOE, {"norm_topk_prob": False}, "norm_topk_prob is False; implemented: True"),
    (MOE, {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_configs_that_no_definition_reads_are_refused(name, change, message, checkpoint):
    config, values = read(checkpoint(name))
    with pytest.raises(ConfigError, match=f"^{config['model_type']}: config.json: .*{message}"):
        defined(config | change, values)


# Names


@pytest.mark.parametrize("name", [NEXT, MOE, OUTER_MOE])
def test_stacks_that_hugging_face_writes_are_read(name, checkpoint, tmp_path):
    directory = checkpoint(name)
    config, values = read(directory)
    oracle_model(case(name), directory).save_pretrained(tmp_path, save_original_format=False)
    other = load_file(tmp_path / WEIGHTS)
    assert any(".experts.0." in tensor for tensor in values)
    assert any(tensor.endswith("mlp.experts.gate_up_proj") for tensor in other)
    mine, same = (dict(ours(config, t).named_parameters()) for t in (values, other))
    assert all(torch.equal(mine[parameter], same[parameter]) for parameter in mine)


MTP = {
    "mtp.fc.weight": torch.ones(32, 64),
    "mtp.layers.0.self_attn.q_proj.weight": torch.ones(128, 32),
    "mtp.norm.weight": torch.ones(32),
}


@pytest.mark.parametrize(
    ("name", "before"), [(NEXT, "model."), (DENSE, "model."), (OUTER, "model.language_model.")]
)
def test_predictors_and_vision_are_named_and_left_out(name, before, checkpoint):
    config, values = read(checkpoint(name))
    assert {n for n in values if n.startswith(before)} >= {f"{before}norm.weight"}
    vision = [n for n in values if n.startswith("model.visual.")]
    assert bool(vision) is (name == OUTER)
    tower = f"{len(vision)} of model.visual, " if vision else ""
    found = defined(config, values | MTP)
    assert found.left_out == f"{3 + len(vision)} tensors: {tower}3 of mtp"
    assert sorted(found.binding.ignored) == sorted([*MTP, *vision])
    assert torch.equal(logits(config, values | MTP), logits(config, values))
    with pytest.raises(WeightError, match=r"linear_attn\.z.*nothing reads it"):
        defined(config, values | {f"{before}layers.0.linear_attn.z": torch.ones(3)})


@pytest.mark.parametrize("name", [NEXT, DENSE, OUTER_MOE])
def test_a_model_in_fp8_is_that_of_its_numbers(name, checkpoint):
    config, plain = read(checkpoint(name))
    packed, exact = in_fp8(plain, RAGGED)
    assert any("linear_attn.in_proj" in n and n.endswith("_scale_inv") for n in packed)
    assert any(n.endswith("self_attn.q_proj.weight_scale_inv") for n in packed)
    got = logits(config | {CONFIG: blocks(RAGGED)}, packed)
    assert torch.equal(got, logits(config, exact))
    assert not torch.equal(got, logits(config, plain))


# Roundings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_what_is_computed_in_fp32_beside_shorter_numbers(dtype, checkpoint):
    config, values = read(checkpoint(DENSE))
    kept = ("A_log", "dt_bias")
    stored = {n: t if n.endswith(kept) else t.to(dtype) for n, t in values.items()}
    found = defined(config, stored)
    fill(found, found.model, stored.__getitem__, dtype)
    wide = {n for n, p in found.model.named_parameters() if p.dtype == torch.float32}
    assert wide == {f"layers.{i}.mixer.{n}" for i in range(3) for n in kept}
    theirs = oracle_model(case(DENSE), checkpoint(DENSE), dtype).model
    generator = torch.Generator().manual_seed(0)
    x, gate = (torch.randn(200, 10, generator=generator).to(dtype) for _ in range(2))
    mixer = found.model.layers[0].mixer
    assert torch.equal(mixer.norm(x, gate), theirs.layers[0].linear_attn.norm(x, gate))
    x = torch.randn(200, 32, generator=generator).to(dtype)
    assert torch.equal(found.model.final.norm(x), theirs.norm(x))
