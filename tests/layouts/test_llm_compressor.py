"""Checkpoints that llm-compressor wrote are what their numbers mean, bit for bit."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from files.quantized import CONFIG, Leaves, meaning, small
from tiny import ours, prompt, read

from lmcast.exporter.engine.inspect import inspect
from lmcast.graphs import ConfigError, load

PEER = Path(sys.prefix) / "llm-compressor/bin/python"
# Scheme, or what llm_compressor.py calls so -> what inspect counts, what is left out.
KINDS: dict[str, dict[str, tuple[dict[str, int], str]]] = {"qwen3/plain": {
    "W4A16": ({"int4": 3 * 14}, ""),
    "W4A16_ASYM": ({"int4": 4 * 14}, ""),
    "W8A16": ({"int8": 3 * 14}, ""),
    "W8A8": ({"int8": 2 * 14}, ""),
    "W4A8": ({"int8": 2 * 14}, ""),
    "W4AFP8": ({"int8": 2 * 14}, ""),
    "FP8": ({"fp8": 2 * 14}, "14 tensors: 14 of input_scale"),
    "FP8_DYNAMIC": ({"fp8": 2 * 14}, ""),
    "FP8_BLOCK": ({"fp8": 2 * 14}, ""),
    "NVFP4": ({"nvfp4": 3 * 14}, "14 tensors: 14 of input_global_scale"),
    "NVFP4A16": ({"nvfp4": 3 * 14}, ""),
    "MXFP4": ({"mxfp4": 2 * 14}, ""),
    "MXFP8": ({"mxfp8": 2 * 14}, ""),
    "gptq": ({"int4": 3 * 14}, ""),
    "smoothquant": ({"int8": 2 * 14}, ""),
    "spinquant": ({"int4": 3 * 14}, ""),
    "cache": ({"fp8": 2 * 14}, "18 tensors: 14 of input_scale, 2 of k_scale, 2 of v_scale"),
    "two": ({"fp8": 2 * 8, "nvfp4": 3 * 6}, "6 tensors: 6 of input_global_scale"),
    "all": ({"int8": 3 * 16}, ""),
}, "qwen3_moe/plain": {
    "FP8_DYNAMIC": ({"fp8": 2 * 56}, ""),
    "NVFP4": ({"nvfp4": 3 * 56}, "56 tensors: 56 of input_global_scale"),
}}  # fmt: skip
REFUSED = {
    "qwen3/plain": {"spinquant-online": r"R4.apply.*location is 'input'; implemented: 'weigh"}
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Return what llm-compressor writes: the model and what was done with it -> its directory."""
    if not PEER.exists():
        pytest.skip("needs llm-compressor: make .venv/.llm-compressor")
    made = {}
    for case, names in KINDS.items():
        folder = tmp_path_factory.mktemp("llm_compressor")
        small(case, folder / "plain")
        made |= {(case, name): folder / name for name in (*names, *REFUSED.get(case, ()))}
    script = Path(__file__).with_name("llm_compressor.py")
    done = subprocess.run([PEER, script, *made.values()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return made


def group_of(module: str, settings: dict[str, Any]) -> dict[str, Any]:
    for group in settings["config_groups"].values():
        for target in group["targets"]:
            if not target.startswith("re:") or re.match(target.removeprefix("re:"), module):
                return group
    raise AssertionError(module)


def worked_out(config: dict[str, Any], tensors: Leaves) -> Leaves:
    """Return plain tensors that a checkpoint's mean."""
    plain = {n: t for n, t in tensors.items() if not n.endswith("_scale")}
    for module in [n.removesuffix(".weight_scale") for n in tensors if n.endswith(".weight_scale")]:
        names = [n for n in tensors if n.startswith(f"{module}.")]
        leaves = {n.rpartition(".")[2]: tensors[n] for n in names}
        group = group_of(module, config[CONFIG])
        exact = meaning(group["format"], leaves, SimpleNamespace(**group["weights"]))
        plain = {n: t for n, t in plain.items() if n not in names} | {f"{module}.weight": exact}
    return plain


@pytest.mark.parametrize(("case", "name"), [(c, n) for c, names in KINDS.items() for n in names])
@torch.no_grad()
def test_a_model_is_that_of_its_numbers(case, name, exports):
    made = exports[case, name]
    config, tensors = read(made)
    bare = {key: value for key, value in config.items() if key != CONFIG}
    mine, wanted = load(made), ours(bare, worked_out(config, tensors))
    for (parameter, got), value in zip(mine.named_parameters(), wanted.parameters(), strict=True):
        assert torch.equal(got, value), parameter
    assert torch.equal(mine(prompt()), wanted(prompt()))
    kinds, left_out = KINDS[case][name]
    found = inspect(made)
    counted = {kind: count["tensors"] for kind, count in found.weights.items()}
    assert {kind: n for kind, n in counted.items() if kind in kinds} == kinds
    assert found.left_out == left_out


@pytest.mark.parametrize(("case", "name"), [(c, n) for c, names in REFUSED.items() for n in names])
def test_what_inputs_would_need_is_refused(case, name, exports):
    with pytest.raises(ConfigError, match=REFUSED[case][name]):
        load(exports[case, name])
