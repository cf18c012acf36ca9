"""Gated DeltaNets: settings, names, what is left out, FP8, roundings."""

import pytest
import torch
from files.fp8 import CONFIG, RAGGED, blocks, in_fp8
from safetensors.torch import load_file
from tiny import case, defined, logits, oracle_model, ours, read
from tiny.delta_nets import DENSE, MOE, NEXT
from tiny.llama import WEIGHTS

from lmcast.graphs import WeightError, fill

OUTER, OUTER_MOE = "qwen3_5/Qwen3.5-27B", "qwen3_5_moe/Qwen3.5-35B-A3B"


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
