"""Families with experts: every setting shows, and what holds by default needs no saying."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import case, defined, gap, logits, oracle_model, prompt, read
from tiny.llama import WEIGHTS
from tiny.moe import AIR, GROUPED, M2, MINI

from lmcast.graphs import fill

# Settings


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
