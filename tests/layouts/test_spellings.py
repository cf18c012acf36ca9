"""Lists of modules in one spelling, beside tensors that are named in another."""

import re
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import pytest
import torch
from files import quantized as files
from files.quantized import CONFIG, Leaves, Pack, compressed, quantized, small
from tiny import ours, prompt

from lmcast.graphs.weights.text_names import HUB, MODULES

Spell = Callable[[str], str]
Settings = dict[str, Any]
# Of a text: in a checkpoint of its own, and in the two kinds of multimodal ones.
SPELLINGS: dict[str, Spell] = {"text": str, "hub": HUB, "modules": MODULES}
OWN = "model.layers.0.mlp.down_proj"  # the module that lists name
OTHERS = [
    f"model.layers.{i}.{m}_proj" for i in range(2)
    for m in (*(f"self_attn.{x}" for x in "qkvo"), "mlp.gate", "mlp.up", "mlp.down")
]  # fmt: skip
OTHERS.remove(OWN)
FP8 = {"quant_algo": "FP8"}


def ignoring(settings: Settings, key: str, at: str = OWN) -> Callable[[Spell], Settings]:
    return lambda spell: settings | {key: [spell(at)]}


def by_groups(spell: Spell) -> Settings:
    """Return settings of two groups, of which one has the module alone."""
    general, own = (compressed("W4A16", group_size=size)[0] for size in (64, 32))
    group = own["config_groups"]["group_0"] | {"targets": [spell(OWN)]}
    return general | {"config_groups": general["config_groups"] | {"group_1": group}}


def mixed(spell: Spell, names: list[str], **own: Any) -> Settings:
    layers = {spell(name): FP8 for name in names}
    return {
        "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers,
        **own,
    }  # fmt: skip


def rounded(spell: Spell) -> Settings:
    return files.AUTO_ROUND | {"group_size": 64, "extra_config": {spell(OWN): {"group_size": 32}}}


def by_patterns(spell: Spell) -> Settings:
    own = {rf"+:{re.escape(spell(OWN))}$": {"group_size": 32}}
    return files.GPTQ | {"group_size": 64, "dynamic": own}


def of_compressed(group: int) -> Pack:
    return compressed("W4A16", group_size=group)[1]


# Settings by the spelling of their lists, what packs the module named (None: it is plain), and what
# packs the others.
ROWS: dict[str, tuple[Callable[[Spell], Settings], Pack | None, Pack]] = {
    "compressed-tensors, ignore": (
        ignoring(compressed("W4A16", group_size=32)[0], "ignore"), None, of_compressed(32),
    ),
    "compressed-tensors, targets": (by_groups, of_compressed(32), of_compressed(64)),
    "modelopt, ignore": (
        ignoring({"quant_method": "modelopt", **FP8}, "ignore", "model.layers.0.mlp.d*"), None,
        files.fp8_tensor,
    ),
    "modelopt, quantized_layers": (
        lambda spell: mixed(spell, [OWN, *OTHERS]), files.fp8_tensor, files.fp8_tensor,
    ),
    "modelopt, a plain one below": (
        lambda spell: mixed(
            spell, ["model.layers.0", "model.layers.1"], ignore=[spell("model.layers.0.mlp.down*")]
        ),
        None, files.fp8_tensor,
    ),
    "fbgemm": (ignoring(files.FBGEMM, "modules_to_not_convert"), None, files.fbgemm),
    "quark": (ignoring(files.QUARK, "exclude"), None, files.mxfp4),
    "bitsandbytes": (ignoring(files.INT8, "llm_int8_skip_modules"), None, files.int8),
    "gptq": (by_patterns, files.gptq, partial(files.gptq, group=64)),
    "auto-round": (rounded, files.gptq, partial(files.gptq, group=64)),
    "mlx": (
        lambda spell: files.MLX | {spell(OWN): {"bits": 8}}, partial(files.mlx, bits=8), files.mlx,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Settings, Leaves]:
    return small("qwen3/plain", tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(("stored", "listed"), list(permutations(SPELLINGS, 2)))
@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_a_list_names_a_module_in_any_spelling(name, stored, listed, plain):
    config, tensors = plain
    settings, own, others = ROWS[name]
    packed, exact = quantized(tensors, others, lambda weight: weight != f"{OWN}.weight")
    if own is not None:
        packed, known = quantized(packed, own, lambda weight: weight == f"{OWN}.weight")
        exact = exact | {f"{OWN}.weight": known[f"{OWN}.weight"]}
    named = {SPELLINGS[stored](tensor): value for tensor, value in packed.items()}
    got = ours(config | {CONFIG: settings(SPELLINGS[listed])}, named)
    assert torch.equal(got(prompt()), ours(config, exact)(prompt()))
