"""Mistral Large 3 as Mistral stores it: params.json, its names of tensors, consolidated files."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from files.mistral import LENGTH, PARAMS, ROPE, changed, fill, in_fp8, native, oracle, write
from files.quantized import compressed
from safetensors.torch import save_file
from tiny import gap, prompt
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.exporter.prove.parity import parity
from lmcast.graphs import WeightError, define, load

SCALED = {"attention_factor": None, "mscale": 1.0, "mscale_all_dim": 1.0}
YARN, MOE = PARAMS["yarn"], PARAMS["moe"]
WO = "layers.0.attention.wo"
PART = "consolidated-00001-of-00002.safetensors"


# Changes of params.json, the same in Hugging Face's words: of rope_parameters and the rest.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "as released": ({}, {}, {}),
    "yarn scaled": ({"yarn": {"apply_scale": True}}, SCALED, {}),
    "yarn silent": ({"yarn": {"apply_scale": None, "beta": None, "alpha": None}},
                    SCALED | {"beta_fast": 32.0, "beta_slow": 1.0}, {}),
    "no temperature": ({"llama_4_scaling": None}, {"llama_4_scaling_beta": 0.0}, {}),
    # Hugging Face's default rope cannot be run for Mistral 4; yarn by 1 is the same.
    "no yarn": ({"yarn": None}, {"factor": 1.0}, {}),
    "all sparse, one group, tied": (
        {"moe": {"first_k_dense_replace": 0, "num_expert_groups": None,
                 "num_expert_groups_per_tok": None, "routed_scale": None},
         "tied_embeddings": True, "head_dim": None, "n_kv_heads": None, "model_type": None,
         "max_position_embeddings": None, "max_seq_len": 64},
        {},
        {"first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
         "tie_word_embeddings": True},
    ),
}  # fmt: skip


def theirs(rope: dict[str, Any], settings: dict[str, Any]) -> Any:
    words = {key: value for key, value in (ROPE | rope).items() if value is not None}
    return oracle({"rope_parameters": words, **settings})


def stored(model: Any) -> dict[str, Tensor]:
    tensors = native(model)
    if model.config.tie_word_embeddings:
        del tensors["output.weight"]
    return tensors


@torch.no_grad()
def bound(model: Any, ids: Tensor) -> tuple[Tensor, float]:
    """Return Hugging Face's logits and how far ours may be: as in test_archs.py."""
    rough = model(ids, use_cache=False).logits
    exact = deepcopy(model).double()(ids, use_cache=False).logits
    return rough, min(1e-3, 4 * gap(rough, exact) + 2e-5)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_match_hugging_face(name, tmp_path, report):
    params, rope, settings = CASES[name]
    model, ids = theirs(rope, settings), prompt()
    source = write(tmp_path / "checkpoint", changed(**params), stored(model))
    want, limit = bound(model, ids)
    assert want.std() > 0.1
    engine = export(source, tmp_path / "engine", parity=False, tokenizer=False, context=64)
    row = {"case": name, "eager": gap(load(source)(ids), want)}
    row["engine"] = gap(torch.from_numpy(engine.logits(ids)), want)
    report("Mistral's own format against Hugging Face, fp32", {**row, "bound": limit})
    assert max(row["eager"], row["engine"]) <= limit


@torch.no_grad()
def test_every_setting_of_positions_shows_in_the_logits():
    """Or the comparison above proves nothing of it."""
    found = [theirs(CASES[name][1], {})(prompt()).logits for name in list(CASES)[:5]]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert gap(one, other) > 1e-3


def packed(folder: Path, scheme: str | None, model: Any) -> tuple[Path, dict[str, Tensor]]:
    """Write a model in FP8; return where, and the plain numbers that its tensors stand for."""
    tensors = in_fp8(native(model), activations=scheme != "NO_SCALES")
    quantization = {"qformat_weight": "fp8_e4m3", "qscheme_act": scheme}
    numbers = {
        name: tensor.float() * tensors[name.replace(".weight", ".qscale_weight")]
        if tensor.dtype == torch.float8_e4m3fn
        else tensor
        for name, tensor in tensors.items()
        if name.endswith(".weight")
    }
    return write(folder, changed(quantization=quantization), tensors), numbers


@pytest.mark.parametrize("scheme", ["TENSOR", "NO_SCALES", None])
@torch.no_grad()
def test_fp8_per_tensor(scheme, tmp_path):
    model, ids = theirs({}, {}), prompt()
    source, numbers = packed(tmp_path / "fp8", scheme, model)
    want = load(write(tmp_path / "plain", PARAMS, numbers))(ids)
    assert gap(want, model(ids).logits) > 1e-2  # FP8 shows
    assert torch.equal(load(source)(ids), want)


@torch.no_grad()
def test_experts_by_compressed_tensors(tmp_path):
    sizes = {"moe_intermediate_size": 32}
    model, ids = theirs({}, sizes), prompt()
    settings, pack = compressed("NVFP4")
    stored, exact = native(model), native(model)
    for name in [n for n in stored if ".experts." in n and n.endswith(".weight")]:
        parts, exact[name] = pack(stored.pop(name))
        stored |= {name.replace("weight", leaf): value for leaf, value in parts.items()}
        stored[name.replace("weight", "input_global_scale")] = torch.ones(1)
    moe = {**PARAMS["moe"], "expert_hidden_dim": 32}
    settings |= {"ignore": ["re:.*attention.*", "re:.*shared_experts.*", "re:.*feed_forward.*"]}
    source = write(tmp_path / "nvfp4", changed(moe=moe, quantization=settings), stored)
    want = load(write(tmp_path / "plain", changed(moe=moe), exact))(ids)
    assert torch.equal(load(source)(ids), want)
    with pytest.raises(CheckpointError, match=r"scale' is of a quantized weight, but .*params"):
        open_checkpoint(write(tmp_path / "bare", changed(moe=moe), stored))


@torch.no_grad()
def test_an_engine_of_fp8(tmp_path):
    model, ids = theirs({}, {}), prompt()
    source, numbers = packed(tmp_path / "fp8", "TENSOR", model)
    for name, values in model.state_dict().items():  # the oracle, of the same numbers
        fill(name, values, numbers)
    want, limit = bound(model, ids)
    engine = export(
        source, tmp_path / "engine", dtype="float32", parity=False, tokenizer=False, context=64
    )
    assert gap(torch.from_numpy(engine.logits(ids)), want) <= limit


def test_shards_are_what_the_single_file_is(tmp_path):
    tensors = native(oracle({}))
    whole = write(tmp_path / "whole", PARAMS, tensors)
    parts = write(tmp_path / "parts", PARAMS, tensors, shards=3)
    one, other = open_checkpoint(whole), open_checkpoint(parts)
    assert one.config == other.config
    assert one.tensors.keys() == other.tensors.keys()
    for name in one.tensors:
        assert one.tensors[name].name == name
        assert torch.equal(one.read(name), other.read(name))
    save_file(tensors, parts / "consolidated.safetensors")
    assert open_checkpoint(parts).tensors.keys() == one.tensors.keys()
    (parts / "consolidated.safetensors").unlink()
    (parts / "consolidated.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"3 safetensors files .*consolidated\.safetensors"):
        open_checkpoint(parts)


def test_parity_against_it(tmp_path):
    source = write(tmp_path / "checkpoint", PARAMS, native(oracle({})))
    engine = tmp_path / "engine"
    export(source, engine, parity=True, tokenizer=False, context=64)
    assert parity(engine, source, tokens=24).passed


def test_a_config_of_hugging_face_beside_it_wins(tmp_path):
    model = oracle({})
    model.save_pretrained(tmp_path)
    write(tmp_path, {"no": "such key"}, {"no.tensor": torch.zeros(1)})
    source = open_checkpoint(tmp_path)
    assert source.config["architectures"] == ["Mistral4ForCausalLM"]
    assert "no.tensor" not in source.tensors


def test_another_tokenizer_is_named(tmp_path):
    source = write(tmp_path / "checkpoint", PARAMS, native(oracle({})))
    (source / "tekken.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tekken\.json: config is None"):
        export(source, tmp_path / "engine")


BAD_PARAMS: list[tuple[dict[str, Any], str]] = [
    ({"moe": None}, r"moe\.num_shared_experts is missing, .*Hugging Face's"),
    ({"moe": {"num_shared_experts": 0}}, r"moe\.num_shared_experts"),
    ({"moe": [1]}, r"moe\.num_shared_experts"),
    ({"kv_lora_rank": None}, "kv_lora_rank is missing, .*Hugging Face's"),
    ({"q_lora_rank": None}, "q_lora_rank is missing"),
    ({"sliding_window": 4096}, "sets sliding_window = 4096, which nothing reads"),
    ({"use_biases": False}, "sets use_biases = False"),
    ({"quantization_config": {"bits": 4}}, "sets quantization_config"),
    ({"moe": {"router_bias": True}}, r"sets moe\.router_bias = True"),
    ({"yarn": {"mscale": 1.0}}, r"sets yarn\.mscale = 1\.0"),
    ({"llama_4_scaling": {"offset": 1}}, r"sets llama_4_scaling\.offset = 1"),
    ({"quantization": {"qformat_weight": "fp8_e4m3", "x": 1}}, r"sets quantization\.x = 1"),
    ({"model_type": "mamba"}, "model_type is 'mamba'; implemented: 'transformer'"),
    ({"dim": "32"}, "dim is '32'; accepted: an integer"),
    ({"n_layers": None}, "n_layers is missing"),
    ({"n_layers": 4000}, "num_hidden_layers is 4000"),
    ({"rope_theta": 0.0}, "rope_theta is 0.0"),
    ({"norm_eps": 1e-5}, "norm_eps is 1e-05; accepted: 1e-06"),
    ({"head_dim": 128}, r"head_dim is 128, but .* is 20"),
    ({"n_kv_heads": 2}, "n_kv_heads is 2, but n_heads is 4"),
    ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
    ({"max_seq_len": 128}, "max_seq_len is 128, beyond max_position_embeddings, 64"),
    ({"tied_embeddings": 1}, "tied_embeddings is 1; accepted: true or false"),
    ({"moe": {"route_every_n": 2}}, r"moe\.route_every_n is 2; implemented: 1"),
    ({"moe": {"num_experts": None}}, r"moe\.num_experts is missing"),
    ({"moe": {"num_experts_per_tok": 9}}, "num_experts_per_tok is 9"),
    ({"moe": {"num_expert_groups": 3}}, "n_group is 3"),
    ({"yarn": {"factor": None}}, r"yarn\.factor is missing"),
    ({"yarn": {"apply_scale": 1}}, r"yarn\.apply_scale is 1; accepted: true or false"),
    ({"yarn": 4}, "yarn is 4; accepted: an object"),
    ({"llama_4_scaling": {"original_max_position_embeddings": 8}},
     rf"yarn\.original_max_position_embeddings is {LENGTH}, but that of llama_4_scaling is 8"),
    ({"vision_encoder": True}, "vision_encoder is True; accepted: an object"),
    ({"quantization": {"qformat_weight": "int8"}}, r"quantization\.qformat_weight is 'int8'"),
    ({"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "CHANNEL"}},
     r"quantization\.qscheme_act is 'CHANNEL'; implemented: 'TENSOR', 'NO_SCALES'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def sound() -> dict[str, Tensor]:
    return native(oracle({}))


def understood(folder: Path) -> None:
    source = open_checkpoint(folder)
    define(source.config, {name: tensor.shape for name, tensor in source.tensors.items()})


@pytest.mark.parametrize(
    ("change", "message"), BAD_PARAMS, ids=[f"{c}"[:60] for c, _ in BAD_PARAMS]
)
def test_params_that_do_not_fit_are_refused_by_name(change, message, tmp_path, sound):
    with pytest.raises(ValueError, match=message) as error:
        understood(write(tmp_path, changed(**change), sound))
    assert str(error.value).isprintable()  # so one line


# A tensor under this name (None: taken away), and what the message must say.
BAD_TENSORS: list[tuple[str, Tensor | None, type[ValueError], str]] = [
    (f"{WO}.qscale_weight", torch.ones(()), CheckpointError,
     rf"'{WO}\.qscale_weight' is of a quantized weight, but .*params\.json has no quantization"),
    ("layers.1.router_biases", torch.ones(8), CheckpointError, r"'layers\.1\.router_biases' is no"),
    ("layers.0.attention.wq.weight", torch.ones(4, 4), CheckpointError, r"attention\.wq\.weight"),
    ("layers.1.experts.0.w1.weight_packed", torch.ones(4), CheckpointError, "weight_packed' is of"),
    ("layers.1.experts.00.w1.weight", torch.ones(4, 4), CheckpointError, r"experts\.00\.w1"),
    ("model.layers.0.self_attn.o_proj.weight", torch.ones(4), CheckpointError, "o_proj.weight' is"),
    ("layers.1.experts.8.w1.weight", torch.ones(20, 32), WeightError, r"experts\.8\.gate_proj"),
    ("layers.3.attention.wo.weight", torch.ones(32, 40), WeightError, r"layers\.3\.self_attn\.o"),
    (f"{WO}.weight", None, WeightError, r"layers\.0\.self_attn\.o_proj\.weight is missing"),
    (f"{WO}.weight", torch.ones(40, 32), WeightError, r"layers\.0\.self_attn\.o_proj\.weight has"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tensor", "kind", "message"), BAD_TENSORS, ids=[row[0] for row in BAD_TENSORS]
)
def test_tensors_that_do_not_fit_are_refused_by_name(name, tensor, kind, message, tmp_path, sound):
    tensors = {**sound, name: tensor}
    with pytest.raises(kind, match=message) as error:
        understood(write(tmp_path, PARAMS, {n: t for n, t in tensors.items() if t is not None}))
    assert str(error.value).isprintable()


def test_files_that_do_not_fit_are_refused_by_name(tmp_path, sound):
    write(tmp_path, PARAMS, sound)
    (tmp_path / "params.json").write_text('{"dim": 1, "dim": 2}')
    with pytest.raises(CheckpointError, match=r"params\.json: .*'dim' occurs twice"):
        open_checkpoint(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    (tmp_path / "consolidated.safetensors").rename(tmp_path / PART)
    message = r"is one of 2 shards, and consolidated\.safetensors\.index\.json is missing"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)
