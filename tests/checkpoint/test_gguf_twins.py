"""GGUF: a tiny model of every architecture is, file for file, its safetensors twin."""

import dataclasses
import re
from math import isclose
from pathlib import Path
from typing import Any

import pytest
import torch
from files import gguf_twins as to
from files.gguf_twins import Twin
from gguf import GGMLQuantizationType, quants
from tiny import case, changed, defined, gap, make, prompt, read

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.gguf import open_gguf
from lmcast.exporter.checkpoint.gguf.architectures import CATALOGUE, NAMES
from lmcast.graphs import fill

NORMS = ("norm.weight", "mixer.weight", "ffn.weight")  # 1 + weight in float32, and back
FOUND = ("head_dim",)  # the widths that tensors and other keys give, said outright
KINDS = ("layer_types",)  # said of each layer, or by a rule
DSA = ("num_key_value_heads", "num_nextn_predict_layers", "qk_head_dim")
TWINS = (
    Twin(case="llama/biases, tied", arch="llama", keys=to.rotated, rules=to.PAIRED),
    Twin(case="llama/yarn", arch="llama", keys=to.rotated, rules=to.PAIRED),
    Twin(
        case="mistral/no window, tied",
        arch="mistral3",
        keys=to.rotated,
        rules=to.PAIRED,
        differs=FOUND,
    ),
    Twin(
        case="ministral3/Ministral-3-8B (text)",
        arch="mistral3",
        keys=to.ministral,
        rules=to.PAIRED,
    ),
    Twin(
        case="smollm3/SmolLM3-3B",
        arch="smollm3",
        keys=to.rotated,
        rules=to.PAIRED,
        differs=(*FOUND, *KINDS),
    ),
    Twin(case="granite/plain", arch="granite", keys=to.granite, rules=to.PAIRED, differs=FOUND),
    Twin(case="qwen2/plain", arch="qwen2", differs=(*FOUND, *KINDS, "sliding_window")),
    Twin(case="qwen3/plain", arch="qwen3", differs=(*KINDS, "sliding_window")),
    Twin(
        case="qwen3_moe/Qwen3-30B-A3B",
        arch="qwen3moe",
        keys=to.qwen3moe,
        rules=to.STACKS,
        differs=("sliding_window",),
    ),
    Twin(
        case="gemma2/plain",
        arch="gemma2",
        changes={"query_pre_attn_scalar": 16},
        keys=to.gemma2,
        rules=to.PLUS_ONE,
        rounded=NORMS,
    ),
    Twin(
        case="gemma3_text/derived types",
        arch="gemma3",
        changes={"query_pre_attn_scalar": 16},
        keys=to.gemma3,
        rules=to.PLUS_ONE,
        rounded=NORMS,
    ),
    Twin(case="gemma3n_text/nothing shared", arch="gemma3n", keys=to.gemma3n, rules=to.GEMMA3N),
    Twin(case="phi3/longrope in part", arch="phi3", keys=to.phi3, extra=to.factors, differs=FOUND),
    Twin(case="phi3/Phi-3-mini-4k", arch="phi3", keys=to.phi3, differs=FOUND),
    Twin(case="olmo2/plain", arch="olmo2", differs=FOUND),
    Twin(
        case="olmo3/Olmo-3-7B",
        arch="olmo2",
        keys=to.windows,
        differs=(*FOUND, "rope_parameters"),  # the usual attention_factor, without saying so
    ),
    Twin(
        case="gpt_oss/gpt-oss-20b", arch="gpt-oss", keys=to.gpt_oss, rules=to.GPT_OSS, differs=KINDS
    ),
    Twin(
        case="llama4_text/plain",
        arch="llama4",
        changes={"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1},
        keys=to.llama4,
        rules=to.LLAMA4,
        differs=(*KINDS, "moe_layers", "no_rope_layers"),
    ),
    Twin(
        case="glm4_moe/GLM-4.5-Air",
        arch="glm4moe",
        keys=lambda c: {**to.experts(c), **to.partly(0.5)(c)},
        rules=to.LATENT,
        differs=("num_nextn_predict_layers",),
    ),
    Twin(
        case="minimax_m2/MiniMax-M2",
        arch="minimax-m2",
        keys=to.minimax,
        rules=to.LATENT,
        differs=("attn_type_list",),
    ),
    Twin(
        case="afmoe/Trinity-Mini",
        arch="afmoe",
        keys=to.afmoe,
        rules={**to.STACKS, r"(.*\.expert_bias)": lambda _, values: {r"\1.bias": values}},
        differs=KINDS,
    ),
    Twin(
        case="deepseek_v3/DeepSeek-V3",
        arch="deepseek2",
        keys=lambda c: {**to.latent(c), **to.experts(c), "vocab_size": c["vocab_size"]},
        rules=to.LATENT,
        differs=("num_key_value_heads", "num_nextn_predict_layers"),
    ),
    Twin(  # as before heads shared the latents of keys and values
        case="deepseek_v3/DeepSeek-V3",
        arch="deepseek2",
        keys=lambda c: {**to.latent(c), **to.experts(c), **to.unabsorbed(c)},
        rules={n: rule for n, rule in to.LATENT.items() if "kv_b" not in n},
        differs=("num_key_value_heads", "num_nextn_predict_layers"),
    ),
    Twin(
        case="deepseek_v32/DeepSeek-V3.2",
        arch="deepseek32",
        named_as="glm-dsa",
        keys=to.dsa,
        rules=to.LATENT,
        differs=("num_key_value_heads", "num_nextn_predict_layers"),
    ),
    Twin(
        case="glm_moe_dsa/GLM-5",
        arch="glm-dsa",
        keys=to.dsa,
        rules=to.LATENT,
        differs=(*DSA, "indexer_types"),
    ),
    Twin(
        case="glm_moe_dsa/GLM-5.2",
        arch="glm-dsa",
        changes={"indexer_types": [*("full",) * 2, *("shared",) * 3, "full", "shared"]},
        keys=to.dsa,
        rules=to.LATENT,
        differs=(*DSA, "index_topk_freq", "index_skip_topk_offset"),
    ),
    Twin(
        case="kimi_linear/Kimi-Linear-48B-A3B",
        arch="kimi-linear",
        keys=to.kimi,
        rules=to.KIMI,
        rounded=("A_log",),
        differs=("num_key_value_heads",),
    ),
    Twin(
        case="qwen3_next/Qwen3-Next-80B-A3B",
        arch="qwen3next",
        keys=to.delta,
        rules={**to.DELTA, r"(.*)\.in_proj_qkvz\.weight": to.by_kind},
        rounded=(*NORMS, "A_log"),
        differs=(*KINDS, "full_attention_interval"),
    ),
    Twin(  # as before the inputs of a DeltaNet were divided
        case="qwen3_next/Qwen3-Next-80B-A3B",
        arch="qwen3next",
        keys=lambda c: {**to.delta(c), "attention.recurrent_layers": None},
        rules=to.DELTA,
        rounded=(*NORMS, "A_log"),
        differs=(*KINDS, "full_attention_interval"),
    ),
    Twin(
        case="qwen3_5_text/Qwen3.5-27B (text)",
        arch="qwen35",
        keys=to.qwen35,
        rules={**to.TILED, **to.DELTA},
        rounded=(*NORMS, "A_log"),
    ),
    Twin(
        case="qwen3_5_moe_text/Qwen3.5-35B-A3B (text)",
        arch="qwen35moe",
        keys=to.qwen35,
        rules={**to.TILED, **to.DELTA},
        rounded=(*NORMS, "A_log"),
        differs=("full_attention_interval",),
    ),
    Twin(
        case="granitemoehybrid/granite-4.0-h-tiny",
        arch="granitehybrid",
        keys=to.granitehybrid,
        rules=to.GRANITE,
        rounded=("A_log",),
    ),
    Twin(
        case="granitemoehybrid/granite-4.0-h-1b",
        arch="granitehybrid",
        keys=to.granitehybrid,
        rules=to.GRANITE,
        rounded=("A_log",),
    ),
    Twin(
        case="bamba/Bamba-9B",
        arch="granitehybrid",
        keys=to.bamba,
        rules={**to.MAMBA, r".*\.mamba\.norm\.weight": to.same(to.grouped("mamba_n_groups"))},
        rounded=("A_log",),
    ),
    Twin(
        case="nemotron_h/Nemotron-Nano-9B-v2",
        arch="nemotron_h",
        keys=to.nemotron,
        rules=to.NEMOTRON,
        rounded=("A_log",),
        differs=("rms_norm_eps", "time_step_limit"),
    ),
    Twin(
        case="nemotron_h/Nemotron-3-Super",
        arch="nemotron_h_moe",
        keys=to.nemotron_moe,
        rules=to.NEMOTRON,
        rounded=("A_log",),
        differs=("intermediate_size", "norm_eps", "time_step_limit"),
    ),
)


def test_every_record_has_a_twin() -> None:
    assert {twin.arch for twin in TWINS} == {arch.name for arch in CATALOGUE}


def test_the_document_names_every_architecture() -> None:
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    first = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert {name for cell in first for name in re.findall(r"`([^`]+)`", cell)} >= set(NAMES)
    assert f"{len(NAMES)} architectures" in (Path(__file__).parents[2] / "README.md").read_text()


def alike(one: Any, other: Any) -> bool:
    """Whether two configs say the same; the file holds float32."""
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        names = [field.name for field in dataclasses.fields(one)]
        return all(alike(getattr(one, n), getattr(other, n)) for n in names)
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(map(alike, one, other))
    both = isinstance(one, float | int) and isinstance(other, float | int)
    return isclose(one, other, rel_tol=1e-7) if both else bool(one == other)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: f"{twin.arch} {twin.case}")
@torch.no_grad()
def test_a_file_is_its_twin(tmp_path: Path, twin: Twin, checkpoint) -> None:
    config, tensors = read(checkpoint(twin.case))
    config = changed(config, twin.changes)
    wanted = defined(config, tensors)
    source = open_gguf(twin.write(tmp_path / "a.gguf", config, tensors))
    found = defined(source.config, source.tensors)
    assert found.arch.name == wanted.arch.name
    for field in dataclasses.fields(wanted.config):
        if field.name not in twin.differs:
            pair = (getattr(found.config, field.name), getattr(wanted.config, field.name))
            assert alike(*pair), (field.name, *pair)
    assert found.left_out == ""
    for name, stored in source.tensors.items():
        if stored.assembly is not None:  # put together in many pieces, as in one
            assert torch.equal(torch.cat(list(source.blocks(name, 1))), source.read(name))
    fill(wanted, wanted.model, tensors.__getitem__, torch.float32)
    fill(found, found.model, source.read, torch.float32)
    ours = dict(found.model.named_parameters())
    theirs = dict(wanted.model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        rounded = bool(twin.rounded) and name.endswith(twin.rounded)
        # Half a unit in the last place of numbers up to 4, there and back.
        assert gap(ours[name], value) <= (2**-21 if rounded else 0), name
    one, other = found.model(prompt()), wanted.model(prompt())
    # What `rounded` parameters and float32 keys make of logits of about 10.
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


REFUSED = (
    ("llama", {"attention.causal": False}, "attention.causal is false; accepted: true"),
    ("llama", {"expert_count": 8}, "expert_count = 8, which nothing reads"),
    ("llama", {"nextn_predict_layers": 9}, "of which 9 predict further tokens"),
    ("granite", {"rope.scaling.finetuned": False}, "finetuned is false; accepted: true"),
    ("granite", {"deepstack_mapping": [1, 2]}, "deepstack_mapping .* which nothing reads"),
    ("qwen3moe", {"expert_weights_norm": False}, "expert_weights_norm is false"),
    ("qwen3moe", {"expert_feed_forward_length": [24, 25, 24]}, "accepted: one positive integer"),
    ("phi3", {"attention.sliding_window": None}, "sliding_window is missing"),
    ("phi3", {"rope.dimension_count": 10}, "accepted: an even number up to the head's 8"),
    ("phi3", {"rope.scaling.original_context_length": 1}, "accepted: a context of some length"),
    ("olmo2", {"attention.sliding_window": 8}, "sliding_window_pattern is missing"),
    ("gpt-oss", {"attention.sliding_window": None}, "sliding_window is missing"),
    ("llama4", {"attention.sliding_window": 0}, "of a model without chunks"),
    ("glm4moe", {"expert_gating_func": 1}, "expert_gating_func is 1; accepted: 2"),
    ("minimax-m2", {"expert_gating_func": 3}, "expert_gating_func is 3; accepted: 2"),
    ("afmoe", {"expert_group_count": 2}, "expert_group_count is 2; accepted: 1"),
    ("afmoe", {"expert_weights_norm": None}, "expert_weights_norm is not true"),
    ("deepseek2", {"expert_gating_func": None}, "expert_gating_func is 1; accepted: 2"),
    ("deepseek2", {"expert_group_count": None}, "expert_group_count is missing"),
    ("deepseek2", {"attention.key_length": 21}, "key_length is 21; accepted: 24"),
    ("deepseek2", {"attention.temperature_scale": 0.1}, "which nothing reads"),
    ("glm-dsa", {"context_length": 1 << 20}, "indexer.types is missing"),
    ("deepseek32", {"attention.indexer.top_k": None}, "indexer.top_k is missing"),
    ("kimi-linear", {"expert_group_used_count": 2}, "is not 1; accepted: 1"),
    ("qwen3next", {"ssm.group_count": 4}, "accepted: a multiple of the 6 heads"),
    ("qwen35", {"rope.dimension_sections": None}, "dimension_sections is missing"),
    ("qwen35", {"ssm.state_size": 7}, "rows; accepted"),
    ("granitehybrid", {"rope.dimension_count": 4}, "accepted: the head's 8"),
    ("granitehybrid", {"attention.head_count_kv": [0, 2, 1, 0]}, "accepted: one positive"),
    ("nemotron_h", {"attention.layer_norm_rms_epsilon": 0.5}, "layer_norm_epsilon is 1e-05"),
    ("gemma3n", {"attention.sliding_window_pattern": [True]}, "has 1 entries for"),
)


@pytest.mark.parametrize(("arch", "keys", "message"), REFUSED)
def test_keys_that_would_change_the_result_are_refused(
    tmp_path: Path, arch: str, keys: dict[str, Any], message: str, checkpoint
) -> None:
    twin = next(twin for twin in TWINS if twin.arch == arch)
    other = dataclasses.replace(twin, keys=lambda c: {**twin.keys(c), **keys})
    config, tensors = read(checkpoint(twin.case))
    with pytest.raises(CheckpointError, match=message) as error:
        open_gguf(other.write(tmp_path / "a.gguf", config, tensors))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arch", "name", "message"),
    [
        ("qwen35", r".*out_proj\.weight", "does not fit the sizes"),
        ("qwen3moe", r".*experts\.gate_proj\.weight", "accepted: a stack of matrices"),
        ("deepseek2", r".*\.v_b_proj\.weight", "accepted: three axes"),
        ("llama4", r".*experts\.up_proj\.weight", "runs of equal length"),
    ],
)
def test_tensors_of_other_shapes_are_refused(
    tmp_path: Path, arch: str, name: str, message: str, checkpoint
) -> None:
    twin = next(twin for twin in TWINS if twin.arch == arch)
    flat = {name: to.same(lambda _, values: values.flatten()[:7])}
    other = dataclasses.replace(twin, rules={**twin.rules, **flat})
    config, tensors = read(checkpoint(twin.case))
    with pytest.raises(CheckpointError, match=message):
        open_gguf(other.write(tmp_path / "a.gguf", config, tensors))


def test_parts_of_one_tensor_are_there_together(tmp_path: Path, checkpoint) -> None:
    (twin, *_) = (twin for twin in TWINS if twin.arch == "deepseek2")
    halves = {
        **twin.rules,
        r"(.*)\.kv_b_proj\.weight": lambda c, v: dict([*to.absorbed(c, v).items()][:1]),
    }
    path = dataclasses.replace(twin, rules=halves).write(
        tmp_path / "a.gguf", *read(checkpoint(twin.case))
    )
    with pytest.raises(CheckpointError, match=r"attn_k_b\.weight' is there without attn_v_b"):
        open_gguf(path)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path, checkpoint) -> None:
    (twin,) = (twin for twin in TWINS if twin.arch == "glm4moe")
    config, tensors = read(checkpoint(twin.case))
    layers = config["num_hidden_layers"]
    more = {
        n.replace(".layers.1.", f".layers.{layers}."): t
        for n, t in tensors.items()
        if ".layers.1." in n
    }
    deeper = {**config, "num_hidden_layers": layers + 1}
    ahead = dataclasses.replace(twin, keys=lambda c: {**twin.keys(c), "nextn_predict_layers": 1})
    source = open_gguf(ahead.write(tmp_path / "a.gguf", deeper, tensors | more))
    found = defined(source.config, source.tensors)
    assert found.config.num_hidden_layers == layers
    assert "of mtp.blk" in found.left_out
    name = f"model.layers.{layers - 1}.mlp.experts.3.up_proj.weight"
    assert torch.equal(source.read(name), tensors[name])


@torch.no_grad()
def test_mxfp4_of_gpt_oss_stays_in_four_bits(tmp_path: Path, lmcast) -> None:
    """Numbers that MXFP4 holds exactly, packed by the gguf package: gpt-oss' bytes, and its own."""
    (twin,) = (twin for twin in TWINS if twin.arch == "gpt-oss")
    narrow = case(twin.case)
    wide = dataclasses.replace(narrow, settings={**narrow.settings, "intermediate_size": 64})
    config, tensors = read(make(wide, tmp_path))
    kind = GGMLQuantizationType.MXFP4
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        rows = tensors[name].mT.contiguous().numpy()
        exact = quants.dequantize(quants.quantize(rows, kind), kind)
        tensors[name] = torch.from_numpy(exact).mT.contiguous()
    path = twin.write(tmp_path / "a.gguf", config, tensors, {"_exps.weight": kind})
    source = open_gguf(path)
    assert source.config["quantization_config"] == {"quant_method": "mxfp4"}
    codes = source.tensors["model.layers.0.mlp.experts.gate_up_proj_blocks"]
    assert (codes.dtype, codes.shape, codes.format) == (torch.uint8, (8, 128, 1, 16), "uint8")
    wanted, found = defined(config, tensors), defined(source.config, source.tensors)
    fill(wanted, wanted.model, tensors.__getitem__, torch.float32)
    fill(found, found.model, source.read, torch.float32)
    theirs = dict(wanted.model.named_parameters())
    for name, value in found.model.named_parameters():
        assert torch.equal(value, theirs[name]), name
    options = ["--target", "onnx", "--weights", "link", "--no-parity", "--no-tokenizer"]
    status, _, error = lmcast("export", path, *options, "-o", tmp_path / "e")
    assert (status, "_blocks needs decoding" in error) == (2, True)
