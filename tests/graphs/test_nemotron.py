"""Nemotron-H: settings, names, roundings, the floor of time steps."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import case, defined, gap, logits, oracle_model, ours, prompt, read
from tiny.llama import DROP, WEIGHTS

from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.graphs import ConfigError

NANO2, NANO3, SUPER, ULTRA = (
    f"nemotron_h/Nemotron-{name}" for name in ("Nano-9B-v2", "3-Nano", "3-Super", "3-Ultra")
)
LATENTS = "nemotron_h/latents, groups, biases"
GELU = "nemotron_h/no bias of the convolution, MHA, gelu"
PATTERN, INFINITY = "hybrid_override_pattern", {"__float__": "Infinity"}
OLD = ["mamba", "mlp", "mamba", "attention", "mlp"]
NEW = ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp"]


def changed(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (config | change).items() if value is not DROP}


# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN = [
    (NANO2, {"time_step_limit": [0.5, math.inf]}),
    (NANO2, {"time_step_limit": [0.0, 0.2]}),
    (NANO2, {"layer_norm_epsilon": 0.05, "rms_norm_eps": 0.05}),
    (NANO2, {"mamba_hidden_act": "gelu"}),
    (GELU, {"mlp_hidden_act": "relu2"}),
    (NANO3, {"norm_topk_prob": False}),
    (NANO3, {"routed_scaling_factor": 1.0}),
    (NANO3, {"num_experts_per_tok": 3}),
    (NANO3, {"n_group": 4}),
    (LATENTS, {"n_group": 2}),
    (LATENTS, {"topk_group": 3}),
]


@pytest.mark.parametrize(("name", "change"), SHOWN)
def test_settings_show_in_the_logits(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert {key: config.get(key) for key in change} != change
    assert gap(logits(config, values), logits(config | change, values)) > 1e-3


# Settings that say what holds anyway, in other words or by default, or that say nothing.
SILENT: list[tuple[str, dict[str, Any]]] = [
    (NANO2, {"time_step_limit": DROP}),
    (NANO2, {"time_step_limit": [0.0, INFINITY]}),
    (NANO2, {"time_step_limit": DROP, "mamba_dt_limit": [0.0, math.inf]}),
    (NANO2, {"time_step_min": 0.5, "time_step_max": 9.0, "time_step_floor": 0.5}),
    (NANO2, {"rope_theta": 7.0, "partial_rotary_factor": 0.5, "rope_scaling": {"factor": 2.0}}),
    (NANO2, {"chunk_size": 64, "expand": 7, "use_mamba_kernels": False, "num_query_groups": 7}),
    (NANO2, {"residual_in_fp32": True, "rescale_prenorm_residual": False}),
    (NANO2, {PATTERN: "M-M*-", "layers_block_type": OLD, "layer_types": NEW}),
    (NANO2, {PATTERN: DROP, "layers_block_type": OLD}),
    (NANO2, {PATTERN: None, "layer_types": NEW, "num_hidden_layers": DROP}),
    (NANO2, {"n_groups": DROP, "mamba_num_groups": 2, "head_dim": DROP, "attention_head_dim": 16}),
    (NANO2, {"ssm_state_size": DROP, "mamba_state_dim": 12, "conv_kernel": DROP}),
    (NANO2, {"layer_norm_epsilon": DROP, "use_conv_bias": DROP, "mamba_conv_bias": True}),
    (NANO3, {"n_routed_experts": DROP, "num_local_experts": 8, "n_shared_experts": 2}),
    (SUPER, {"num_nextn_predict_layers": 0, "mtp_hybrid_override_pattern": DROP}),
]


@pytest.mark.parametrize(("name", "change"), SILENT)
def test_settings_that_mean_the_same(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert changed(config, change) != config
    assert torch.equal(logits(changed(config, change), values), logits(config, values))


# What define refuses.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (NANO2, {PATTERN: "M-MX-"}, rf"{PATTERN} is 'M-MX-'; .* E \(moe"),
    (NANO2, {PATTERN: 5}, f"{PATTERN} is 5; accepted: a string of M"),
    (NANO2, {PATTERN: "MM-*-"}, "tensor backbone.layers.1.mixer.A_log is missing"),
    (NANO2, {PATTERN: DROP}, "layer_types is missing"),
    (NANO2, {PATTERN: DROP, "layer_types": ["mamba2"]}, r"layer_types\[0\] is 'mamba2'"),
    (NANO2, {PATTERN: None, "layers_block_type": [["mamba"]]}, r"layer_types\[0\] is \['mamba"),
    (NANO2, {"layers_block_type": OLD[::-1]}, "layer_types is .* but hybrid_override_pattern"),
    (NANO2, {"num_hidden_layers": 4}, "layer_types has 5 entries; num_hidden_layers is 4"),
    (NANO2, {"time_step_limit": [0.1]}, r"time_step_limit is \[0.1\]; accepted: the least"),
    (NANO2, {"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06, but layer_norm_epsilon"),
    (NANO2, {"mamba_num_groups": 3}, "n_groups is 2, but mamba_num_groups, which means the same"),
    (NANO2, {"n_groups": 4}, "6 heads of Mamba are not a multiple of its 4 groups"),
    (NANO2, {"attention_bias": True}, "attention_bias is True"),
    (NANO2, {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
    (NANO2, {"sliding_window": 8}, "sliding_window = 8, which nothing reads"),
    (NANO3, {"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'; of experts: 'relu2'"),
    (NANO3, {"n_group": 3}, "n_group is 3; accepted: a divisor of the 8 experts"),
    (NANO3, {"moe_latent_size": 20}, "tensor backbone.layers.1.mixer.experts.0.up_proj.weight"),
    (SUPER, {"moe_latent_size": None}, "tensor backbone.layers.1.mixer.experts.0.up_proj.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_configs_that_no_definition_reads_are_refused(name, change, message, checkpoint):
    config, values = read(checkpoint(name))
    with pytest.raises(ValueError, match=message) as error:
        defined(changed(config, change), values)
    assert isinstance(error.value, ConfigError) != message.startswith("tensor")


@pytest.mark.parametrize("name", [NANO2, SUPER, LATENTS, GELU])
@torch.no_grad()
def test_every_parameter_shows_in_the_logits(name, checkpoint):
    config, values = read(checkpoint(name))
    model = ours(config, values)
    before, silent = model(prompt()), []
    for parameter, value in model.named_parameters():
        kept = value.clone()
        value.copy_(kept.flip(-1))
        if gap(model(prompt()), before) < 1e-5:
            silent.append(parameter)
        value.copy_(kept)
    assert not silent


def test_names_that_hugging_face_holds_are_read(checkpoint, tmp_path):
    config, values = read(checkpoint(SUPER))
    model = oracle_model(case(SUPER), checkpoint(SUPER))
    model.save_pretrained(tmp_path, save_original_format=False)
    other = load_file(tmp_path / WEIGHTS)
    assert "model.layers.1.mixer.experts.up_proj" in other
    assert not any(tensor.startswith("backbone") for tensor in other)
    mine = ours(config, values)  # products of tensors that lie elsewhere may round otherwise
    for name, value in ours(config, other).named_parameters():
        assert torch.equal(value, mine.get_parameter(name))


def test_predictors_are_named_and_left_out(checkpoint):
    config, values = read(checkpoint(SUPER))
    names = ["eh_proj", "enorm", "hnorm", "norm", "mixer.q_proj"]
    more = {f"mtp.layers.0.{name}.weight": torch.ones(3) for name in names}
    more["mtp.layers.1.mixer.experts.0.up_proj.weight"] = torch.ones(3)
    assert defined(config, values | more).left_out == "6 tensors: 6 of mtp"


def test_an_infinite_bound_is_read_as_python_writes_it(checkpoint):
    directory = checkpoint(NANO2)
    assert "Infinity" in (directory / "config.json").read_text()
    assert open_checkpoint(directory).config["time_step_limit"] == [0.0, INFINITY]


def test_parameters_of_latent_experts_are_counted(checkpoint):
    found = defined(*read(checkpoint(SUPER)))
    # Two layers of 8 experts of 20 x 24 twice, of which 3 are used; the embedding of 97 x 32.
    assert found.parameters - found.active == 2 * (8 - 3) * 2 * 20 * 24 + 97 * 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_norms_and_experts_round_where_hugging_faces_do(dtype, checkpoint):
    directory = checkpoint(NANO3)
    model = ours(*read(directory), dtype)
    theirs = oracle_model(case(NANO3), directory, dtype).model
    x = torch.randn(3, 50, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(model.final.norm(x), theirs.norm_f(x))
    moe = theirs.layers[1].mixer
    assert torch.equal(model.layers[1].mixer.ffn.shared(x), moe.shared_experts(x))
    _, weights, chosen = moe.gate(x)
    given = (weights.unflatten(0, (3, 50)), chosen.unflatten(0, (3, 50)))
    mine = model.layers[1].mixer.ffn.experts(x, *given)
    exact = ours(*read(directory), torch.float64)
    for name, value in model.named_parameters():
        exact.get_parameter(name).copy_(value)
    wanted = exact.layers[1].mixer.ffn.experts(x.double(), given[0].double(), given[1])
    other = moe.experts(x.flatten(0, 1), chosen, weights).unflatten(0, (3, 50))
    # Theirs adds up in another order: neither may be further from the exact sum than the other.
    assert gap(mine, wanted) <= 1.5 * gap(other, wanted)


@torch.no_grad()
def test_hugging_face_floors_steps_of_prompts_alone(checkpoint):
    """Its defect, set here by hand: a prompt is one of ours with a limit, a decoding step is not.

    The published model has the limit of its config, which floors nothing, in both.
    """
    config, values = read(checkpoint(NANO2))
    theirs, ids = deepcopy(oracle_model(case(NANO2), checkpoint(NANO2))), prompt(2, 21)
    for layer in theirs.model.layers:
        if layer.block_type == "linear_attention":
            layer.mixer.time_step_limit = (0.5, math.inf)
    model = ours(config, values)
    floored = ours(config | {"time_step_limit": [0.5, math.inf]}, values)
    lengths, counts = torch.zeros(2, dtype=torch.int64), torch.full((2,), 20)
    mine, past = floored.step(ids[:, :20], lengths, counts, floored.empty_states(2, 21))
    first = theirs(ids[:, :20], use_cache=True)
    # 1e-4: fp32 noise of both sides, of logits up to 8
    assert gap(mine, first.logits) < 1e-4
    assert gap(model(ids[:, :20]), first.logits) > 1e-2
    second = theirs(ids[:, 20:], past_key_values=first.past_key_values, use_cache=True).logits
    one = torch.ones_like(counts)
    assert gap(model.step(ids[:, 20:], counts, one, past)[0], second) < 1e-4
    assert gap(floored.step(ids[:, 20:], counts, one, past)[0], second) > 1e-2
