"""GGUF: a tiny model of every architecture is, file for file, its safetensors twin."""

import dataclasses
import json
import re
from math import isclose
from pathlib import Path
from typing import Any

import pytest
import torch
from files import gguf_twins as to
from files.gguf_twin_rows import TWINS
from files.gguf_twins import Twin
from gguf import GGMLQuantizationType, quants
from tiny import case, changed, defined, gap, make, prompt, read

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.gguf import open_gguf
from lmcast.exporter.checkpoint.gguf.architectures import CATALOGUE, NAMES
from lmcast.graphs import fill


def test_every_record_has_a_twin() -> None:
    twins = {(twin.arch, twin.case.partition("/")[0]) for twin in TWINS}
    assert twins == {(arch.name, arch.model_type) for arch in CATALOGUE}


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
    path = twin.write(tmp_path / "a.gguf", config, tensors)
    source = open_gguf(path)
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
    refused_without_tensors(path)


def refused_without_tensors(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8)  # behind the magic and the version
        file.write(bytes(8))
    with pytest.raises(CheckpointError, match=r"0 tensors|'token_embd\.weight' is missing"):
        open_gguf(path)


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
    (
        "mistral3",
        {"attention.temperature_scale": 0.1, "rope.scaling.yarn_log_multiplier": 0.5},
        "yarn_log_multiplier is 0.5; accepted: 1",
    ),
    ("olmo2", {"rope.scaling.attn_factor": 1.5}, "attn_factor is 1.5; accepted: 1, as by YaRN"),
    ("gpt-oss", {"attention.sliding_window": None}, "sliding_window is missing"),
    ("llama4", {"attention.sliding_window": 0}, "of a model without chunks"),
    ("glm4moe", {"expert_gating_func": 1}, "expert_gating_func is 1; accepted: 2"),
    ("minimax-m2", {"expert_gating_func": 3}, "expert_gating_func is 3; accepted: 2"),
    ("afmoe", {"expert_group_count": 2}, "expert_group_count is 2; accepted: 1"),
    ("afmoe", {"expert_weights_norm": None}, "expert_weights_norm is not true"),
    ("deepseek2", {"expert_gating_func": None}, "expert_gating_func is 1; accepted: 2"),
    ("deepseek2", {"expert_group_count": None}, "expert_group_count is missing"),
    ("deepseek2", {"attention.key_length": 21}, "key_length is 21; accepted: 24"),
    ("deepseek2", {"attention.head_count_kv": 2}, "head_count_kv is 2; accepted of this form: 1"),
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
    shown = json.loads(lmcast("inspect", path, "--json")[1])
    packed = sum(t.nbytes for n, t in source.tensors.items() if n.endswith(("_blocks", "_scales")))
    assert packed == 4 * 8 * (2 * 64 * 17 + 32 * 2 * 17)  # 4 layers, 8 experts, 17 bytes a block
    assert shown["weights"]["mxfp4"] == {"tensors": 16, "bytes": packed}
    options = ["--target", "onnx", "--weights", "link", "--no-parity", "--no-tokenizer"]
    status, _, error = lmcast("export", path, *options, "-o", tmp_path / "e")
    assert (status, "_blocks needs decoding" in error) == (2, True)
