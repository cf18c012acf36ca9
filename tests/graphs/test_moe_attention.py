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
from tiny import case, defined, gap, logits, make, oracle_model, prompt, read
from tiny.configs import FULL, SLIDING
from tiny.moe_attention import CHUNKED
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.pack import pack
from lmcast.exporter.prove.rounding import exact_engine
from lmcast.exporter.weights.place import WeightsError
from lmcast.graphs import ConfigError, WeightError, fill
from lmcast.graphs.blocks.norm import UnitNorm
from lmcast.graphs.blocks.rope import rotate_pairs

OSS, OSS_20B = "gpt_oss/plain", "gpt_oss/gpt-oss-20b"
SCOUT, MAVERICK = "llama4_text/Llama-4-Scout (text)", "llama4_text/Llama-4-Maverick (text)"
LISTED = "llama4_text/listed layers, two experts, gelu"
MIMO, GROUPED = "mimo_v2_flash/MiMo-V2-Flash", "mimo_v2_flash/groups, scale, no norm"
OPTIONS: dict[str, Any] = {"parity": False, "tokenizer": False}
ROPE = {"rope_type": "default", "rope_theta": 50.0}
QUARTER = {**ROPE, "partial_rotary_factor": 0.25}
# A comparison with Hugging Face proves nothing of a setting that does not show in the logits.
SHOWN = [
    (OSS, {"sliding_window": 7}),
    (OSS, {"layer_types": [FULL, SLIDING, FULL]}),
    (OSS, {"num_experts_per_tok": 3}),
    ("gpt_oss/limits, all experts, yarn", {"swiglu_limit": 0.6}),
    ("gpt_oss/limits, all experts, yarn", {"swiglu_alpha": 1.702}),
    (OSS_20B, {"rope_theta": 15}),
    (SCOUT, {"attention_chunk_size": 7}),
    (SCOUT, {"use_qk_norm": False}),
    (SCOUT, {"floor_scale": 7}),
    (SCOUT, {"attn_scale": 0.2}),
    (SCOUT, {"attn_temperature_tuning": False}),
    (SCOUT, {"no_rope_layers": [0, 1, 1, 0]}),
    (SCOUT, {"num_experts_per_tok": 2}),
    (SCOUT, {"rope_scaling": None}),
    ("llama4_text/layer types, no temperature", {"layer_types": [CHUNKED] * 3}),
    (MIMO, {"attention_value_scale": 1.0}),
    (MIMO, {"sliding_window_size": 7}),
    (MIMO, {"n_group": 2}),
    (MIMO, {"routed_scaling_factor": 2.0}),
    (MIMO, {"norm_topk_prob": False}),
    (GROUPED, {"topk_group": 3}),
    (GROUPED, {"sliding_window": 7}),
    (GROUPED, {"rope_parameters": {FULL: QUARTER, SLIDING: QUARTER}}),
    (GROUPED, {"rope_parameters": {FULL: {**QUARTER, "rope_theta": 5000.0}, SLIDING: ROPE}}),
]


@pytest.mark.parametrize(("name", "change"), SHOWN)
def test_settings_show_in_the_logits(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert {key: config.get(key) for key in change} != change
    assert gap(logits(config, values), logits(config | change, values)) > 1e-3


DERIVED = {"num_hidden_layers": 7, "moe_layer_freq": None, "layer_types": None}
# Settings that say what holds anyway: by default, or because of another.
SILENT = [
    (OSS_20B, {"initial_context_length": None, "experts_per_token": None}),
    (OSS_20B, {"layer_types": None}),
    (MAVERICK, {"no_rope_layers": [1, 1, 1, 0]}),
    (MAVERICK, {"no_rope_layers": [1, 1, 1, 0, 1, 1]}),
    (MAVERICK, {"moe_layers": [1, 3]}),
    (MAVERICK, {"layer_types": [CHUNKED, CHUNKED, CHUNKED, FULL]}),
    (MIMO, {"hybrid_layer_pattern": None}),
    (MIMO, {"hybrid_layer_pattern": None, "layer_types": [FULL, *[SLIDING] * 4, FULL, SLIDING]}),
    (MIMO, {"moe_layer_freq": None}),
    (MIMO, {"mlp_layer_types": ["dense", *["sparse"] * 6]}),
    (MIMO, {"sliding_window_size": None, "sliding_window": 9}),
    (MIMO, {"swa_num_key_value_heads": None, "swa_head_dim": None, "layernorm_epsilon": None}),
    (MIMO, {"rope_theta": None, "swa_rope_theta": None, "partial_rotary_factor": None}),
    (MIMO, {"n_routed_experts": None, "num_local_experts": 8}),
]


@pytest.mark.parametrize(("name", "change"), SILENT)
def test_settings_that_repeat_others_change_nothing(name, change, checkpoint):
    config, values = read(checkpoint(name))
    assert torch.equal(logits(config, values), logits(config | change, values))


@pytest.mark.parametrize(
    "name",
    [
        "gpt_oss/limits, all experts, yarn",
        "llama4_text/interval 2, llama3",
        "mimo_v2_flash/wide values, yarn",
    ],
)
def test_every_parameter_shows_in_the_logits(name, checkpoint):
    config, values = read(checkpoint(name))
    before = logits(config, values)
    silent = [
        tensor
        for tensor, value in values.items()
        if gap(logits(config, values | {tensor: value.flip(-1)}), before) < 1e-5
        # A shift of all scores shows in no weight where every expert is chosen.
        and not tensor.endswith("e_score_correction_bias")
    ]
    assert not silent


# Base case, what is changed in config.json, what the message must name.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (OSS_20B, {"layer_types": [SLIDING, FULL]}, "layer_types has 2 entries; .* is 4"),
    (OSS_20B, {"layer_types": [CHUNKED] * 4}, r"layer_types\[0\] is 'chunked_attention'"),
    (OSS_20B, {"sliding_window": None}, r"layer_types\[0\].*sliding_window"),
    (OSS_20B, {"num_experts_per_tok": 9, "experts_per_token": 9}, "num_experts_per_tok is 9"),
    (OSS_20B, {"experts_per_token": 3}, "num_experts_per_tok is 2, but experts_per_token"),
    (OSS_20B, {"num_local_experts": 0}, "num_local_experts is 0; accepted: 1"),
    (OSS_20B, {"swiglu_limit": 0.0}, "swiglu_limit is 0.0"),
    (OSS_20B, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; implemented: 'silu'"),
    (OSS_20B, {"quantization_config": {"quant_method": "fp8"}}, "quant_method is 'fp8'"),
    (OSS_20B, {"quantization_config": {}}, "quant_method is missing"),
    (OSS_20B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (SCOUT, {"attention_chunk_size": None}, "no attention_chunk_size"),
    (SCOUT, {"attention_chunk_size": 0}, "attention_chunk_size is 0; accepted: 1"),
    (SCOUT, {"layer_types": [CHUNKED] * 3}, "layer_types has 3 entries"),
    (SCOUT, {"layer_types": [SLIDING] * 4}, r"layer_types\[0\] is 'sliding_attention'"),
    (SCOUT, {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries"),
    (SCOUT, {"no_rope_layers": [1, 2, 0, 1]}, r"no_rope_layers\[1\] is 2"),
    (SCOUT, {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    (SCOUT, {"moe_layers": [-1]}, r"moe_layers\[0\] is -1"),
    (SCOUT, {"moe_layers": None, "interleave_moe_layer_step": 0}, "interleave_moe_layer_step is 0"),
    (SCOUT, {"num_experts_per_tok": 5}, "num_experts_per_tok is 5; accepted: at most the 4"),
    (SCOUT, {"floor_scale": 0}, "floor_scale is 0; accepted: 1"),
    (SCOUT, {"attn_temperature_tuning": 4}, "attn_temperature_tuning is 4"),
    (SCOUT, {"use_qk_norm": 1}, "use_qk_norm is 1"),
    (MIMO, {"hybrid_layer_pattern": [0, 1, 1]}, "layer_types has 3 entries; .* is 7"),
    (MIMO, {"hybrid_layer_pattern": [0, 1, 1, 2, 1, 0, 1]}, "hybrid_layer_pattern .*0 .full_att"),
    (MIMO, {"hybrid_layer_pattern": 1}, "hybrid_layer_pattern is 1; accepted: a list"),
    (MIMO, {"layer_types": [SLIDING] * 7}, "layer_types .* but hybrid_layer_pattern, which means"),
    (MIMO, {"moe_layer_freq": [0, 1]}, "mlp_layer_types has 2 entries"),
    (MIMO, {"moe_layer_freq": [0, True, 1, 1, 1, 1, 1]}, "moe_layer_freq is"),
    (MIMO, {"swa_head_dim": 16}, "head_dim is 24, but swa_head_dim"),
    (MIMO, {"swa_num_attention_heads": 8}, "num_attention_heads is 4, but swa_num_attention"),
    (MIMO, {"swa_num_key_value_heads": 3}, "4 query heads are not a multiple of 3"),
    (MIMO, {"rope_theta": 7.0}, "rope_theta is 5000000.0, but rope_theta is 7.0 beside it"),
    (MIMO, {"swa_rope_theta": 7.0}, "rope_theta is 10000.0, but swa_rope_theta is 7.0"),
    (MIMO, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.334, but"),
    (MIMO, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
    (MIMO, {"head_dim": 16, "swa_head_dim": 16}, "rotary width is 5"),
    (MIMO, {"add_swa_attention_sink_bias": False}, "add_swa_attention_sink_bias is False"),
    (MIMO, {"add_full_attention_sink_bias": True}, "add_full_attention_sink_bias = True"),
    (MIMO, {"n_shared_experts": 1}, "n_shared_experts = 1"),
    (MIMO, {"n_group": 3}, "n_group is 3; accepted: a divisor"),
    (MIMO, {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_configs_that_no_definition_reads_are_refused(name, change, message, checkpoint):
    config, values = read(checkpoint(name))
    with pytest.raises(ConfigError, match=f"^{config['model_type']}: config.json: .*{message}"):
        defined(config | change, values)


SELF, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
BOTH, DOWN = f"{MLP}.experts.gate_up_proj", f"{MLP}.experts.down_proj"
FFN = "model.layers.1.feed_forward"
# Base case, a tensor, what it becomes (None: missing), what the message must say.
MISFITS: list[tuple[str, str, Any, str]] = [
    (OSS, f"{SELF}.sinks", None, r"sinks is missing \(for layers.1.mixer.sink \[4\]"),
    (OSS, f"{SELF}.sinks", lambda t: t[:2], r"sinks has shape \[2\].*\[4\]"),
    (OSS, f"{MLP}.router.bias", None, "router.bias is missing"),
    (OSS, BOTH, lambda t: t.mT, r"gate_up_proj has shape \[8, 48, 32\].*\[8, 24, 32\]"),
    (OSS, BOTH, lambda t: t[..., :-1], r"gate_up_proj has shape \[8, 32, 47\]"),
    (OSS, f"{BOTH}_bias", lambda t: t[:7], r"gate_up_proj_bias has shape \[7, 48\]"),
    (OSS, DOWN, lambda t: t[:7], r"down_proj has shape \[7, 24, 32\]"),
    (OSS, DOWN, None, "down_proj is missing"),
    (SCOUT, f"{FFN}.router.weight", None, "router.weight is missing"),
    (SCOUT, f"{FFN}.experts.gate_up_proj", lambda t: t.mT, r"gate_up_proj has shape \[4, 48, 32"),
    (SCOUT, f"{FFN}.experts.gate_up_proj", lambda t: t[..., :24], r"\[4, 32, 24\] \(as .*up"),
    (SCOUT, f"{FFN}.experts.down_proj", lambda t: t[0], r"down_proj has shape \[24, 32\]"),
    (SCOUT, f"{FFN}.shared_expert.up_proj.weight", None, "shared_expert.up_proj.weight is missing"),
    (MIMO, f"{SELF}.attention_sink_bias", None, "attention_sink_bias is missing"),
    (MIMO, f"{MLP}.gate.e_score_correction_bias", None, "correction_bias is missing"),
    (MIMO, f"{SELF}.v_proj.weight", lambda t: t[:32], r"v_proj.weight has shape \[32, 32\].*\[64"),
    (MIMO, f"{MLP}.experts.7.up_proj.weight", None, "experts.7.up_proj.weight is missing"),
]


@pytest.mark.parametrize(("name", "tensor", "change", "message"), MISFITS)
def test_tensors_that_do_not_fit_are_refused(name, tensor, change, message, checkpoint):
    config, values = read(checkpoint(name))
    stored = values.pop(tensor)
    changed = {} if change is None else {tensor: change(stored)}
    with pytest.raises(WeightError, match=message):
        defined(config, values | changed)


def test_layer_lists_that_the_tensors_contradict_are_refused(checkpoint):
    config, values = read(checkpoint(MIMO))
    with pytest.raises(WeightError, match=r"layers\.0\.self_attn\.attention_sink_bias is missing"):
        defined(config | {"hybrid_layer_pattern": [1, 1, 1, 1, 1, 0, 1]}, values)
    with pytest.raises(WeightError, match=r"layers\.1\.mlp\.gate_proj"):
        defined(config | {"moe_layer_freq": [0, 0, 1, 1, 1, 1, 1]}, values)
    surplus = values | {"model.layers.0.self_attn.attention_sink_bias": torch.zeros(4)}
    with pytest.raises(WeightError, match=r"attention_sink_bias .*nothing reads it"):
        defined(config, surplus)


def test_names_and_stacks_of_hugging_face_are_read(checkpoint, tmp_path):
    config, values = read(checkpoint(MIMO))
    directory = make(case(MIMO), tmp_path / "own")
    oracle_model(case(MIMO), directory).save_pretrained(tmp_path, save_original_format=False)
    other = load_file(tmp_path / "model.safetensors")
    assert f"{SELF}.sinks" in other
    assert BOTH in other
    assert torch.equal(logits(config, other), logits(config, values))


def in_mxfp4(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return the config of an MXFP4 checkpoint, its tensors, and the same with plain numbers.

    Blocks of 32 lie along the axis that a product sums over.
    """
    wide = dataclasses.replace(case(OSS), settings={**case(OSS).settings, "intermediate_size": 64})
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
@pytest.mark.parametrize("name", [OSS, SCOUT, MIMO])
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
