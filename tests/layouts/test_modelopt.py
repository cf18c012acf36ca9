"""Checkpoints that ModelOpt exported are what their numbers mean, bit for bit."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from files.fp8 import CONFIG
from files.quantized import E2M1, fp8, nibbles, powers, wide, write
from tiny import ours, prompt, read
from torch import Tensor

from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.exporter.engine.inspect import inspect
from lmcast.graphs import ConfigError, load

FILE = "hf_quant_config.json"
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64,
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
# Config of ModelOpt -> what inspect calls it, scales of activations that are left out.
KINDS = {
    "FP8_DEFAULT_CFG": ("fp8", 14),
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": ("fp8", 0),
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG": ("fp8", 0),
    "NVFP4_DEFAULT_CFG": ("nvfp4", 14),
    "MXFP4_DEFAULT_CFG": ("mxfp4", 0),
    "MXFP8_DEFAULT_CFG": ("mxfp8", 0),
    "INT4_AWQ_CFG": ("int4", 0),
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    """Return what ModelOpt writes of one model in every format that it has on a CPU."""
    import modelopt.torch.quantization as quantization
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import LlamaConfig, LlamaForCausalLM

    made = {}
    for name in KINDS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(LlamaConfig(**deepcopy(SIZES))).eval()
        settings = deepcopy(getattr(quantization, name))
        quantization.quantize(model, settings, lambda m: m(torch.arange(64)[None]))
        made[name] = tmp_path_factory.mktemp("modelopt") / name
        export_hf_checkpoint(model, export_dir=made[name])
    return made


def meaning(leaves: dict[str, Tensor]) -> Tensor:
    """Return what a module's weight is, by what tensors it has."""
    weight, scales = leaves["weight"], leaves["weight_scale"]
    if "weight_scale_2" in leaves:
        codes = E2M1[nibbles(weight)]
        return codes * wide(fp8(scales) * leaves["weight_scale_2"], codes.shape[1])
    if scales.dtype == torch.uint8:
        codes = fp8(weight) if weight.dtype == torch.float8_e4m3fn else E2M1[nibbles(weight)]
        return codes * wide(powers(scales), codes.shape[1])
    if weight.dtype == torch.uint8:  # row 2i in the low halves of bytes, two's complement
        both = torch.stack([weight % 16, weight // 16], 1).flatten(0, 1).float()
        return torch.where(both < 8, both, both - 16) * wide(scales, weight.shape[1])
    if scales.dim() == 4:
        rows, _, columns, _ = scales.shape
        block = scales.reshape(rows, columns).repeat_interleave(128, 0)
        return fp8(weight) * wide(block, weight.shape[1])
    return fp8(weight) * (scales[:, None] if scales.dim() else scales)  # a row, or all of it


def worked_out(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return plain tensors that a checkpoint's mean."""
    scaled = [n.removesuffix(".weight_scale") for n in tensors if n.endswith(".weight_scale")]
    plain = {n: t for n, t in tensors.items() if n.rpartition(".")[0] not in scaled}
    for module in scaled:
        leaves = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{module}.")}
        plain[f"{module}.weight"] = meaning(leaves)
        if "pre_quant_scale" in leaves:
            plain[f"{module}.weight"] *= leaves["pre_quant_scale"].float()
    return plain


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_model_is_that_of_its_numbers(name, exports):
    config, tensors = read(exports[name])
    exact = worked_out(tensors)
    plain = {key: value for key, value in config.items() if key != CONFIG}
    mine, wanted = load(exports[name]), ours(plain, exact)
    for (parameter, got), value in zip(mine.named_parameters(), wanted.parameters(), strict=True):
        assert torch.equal(got, value), parameter
    assert torch.equal(mine(prompt()), wanted(prompt()))
    kind, scales = KINDS[name]
    found = inspect(exports[name])
    assert found.weights[kind]["tensors"] >= 28  # codes and scales of 14 matrices
    assert found.left_out == (f"{scales} tensors: {scales} of input_scale" if scales else "")


def copied(source: Path, directory: Path, **changes: Any) -> Path:
    """Return a copy whose files have other JSON: name of the file -> its contents, None: none."""
    made = shutil.copytree(source, directory)
    for name, contents in changes.items():
        file = made / f"{name}.json"
        file.unlink(missing_ok=True)
        if contents is not None:
            file.write_text(json.dumps(contents))
    return made


def parts(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        json.loads((source / "config.json").read_text()),
        json.loads((source / FILE).read_text()),
    )


@torch.no_grad()
def test_either_file_is_enough(exports, tmp_path):
    source = exports["NVFP4_DEFAULT_CFG"]
    config, _ = parts(source)
    wanted = load(source)(prompt())
    bare = {key: value for key, value in config.items() if key != CONFIG}
    own = copied(source, tmp_path / "own", config=bare)
    assert torch.equal(load(own)(prompt()), wanted)
    inner = copied(source, tmp_path / "inner", hf_quant_config=None)
    assert torch.equal(load(inner)(prompt()), wanted)


def test_files_that_differ_are_refused(exports, tmp_path):
    source = exports["NVFP4_DEFAULT_CFG"]
    config, file = parts(source)
    inner = file["quantization"]
    for i, (change, message) in enumerate((
        ({"quant_algo": "FP8"}, r"quant_algo is 'FP8', but .*config.json has 'NVFP4'"),
        ({"exclude_modules": []}, r"ignore is \[\], but .* has \['lm_head', 'model.embed_to"),
    )):  # fmt: skip
        changed = {**file, "quantization": {**inner, **change}}
        made = copied(source, tmp_path / str(i), hf_quant_config=changed)
        with pytest.raises(CheckpointError, match=rf"{FILE}: {message}"):
            open_checkpoint(made)
    other = {**config, CONFIG: {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    made = copied(source, tmp_path / "fp8", config=other)
    with pytest.raises(CheckpointError, match=f"{FILE}: quant_method is 'modelopt', but"):
        open_checkpoint(made)
    made = copied(source, tmp_path / "none", hf_quant_config={"producer": {}})
    with pytest.raises(CheckpointError, match=f"{FILE}: quantization is None; accepted: an object"):
        open_checkpoint(made)


@torch.no_grad()
def test_every_module_may_have_its_own(exports, tmp_path):
    config, one = read(exports["FP8_DEFAULT_CFG"])
    two = read(exports["NVFP4_DEFAULT_CFG"])[1]
    mixed = {n: t for n, t in two.items() if ".self_attn." not in n}
    mixed |= {n: t for n, t in one.items() if ".self_attn." in n}
    modules = [n.removesuffix(".weight_scale") for n in mixed if n.endswith(".weight_scale")]
    layers: dict[str, Any] = {
        x: {"quant_algo": "FP8"}
        if ".self_attn." in x
        else {"quant_algo": "NVFP4", "group_size": 16}
        for x in modules
    }
    settings = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "ignore": ["lm_head"]}
    own = config | {CONFIG: {**settings, "quantized_layers": layers}}
    made = write(tmp_path / "mixed", own, mixed)
    plain = {key: value for key, value in config.items() if key != CONFIG}
    assert torch.equal(load(made)(prompt()), ours(plain, worked_out(mixed))(prompt()))
    for change, message in (
        (
            {x: v for x, v in layers.items() if x != modules[3]},
            f"quantized_layers does not list {modules[3]}, nor a",
        ),
        (
            layers | {"model.layers.7.mlp.up_proj": {"quant_algo": "FP8"}},
            "lists .*layers.7.*, but noth",
        ),
        (layers | {modules[0]: {"quant_algo": "W2"}}, "quant_algo is 'W2'; accepted: FP8"),
        (layers | {modules[0]: {"quant_algo": "NVFP4", "group_size": 32}}, "group_size is 32"),
    ):
        (made / "config.json").write_text(
            json.dumps(own | {CONFIG: {**settings, "quantized_layers": change}})
        )
        with pytest.raises(ConfigError, match=message):
            load(made)
