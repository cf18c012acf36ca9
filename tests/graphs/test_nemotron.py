"""Nemotron-H: settings, names, roundings, the floor of time steps."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import case, defined, gap, oracle_model, ours, prompt, read
from tiny.llama import WEIGHTS
from tiny.nemotron import INFINITY, NANO2, NANO_3, PATTERN, SUPER

from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.graphs import WeightError

# Configs that are sound, but not those of the tensors.
UP = "tensor backbone.layers.1.mixer.experts.0.up_proj.weight"
MISFITS: list[tuple[str, dict[str, Any], str]] = [
    (NANO2, {PATTERN: "MM-*-"}, "tensor backbone.layers.1.mixer.A_log is missing"),
    (NANO_3, {"moe_latent_size": 20}, UP),
    (SUPER, {"moe_latent_size": None}, UP),
]


@pytest.mark.parametrize(("name", "change", "message"), MISFITS)
def test_tensors_of_another_config_are_refused(name, change, message, checkpoint):
    config, values = read(checkpoint(name))
    with pytest.raises(WeightError, match=message):
        defined(config | change, values)


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
    directory = checkpoint(NANO_3)
    model = ours(*read(directory), dtype)
    theirs = oracle_model(case(NANO_3), directory, dtype).model
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
