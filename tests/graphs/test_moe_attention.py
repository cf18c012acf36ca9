"""gpt-oss, Llama 4 and MiMo-V2-Flash: that every setting shows, and what is refused."""

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files.quantized import E2M1, nibbles, powers
from safetensors.torch import load_file, save_file
from tiny import case, defined, logits, make, oracle_model, prompt, read
from tiny.moe_attention import MIMO_FLASH, OSS_PLAIN, SCOUT
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.pack import pack
from lmcast.exporter.prove.rounding import exact_engine
from lmcast.exporter.weights.place import WeightsError
from lmcast.graphs import WeightError, fill
from lmcast.graphs.blocks.norm import UnitNorm
from lmcast.graphs.blocks.rope import rotate_pairs

OPTIONS: dict[str, Any] = {"parity": False, "tokenizer": False}
PLAIN = {"rope_type": "default", "rope_theta": 50.0}


DERIVED = {"num_hidden_layers": 7, "moe_layer_freq": None, "layer_types": None}


SELF, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
BOTH, DOWN = f"{MLP}.experts.gate_up_proj", f"{MLP}.experts.down_proj"
FFN = "model.layers.1.feed_forward"
# Base case, a tensor, what it becomes (None: missing), what the message must say.
MISFITS: list[tuple[str, str, Any, str]] = [
    (OSS_PLAIN, f"{SELF}.sinks", None, r"sinks is missing \(for layers.1.mixer.sink \[4\]"),
    (OSS_PLAIN, f"{SELF}.sinks", lambda t: t[:2], r"sinks has shape \[2\].*\[4\]"),
    (OSS_PLAIN, f"{MLP}.router.bias", None, "router.bias is missing"),
    (OSS_PLAIN, BOTH, lambda t: t.mT, r"gate_up_proj has shape \[8, 48, 32\].*\[8, 24, 32\]"),
    (OSS_PLAIN, BOTH, lambda t: t[..., :-1], r"gate_up_proj has shape \[8, 32, 47\]"),
    (OSS_PLAIN, f"{BOTH}_bias", lambda t: t[:7], r"gate_up_proj_bias has shape \[7, 48\]"),
    (OSS_PLAIN, DOWN, lambda t: t[:7], r"down_proj has shape \[7, 24, 32\]"),
    (OSS_PLAIN, DOWN, None, "down_proj is missing"),
    (SCOUT, f"{FFN}.router.weight", None, "router.weight is missing"),
    (SCOUT, f"{FFN}.experts.gate_up_proj", lambda t: t.mT, r"gate_up_proj has shape \[4, 48, 32"),
    (SCOUT, f"{FFN}.experts.gate_up_proj", lambda t: t[..., :24], r"\[4, 32, 24\] \(as .*up"),
    (SCOUT, f"{FFN}.experts.down_proj", lambda t: t[0], r"down_proj has shape \[24, 32\]"),
    (SCOUT, f"{FFN}.shared_expert.up_proj.weight", None, "shared_expert.up_proj.weight is missing"),
    (MIMO_FLASH, f"{SELF}.attention_sink_bias", None, "attention_sink_bias is missing"),
    (MIMO_FLASH, f"{MLP}.gate.e_score_correction_bias", None, "correction_bias is missing"),
    (
        MIMO_FLASH,
        f"{SELF}.v_proj.weight",
        lambda t: t[:32],
        r"v_proj.weight has shape \[32, 32\].*\[64",
    ),
    (MIMO_FLASH, f"{MLP}.experts.7.up_proj.weight", None, "experts.7.up_proj.weight is missing"),
]


@pytest.mark.parametrize(("name", "tensor", "change", "message"), MISFITS)
def test_tensors_that_do_not_fit_are_refused(name, tensor, change, message, checkpoint):
    config, values = read(checkpoint(name))
    stored = values.pop(tensor)
    changed = {} if change is None else {tensor: change(stored)}
    with pytest.raises(WeightError, match=message):
        defined(config, values | changed)


def test_layer_lists_that_the_tensors_contradict_are_refused(checkpoint):
    config, values = read(checkpoint(MIMO_FLASH))
    with pytest.raises(WeightError, match=r"layers\.0\.self_attn\.attention_sink_bias is missing"):
        defined(config | {"hybrid_layer_pattern": [1, 1, 1, 1, 1, 0, 1]}, values)
    with pytest.raises(WeightError, match=r"layers\.1\.mlp\.gate_proj"):
        defined(config | {"moe_layer_freq": [0, 0, 1, 1, 1, 1, 1]}, values)
    surplus = values | {"model.layers.0.self_attn.attention_sink_bias": torch.zeros(4)}
    with pytest.raises(WeightError, match=r"attention_sink_bias .*nothing reads it"):
        defined(config, surplus)


def test_names_and_stacks_of_hugging_face_are_read(checkpoint, tmp_path):
    config, values = read(checkpoint(MIMO_FLASH))
    directory = make(case(MIMO_FLASH), tmp_path / "own")
    oracle_model(case(MIMO_FLASH), directory).save_pretrained(tmp_path, save_original_format=False)
    other = load_file(tmp_path / "model.safetensors")
    assert f"{SELF}.sinks" in other
    assert BOTH in other
    assert torch.equal(logits(config, other), logits(config, values))


def in_mxfp4(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return the config of an MXFP4 checkpoint, its tensors, and the same with plain numbers.

    Blocks of 32 lie along the axis that a product sums over.
    """
    wide = dataclasses.replace(
        case(OSS_PLAIN), settings={**case(OSS_PLAIN).settings, "intermediate_size": 64}
    )
    config, plain = read(make(wide, tmp_path))
    random, packed = torch.Generator().manual_seed(0), dict(plain)
    for name in [name for name in plain if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = packed.pop(name).shape
        size = (experts, outer, inner // 32)
        blocks = torch.randint(256, (*size, 16), generator=random, dtype=torch.uint8)
        scales = torch.randint(122, 126, size, generator=random, dtype=torch.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        numbers = E2M1[nibbles(blocks)] * powers(scales)[..., None]
        plain[name] = numbers.flatten(-2).mT.contiguous()
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    return config | {"quantization_config": settings}, packed, plain


def test_mxfp4_is_what_it_unpacks_to(tmp_path):
    config, packed, plain = in_mxfp4(tmp_path)
    assert torch.equal(
        logits(config, packed), logits(config | {"quantization_config": None}, plain)
    )
    scales = f"{BOTH}_scales"
    with pytest.raises(WeightError, match=f"{BOTH}_blocks .* does not fit {scales}"):
        defined(config, packed | {scales: packed[scales][..., :0]})
    with pytest.raises(WeightError, match=f"{scales} is missing"):
        defined(config, {name: value for name, value in packed.items() if name != scales})


def test_an_engine_of_mxfp4_is_that_of_its_numbers(tmp_path):
    config, packed, plain = in_mxfp4(tmp_path / "made")
    made = save(tmp_path / "packed", config, packed)
    engine = export(made, tmp_path / "packed engine", tokenizer=False)
    assert not engine.linked
    assert json.loads((engine.directory / "parity.json").read_text())["passed"]
    plain_config = config | {"quantization_config": None}
    numbers = export(save(tmp_path / "plain", plain_config, plain), tmp_path / "of them", **OPTIONS)
    # The engine rounds inputs of products to int8; without that it computes with the same numbers.
    exact = exact_engine(engine.directory)
    got, want = (each.logits(prompt()) for each in (exact, numbers))
    # On some machines equal to the bit; on others kernels add up in another order: 16 epsilons of
    # fp32. With rounding the difference is 2 of 6, as experts are chosen by it.
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
    with pytest.raises(WeightsError, match="is MXFP4, which ONNX Runtime's CPU has no kernel for"):
        export(tmp_path / "packed", tmp_path / "engine", weights="link", **OPTIONS)
    linked = export(tmp_path / "packed", tmp_path / "engine", "onnx", weights="link", **OPTIONS)
    assert linked.linked
    counts = linked.manifest.fields["weights"]["mxfp4"]  # each stack once, though two take of it
    stored = [packed[f"{n}_{end}"] for n in stacks(packed) for end in ("blocks", "scales")]
    assert counts == {"tensors": len(stacks(packed)), "bytes": sum(t.nbytes for t in stored)}
    assert pack(linked.directory, tmp_path / "alone").manifest.fields["linked"] == []


def stacks(packed: dict[str, Tensor]) -> list[str]:
    return [name.removesuffix("_blocks") for name in packed if name.endswith("_blocks")]


def save(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


# Roundings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [OSS_PLAIN, SCOUT, MIMO_FLASH])
@torch.no_grad()
def test_norms_round_where_hugging_faces_do(name, dtype, tmp_path):
    directory = make(case(name), tmp_path)
    config, values = read(directory)
    found = defined(config, values)
    fill(found, found.model, values.__getitem__, dtype)
    theirs = oracle_model(case(name), directory, dtype).model
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(found.model.final.norm(x), theirs.norm(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pairs_are_rotated_and_normed_as_in_llama_4(dtype):
    theirs = import_module("transformers.models.llama4.modeling_llama4")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 8, generator=generator).to(dtype)
    angle = 9 * torch.rand(2, 5, 4, generator=generator)
    turned, _ = theirs.apply_rotary_emb(x, x, torch.polar(torch.ones_like(angle), angle))
    mine = rotate_pairs(x.flatten(-2), angle.cos(), angle.sin(), 3)
    assert torch.equal(mine, turned.flatten(-2))
    normed = theirs.Llama4TextL2Norm(1e-5)(turned)
    assert torch.equal(UnitNorm(8, 1e-5)(mine), normed.flatten(-2))
