"""Kimi Linear: settings, names, roundings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import case, defined, gap, logits, oracle_model, ours, prompt, read
from tiny.kimi_linear import FULL, LINEAR, on_the_hub
from tiny.llama import DROP, WEIGHTS

from lmcast.graphs import ConfigError, WeightError, define, fill

HUB, PLAIN = "kimi_linear/Kimi-Linear-48B-A3B", "kimi_linear/plain"
GROUPS = "kimi_linear/by default, groups, two taps"
LATENT = "kimi_linear/queries of latents, bias, gelu"
NESTED = "linear_attn_config"
LISTS = case(HUB).settings[NESTED]


def nested(**changes: Any) -> dict[str, Any]:
    """Return the linear_attn_config of the released config with changes."""
    return {NESTED: {k: v for k, v in (LISTS | changes).items() if v is not DROP}}


def changed(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (config | change).items() if value is not DROP}


# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN = [
    (HUB, {"moe_renormalize": False}),
    (HUB, {"routed_scaling_factor": 1.0}),
    (HUB, {"num_experts_per_token": 3}),
    (HUB, {"rms_norm_eps": 0.05}),
    (GROUPS, {"num_expert_group": 2}),
    (GROUPS, {"topk_group": 3}),
    (LATENT, {"hidden_act": "silu"}),
    (LATENT, {"rms_norm_eps": 1e-5}),
    (LATENT, {"routed_scaling_factor": 1.0}),
]


@pytest.mark.parametrize(("name", "change"), SHOWN)
def test_settings_show_in_the_logits(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert {key: config.get(key) for key in change} != change
    assert gap(logits(config, values), logits(config | change, values)) > 1e-3


# Settings that say what holds anyway: by default, or because of another.
SILENT: list[tuple[str, dict[str, Any]]] = [
    (HUB, {"head_dim": 7, "rope_theta": 5.0}),
    (HUB, {"num_key_value_heads": None}),
    (HUB, {"first_k_dense_replace": DROP}),
    (HUB, {"first_k_dense_replace": 3, "mlp_layer_types": ["dense"] + ["sparse"] * 4}),
    (HUB, {"max_position_embeddings": DROP}),
    (HUB, {"moe_router_activation_func": DROP, "scoring_func": "sigmoid"}),
    (HUB, {"mla_use_nope": DROP, "use_grouped_topk": DROP, "rope_parameters": None}),
    (HUB, {"num_experts": DROP, "num_local_experts": 8}),
    (HUB, {"num_experts_per_token": DROP, "num_experts_per_tok": 2}),
    (HUB, {"moe_renormalize": DROP, "norm_topk_prob": True}),
    (HUB, {"layer_types": [LINEAR] * 3 + [FULL] * 2}),
    (HUB, {**nested(full_attn_layers=DROP, kda_layers=DROP),
           "layer_types": [LINEAR] * 3 + [FULL] * 2}),
    (HUB, {**nested(head_dim=DROP), "linear_head_dim": 12}),
    (HUB, nested(short_conv_kernel_size=DROP)),
    (GROUPS, {"layer_types": None}),
    (PLAIN, {NESTED: {"full_attn_layers": [4], "kda_layers": [3, 1, 2], "num_heads": 3}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), SILENT)
def test_settings_that_mean_the_same(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert torch.equal(logits(changed(config, change), values), logits(config, values))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (HUB, {"mla_use_nope": False}, "mla_use_nope is False"),
    (HUB, {"use_grouped_topk": False}, "use_grouped_topk is False"),
    (HUB, {"moe_router_activation_func": "softmax"}, "scoring_func is 'softmax'"),
    (HUB, {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    (HUB, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = .*nothing reads"),
    (HUB, {"rope_parameters": {"rope_type": "default"}}, "rope_parameters is .*'default'"),
    (HUB, {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    (HUB, {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
    (HUB, {"model_max_length": 64}, "max_position_embeddings is 1048576, but model_max_length"),
    (HUB, {"linear_head_dim": 16}, f"linear_head_dim is 16, but {NESTED}.head_dim.* is 12"),
    (HUB, {"layer_types": [LINEAR] * 5}, f"layer_types is .*, but {NESTED}.full_attn_layers, "),
    (HUB, {"layer_types": [LINEAR] * 4, **nested(full_attn_layers=DROP, kda_layers=DROP)},
     "layer_types has 4 entries; num_hidden_layers is 5"),
    (HUB, {NESTED: [1]}, rf"{NESTED} is \[1\]; accepted: an object"),
    (HUB, nested(gate_rank=8), f"sets {NESTED}.gate_rank = 8.*--inert {NESTED}.gate_rank"),
    (HUB, nested(kda_layers=DROP), r"full_attn_layers is \[4, 5\] and kda_layers is None"),
    (HUB, nested(kda_layers=[0, 1, 2]), r"kda_layers is \[0, 1, 2\]; accepted"),
    (HUB, nested(kda_layers=[1, 2, 3, 4]), r"kda_layers is \[1, 2, 3, 4\]; accepted"),
    (HUB, nested(kda_layers=[1, 2, 3.0]), r"kda_layers is \[1, 2, 3.0\]; accepted"),
    (HUB, nested(kda_layers=[1, 2, 3, 6]), "layer_types has 6 entries; num_hidden_layers is 5"),
    (HUB, nested(num_heads=0), "linear_num_heads is 0; accepted: 1"),
    (PLAIN, {"layer_types": [LINEAR, "mamba", LINEAR, FULL]}, r"layer_types\[1\] is 'mamba'"),
    (PLAIN, {"mlp_layer_types": ["sparse"]}, "mlp_layer_types has 1 entries"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_configs_that_no_definition_reads_are_refused(name, change, message, checkpoint):
    config, values = read(checkpoint(name))
    with pytest.raises(ConfigError, match=f"^kimi_linear: config.json: .*{message}") as error:
        defined(changed(config, change), values)
    assert "\n" not in str(error.value)


def test_a_nested_key_named_as_inert_is_passed_over(checkpoint):
    config, values = read(checkpoint(HUB))
    shapes = {name: tuple(tensor.shape) for name, tensor in values.items()}
    config |= nested(gate_rank=8)
    assert define(config, shapes, [f"{NESTED}.gate_rank"]).config.linear_head_dim == 12


@pytest.mark.parametrize("name", [HUB, LATENT])
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


# Names


def as_saved(name: str, directory: Path, to: Path) -> dict[str, torch.Tensor]:
    """Return what save_pretrained writes."""
    oracle_model(case(name), directory).save_pretrained(to)
    return load_file(to / WEIGHTS)


def as_modules(name: str, directory: Path, to: Path) -> dict[str, torch.Tensor]:
    """Return the tensors as Hugging Face's modules hold them: convolutions and experts in one."""
    oracle_model(case(name), directory).save_pretrained(to, save_original_format=False)
    return load_file(to / WEIGHTS)


@pytest.mark.parametrize("form", [as_saved, as_modules])
@pytest.mark.parametrize("name", [HUB, LATENT])
def test_other_names_of_the_same_tensors_are_read(name, form, checkpoint, tmp_path):
    config, values = read(checkpoint(name))
    other = form(name, checkpoint(name), tmp_path)
    assert other.keys() != values.keys()
    want = ours(config, values).state_dict()
    for parameter, value in ours(config, other).state_dict().items():
        assert torch.equal(value, want[parameter]), parameter


def test_two_names_of_the_same_are_refused(checkpoint):
    config, values = read(checkpoint(HUB))
    name = "model.layers.0.block_sparse_moe.up_proj.weight"
    assert on_the_hub(name) in values
    with pytest.raises(WeightError, match=f"{name} are forms of the same"):
        defined(config, values | {name: values[on_the_hub(name)]})


# Roundings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_what_is_computed_in_fp32_beside_shorter_numbers(dtype, checkpoint):
    config, values = read(checkpoint(PLAIN))
    kept = ("A_log", "dt_bias", "e_score_correction_bias")
    stored = {n: t if n.endswith(kept) else t.to(dtype) for n, t in values.items()}
    found = defined(config, stored)
    fill(found, found.model, stored.__getitem__, dtype)
    mixer = found.model.layers[0].mixer
    assert {n for n, p in mixer.named_parameters() if p.dtype == torch.float32} == {
        "decay.A_log", "decay.dt_bias",
    }  # fmt: skip
    theirs = oracle_model(case(PLAIN), checkpoint(PLAIN), dtype).model.layers[0].self_attn
    for name in ("A_log", "dt_bias"):
        setattr(theirs.forget_gate, name, mixer.decay.get_parameter(name))
    generator = torch.Generator().manual_seed(0)
    x, gate = (torch.randn(40, 5, 3, 12, generator=generator).to(dtype) for _ in range(2))
    assert torch.equal(mixer.norm(x, gate), theirs.o_norm(x, gate))
    x = torch.randn(2, 50, 32, generator=generator).to(dtype)
    decay = mixer.decay(x)
    assert decay.dtype == torch.float32
    # Theirs is the rate times log(1 + exp(x)), whose sum is rounded to a multiple of 2**-23.
    rounding = mixer.decay.A_log.exp().max().item() * 2**-23
    want = theirs.forget_gate(x).flatten(-2)
    torch.testing.assert_close(decay, want, atol=rounding, rtol=1e-6)
