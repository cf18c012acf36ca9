"""Kimi Linear: settings, names, roundings."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import case, defined, oracle_model, ours, read
from tiny.kimi_linear import HUB, LATENT, NESTED, PLAIN, nested, on_the_hub
from tiny.llama import WEIGHTS

from lmcast.graphs import WeightError, define, fill


def test_a_nested_key_named_as_inert_is_passed_over(checkpoint):
    config, values = read(checkpoint(HUB))
    shapes = {name: tuple(tensor.shape) for name, tensor in values.items()}
    config |= nested(gate_rank=8)
    assert define(config, shapes, [f"{NESTED}.gate_rank"]).config.linear_head_dim == 12


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
