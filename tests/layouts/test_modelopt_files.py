"""What released checkpoints of ModelOpt say in config.json and in hf_quant_config.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from files import quantized as files
from files.quantized import CONFIG, Leaves, quantized, small, write
from tiny import ours, prompt

from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.graphs import ConfigError, load

FILE = "hf_quant_config.json"
PRODUCER = {"name": "modelopt", "version": "0.44.0"}
ATTENTION = tuple(f"model.layers.{i}.self_attn.{x}_proj" for i in range(2) for x in "qkvo")
EXPERTS = tuple(f"model.layers.{i}.mlp.experts" for i in range(2))
GATES = [f"model.layers.{i}.mlp.gate" for i in range(2)]
W4: dict[str, Any] = {"quant_algo": "W4A16_NVFP4", "group_size": 16}
MIXED: dict[str, Any] = {
    **{module: {"quant_algo": "FP8"} for module in ATTENTION}, **dict.fromkeys(EXPERTS, W4),
}  # fmt: skip
GROUP = {"dynamic": False, "num_bits": 8, "type": "float"}
OF_ALL = {"group_0": {"input_activations": GROUP, "weights": GROUP}}

# Release -> formats of attention and experts, the section of config.json, hf_quant_config.json.
RELEASED: dict[str, tuple[str, str, Any, Any]] = {
    "Qwen3.6-35B-A3B-NVFP4": (
        "fp8", "nvfp4",
        {
            "config_groups": {"group_0": {**OF_ALL["group_0"], "targets": list(ATTENTION)}},
            "quantized_layers": MIXED, "ignore": ["mtp.layers.0*", "mtp*"],
            "quant_algo": "MIXED_PRECISION", "quant_method": "modelopt",
            "producer": {"name": "modelopt", "version": "0.37.0"},
        },
        {"producer": PRODUCER, "quantization": {
            "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8",
            "quantized_layers": MIXED, "exclude_modules": ["mtp*", "mtp.layers.0*"],
        }},
    ),
    "Qwen3-32B-FP8-Static-PerTensor": (
        "fp8", "fp8",
        {
            "config_groups": OF_ALL, "ignore": ["lm_head"], "quant_algo": "FP8",
            "kv_cache_scheme": "FP8", "producer": PRODUCER,
        },
        {"producer": PRODUCER, "quantization": {
            "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"],
        }},
    ),
    "the same, without its other file": (
        "fp8", "fp8",
        {"ignore": ["lm_head"], "quant_algo": "FP8", "kv_cache_scheme": "FP8",
         "producer": PRODUCER},
        None,
    ),
    "MiniMax-M3-NVFP4": (
        "fp8", "nvfp4",
        {
            "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head", "model.embed_tokens", *GATES],
            "quantized_layers": MIXED, "quant_method": "modelopt",
        },
        {"producer": PRODUCER, "quant_method": "modelopt", "quantization": {
            "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head", "model.embed_tokens", *GATES],
            "quantized_layers": MIXED, "quant_method": "modelopt",
        }},
    ),
    "Nemotron-3-Super-120B-A12B-FP8": (
        "fp8", "fp8", None,
        {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
    ),
    "Qwen3-235B-A22B-NVFP4": (
        "nvfp4", "nvfp4", None,
        {"producer": PRODUCER, "quantization": {
            "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16,
            "exclude_modules": [*GATES, "lm_head"],
        }},
    ),
    "Qwen3.5-397B-A17B-NVFP4": (
        "plain", "nvfp4",
        {
            "ignore": ["lm_head", *(f"model.layers.{i}.self_attn*" for i in range(2)), "mtp*"],
            "quant_algo": "NVFP4", "kv_cache_scheme": GROUP, "producer": PRODUCER,
            "quant_method": "modelopt",
        },
        None,
    ),
}  # fmt: skip
PACKERS = {"fp8": files.fp8_tensor, "nvfp4": files.nvfp4, "plain": None}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[dict[str, Any], Leaves]:
    return small("qwen3_moe/plain", tmp_path_factory.mktemp("plain"))


def packed(plain: Leaves, attention: str, experts: str) -> tuple[Leaves, Leaves]:
    stored = exact = plain
    for format, part in ((attention, "self_attn"), (experts, "experts")):
        pack = PACKERS[format]
        if pack is not None:
            stored, known = quantized(stored, pack, lambda name, part=part: part in name)
            exact = exact | {name: known[name] for name in known if part in name and name in exact}
    return stored, exact


def made(directory: Path, config: dict[str, Any], stored: Leaves, section: Any, file: Any) -> Path:
    own = config if section is None else config | {CONFIG: section}
    write(directory, own, stored)
    if file is not None:
        (directory / FILE).write_text(json.dumps(file))
    return directory


@pytest.mark.parametrize("name", RELEASED)
@torch.no_grad()
def test_a_release_is_read(name, plain, tmp_path):
    config, tensors = plain
    attention, experts, section, file = RELEASED[name]
    stored, exact = packed(tensors, attention, experts)
    directory = made(tmp_path / "made", config, stored, section, file)
    assert torch.equal(load(directory)(prompt()), ours(config, exact)(prompt()))


def without_method(section: dict[str, Any], file: dict[str, Any]) -> None:
    del section["quant_method"], section["producer"]


# What is changed of Qwen3.6's, without hf_quant_config.json or with it, and what is said.
REFUSED: dict[str, tuple[Callable[[Any, Any], Any], bool, type[Exception], str]] = {
    "method missing": (
        without_method, False, ConfigError, "quant_method is missing; accepted: fp8, ",
    ),
    "another producer": (
        lambda s, _: (s.pop("quant_method"), s.update(producer={"name": "x"})), False, ConfigError,
        "quant_method is missing",
    ),
    "method in the file": (
        lambda _, f: f.update(quant_method="fp8"), True, CheckpointError,
        f"{FILE}: quant_method is 'fp8'; accepted: 'modelopt'",
    ),
    "two lists": (
        lambda s, _: s.update(exclude_modules=["lm_head"]), False, ConfigError,
        "ignore and exclude_modules differ; make them equal",
    ),
    "an entry above too few": (
        lambda s, _: s["quantized_layers"].pop(EXPERTS[1]), False, ConfigError,
        rf"quantized_layers does not list {EXPERTS[1]}\.\d\.\w+, nor a module above it",
    ),
    "an entry above nothing": (
        lambda s, _: s["quantized_layers"].update({"model.layers.0.mlp.shared": W4}), False,
        ConfigError, "quantized_layers lists model.layers.0.mlp.shared, but nothing at or below",
    ),
    "no list at all": (
        lambda s, _: s.update(quantized_layers=[]), False, ConfigError,
        "quantized_layers does not list model.layers.0.self_attn.k_proj",
    ),
    "names and numbers": (
        lambda s, f: f["quantization"].update(exclude_modules=["mtp*", 1]), True, CheckpointError,
        r"ignore is \[1, 'mtp\*'\], but quantization_config of .* has \['mtp\*', 'mtp.layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_is_refused(name, plain, tmp_path):
    change, with_file, error, message = REFUSED[name]
    config, tensors = plain
    attention, experts, *both = RELEASED["Qwen3.6-35B-A3B-NVFP4"]
    section, file = json.loads(json.dumps(both))
    change(section, file)
    stored, _ = packed(tensors, attention, experts)
    directory = made(tmp_path / "made", config, stored, section, file if with_file else None)
    with pytest.raises(error, match=message):
        load(directory)


def test_a_plain_matrix_below_an_entry_is_refused(plain, tmp_path):
    config, tensors = plain
    attention, experts, section, _ = RELEASED["Qwen3.6-35B-A3B-NVFP4"]
    stored, _ = packed(tensors, attention, experts)
    module = f"{EXPERTS[0]}.1.up_proj"
    own = {n: t for n, t in stored.items() if not n.startswith(f"{module}.")}
    own[f"{module}.weight"] = tensors[f"{module}.weight"]
    directory = made(tmp_path / "made", config, own, section, None)
    with pytest.raises(ConfigError, match=f"lists {EXPERTS[0]}, but the weight of {module} is pla"):
        load(directory)


def test_a_section_that_is_no_object(plain, tmp_path):
    config, tensors = plain
    *_, file = RELEASED["Qwen3-235B-A22B-NVFP4"]
    directory = made(tmp_path / "made", config, tensors, ["modelopt"], file)
    with pytest.raises(CheckpointError, match=r"quantization_config is \['modelopt'\]; accepted"):
        open_checkpoint(directory)
