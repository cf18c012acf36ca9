"""Checkpoints that others quantized are what their numbers mean, bit for bit."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from files import quantized as files
from files.fp8 import CONFIG
from files.quantized import compressed, quantized, small, write
from tiny import defined, ours, prompt
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.engine.inspect import inspect
from lmcast.exporter.weights.values import values
from lmcast.graphs import ConfigError, WeightError, load
from lmcast.graphs.weights.sources import Packed, leaves

BF16 = torch.bfloat16
CASES: dict[str, Any] = {
    "int4": lambda: compressed("W4A16", BF16, group_size=32),
    "int4, asymmetric": lambda: compressed("W4A16_ASYM", group_size=32),
    "int4, rows": lambda: compressed("W4A16", strategy="channel", group_size=None),
    "int8 in words": lambda: compressed("W8A16", BF16, group_size=64),
    "int8": lambda: compressed("W8A8"),
    "int4 in bytes": lambda: compressed("W4A8", group_size=32),
    "fp8": lambda: compressed("FP8", BF16),
    "fp8, rows": lambda: compressed("FP8_DYNAMIC", BF16),
    "fp8, blocks": lambda: compressed("FP8_BLOCK", block_structure=[32, 64]),
    "nvfp4": lambda: compressed("NVFP4"),
    "mxfp4": lambda: compressed("MXFP4"),
    "mxfp8": lambda: compressed("MXFP8"),
    "gptq": lambda: (files.GPTQ, files.gptq),
    "gptq, v2": lambda: (
        files.GPTQ | {"checkpoint_format": "gptq_v2"}, partial(files.gptq, v1=False)
    ),
    "gptq, asymmetric": lambda: (files.GPTQ | {"sym": False}, partial(files.gptq, sym=False)),
    "gptq, one group": lambda: (files.GPTQ | {"group_size": -1}, partial(files.gptq, group=-1)),
    "gptq, int8": lambda: (files.GPTQ | {"bits": 8}, partial(files.gptq, bits=8)),
    "gptq, desc_act": lambda: (files.GPTQ | {"desc_act": True}, files.disordered),
    "awq": lambda: (files.AWQ, files.awq),
    "awq, routers left": lambda: (
        files.AWQ | {"modules_to_not_convert": ["gate", "mlp.gate", "lm_head"]}, files.awq
    ),
    "quark": lambda: (files.QUARK, files.mxfp4),
    "fbgemm": lambda: (files.FBGEMM, files.fbgemm),
    "auto-round": lambda: (files.AUTO_ROUND, files.gptq),
    "auto-round, v2": lambda: (
        files.AUTO_ROUND | {"packing_format": "auto_round", "sym": False},
        partial(files.gptq, sym=False, v1=False),
    ),
    "auto-round, awq": lambda: (
        files.AUTO_ROUND | {"packing_format": "auto_round:auto_awq"}, files.awq
    ),
    "auto-round, as gptq": lambda: (files.ROUNDED | files.GPTQ, files.gptq),
    "auto-round, as awq": lambda: (files.ROUNDED | {"sym": False} | files.AWQ, files.awq),
    "bitsandbytes": lambda: (files.INT8, files.int8),
    "mlx": lambda: (files.MLX, files.mlx),
    "mlx, int8": lambda: (
        {"group_size": 64, "bits": 8}, partial(files.mlx, bits=8, group=64)
    ),
}  # fmt: skip
# What cannot stay as it is: a group of columns is no run of them, a bias is no multiple of a scale.
VALUES_ONLY = {"gptq, desc_act", "mlx", "mlx, int8"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return small("qwen3/plain", tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_model_is_that_of_its_numbers(name, plain, tmp_path):
    config, tensors = plain
    settings, pack = CASES[name]()
    stored, exact = quantized(tensors, pack)
    mine, wanted = ours(config | {CONFIG: settings}, stored), ours(config, exact)
    for (parameter, got), value in zip(mine.named_parameters(), wanted.parameters(), strict=True):
        assert torch.equal(got, value), parameter
    assert torch.equal(mine(prompt()), wanted(prompt()))
    assert not torch.equal(wanted(prompt()), ours(config, tensors)(prompt()))
    check_files(write(tmp_path / "made", config | {CONFIG: settings}, stored), exact, name)


def check_files(made: Path, exact: dict[str, Tensor], name: str) -> None:
    """Streams give the same values as eager, and codes mean them too."""
    source = open_checkpoint(made)
    found = defined(source.config, source.tensors)
    packed = {n: s for n, s in found.binding.sources.items() if isinstance(s, Packed)}
    assert len(packed) == 14  # of two layers
    reached = set()
    for origin in packed.values():
        want, layout = exact[origin.values.tensor], origin.layout
        got = torch.cat([block.flatten() for block in values(source, origin)])
        assert torch.equal(got.reshape(want.shape), want)
        assert (layout.scheme is None) == (name in VALUES_ONLY)
        for begin, end in ((0, len(want)), (8, 24), (3, 20)):
            read = reader(source)
            assert torch.equal(layout.values(read, begin, end), want[begin:end])
            if layout.scheme is not None:
                codes = layout.codes(read, begin, end)
                assert codes.scheme == layout.scheme
                assert codes.scales.dtype == layout.scheme.scale
                assert codes.codes.dtype == torch.uint8
                assert (codes.zeros is not None) == layout.scheme.zeros
                assert torch.equal(codes.dequantize(), want[begin:end])
        reached |= set(layout.tensors)
    left = {n for n in source.tensors if n.endswith("_proj.weight") or "_scale" in n} - reached
    assert not left


def reader(source):
    def read(name: str, begin: int, end: int | None) -> Tensor:
        whole = source.read(name)
        return whole[begin:end] if whole.dim() else whole

    return read


@torch.no_grad()
def test_modules_that_gptq_treats_otherwise(plain):
    # As GPTQModel has it: by the first pattern that matches from the start of the name.
    config, tensors = plain
    packers: dict[str, Any] = {
        "down_proj": partial(files.gptq, bits=8, group=64),
        "up_proj": partial(files.gptq, sym=False),
        "gate_proj": files.gptq,
    }
    stored = exact = tensors
    for leaf, pack in packers.items():
        stored, known = quantized(stored, pack, lambda name, leaf=leaf: leaf in name)
        exact = exact | {name: known[name] for name in known if leaf in name and name in exact}
    own = {"bits": 8, "group_size": 64, "mse": 2.0}
    dynamic = {
        "lm_head": {}, "-:.*attn.*": {}, "+:.*down": own, "down_proj": {"bits": 4},
        ".*(up|down)": {"sym": False},
    }  # fmt: skip
    got = ours(config | {CONFIG: files.GPTQ | {"dynamic": dynamic}}, stored)(prompt())
    assert torch.equal(got, ours(config, exact)(prompt()))
    assert not torch.equal(got, ours(config, tensors)(prompt()))


@torch.no_grad()
def test_groups_of_several_formats(plain):
    config, tensors = plain
    (fp8, of_fp8), (int4, of_int4) = compressed("FP8_DYNAMIC"), compressed("W4A16", group_size=32)
    one, exact = quantized(tensors, of_fp8, lambda name: "self_attn" in name)
    stored, other = quantized(one, of_int4, lambda name: "mlp" in name)
    exact |= {name: value for name, value in other.items() if "mlp" in name}
    groups = {
        "a": fp8["config_groups"]["group_0"] | {"targets": ["re:.*self_attn.*"]},
        "b": int4["config_groups"]["group_0"] | {"targets": ["Linear"]},
    }
    settings = fp8 | {"config_groups": groups, "format": "mixed-precision"}
    got = ours(config | {CONFIG: settings}, stored)(prompt())
    assert torch.equal(got, ours(config, exact)(prompt()))
    bare = {name: group | {"format": None} for name, group in groups.items()}
    with pytest.raises(ConfigError, match="format is 'mixed-precision'; then every group must"):
        defined(config | {CONFIG: settings | {"config_groups": bare}}, stored)


@torch.no_grad()
def test_modules_with_settings_of_their_own(plain):
    config, tensors = plain
    wide = partial(files.gptq, bits=8, group=64)
    one, exact = quantized(tensors, wide, lambda name: "down_proj" in name)
    stored, other = quantized(one, files.gptq, lambda name: "down_proj" not in name)
    exact |= {name: value for name, value in other.items() if "down_proj" not in name}
    own = {"bits": 8, "group_size": 64, "data_type": "int", "act_bits": 16}
    for name in (".*down_proj", "model.layers.0.mlp.down_proj"):
        extra = {name: own, "lm_head": {"bits": 16, "data_type": "float"}}
        if name.startswith("model"):
            extra |= {"1.mlp.down_proj": own}  # by its name before by a pattern
        settings = files.AUTO_ROUND | {"extra_config": extra}
        got = ours(config | {CONFIG: settings}, stored)(prompt())
        assert torch.equal(got, ours(config, exact)(prompt()))


@torch.no_grad()
@pytest.mark.parametrize("method", ["gptq", "none"])
def test_biases_of_zeros_where_there_are_none(method, plain, tmp_path):
    config, tensors = plain
    stored, exact = quantized(tensors, files.gptq) if method == "gptq" else (tensors, tensors)
    settings = {CONFIG: files.GPTQ} if method == "gptq" else {}
    at = "model.layers.1.mlp"
    zeros = {f"{at}.{x}_proj.bias": torch.zeros(len(exact[f"{at}.{x}_proj.weight"]))
             for x in ("gate", "up", "down")}  # fmt: skip
    made = write(tmp_path / "made", config | settings, stored | zeros)
    assert torch.equal(load(made)(prompt()), ours(config, exact)(prompt()))
    assert inspect(made).left_out == "3 tensors: 3 of bias"
    export(made, tmp_path / "engine", tokenizer=False, parity=False)
    zeros[f"{at}.up_proj.bias"][3] = 1e-8
    made = write(tmp_path / "other", config | settings, stored | zeros)
    for use in (load, lambda path: export(path, tmp_path / "more", tokenizer=False)):
        with pytest.raises(
            WeightError, match=r"up_proj.bias is not all zeros, but .*ithout a bias"
        ):
            use(made)
    assert not (tmp_path / "more").exists()
    for name, value in ((f"{at}.up_proj.bias", torch.zeros(3)), (f"{at}.bias", torch.zeros(256))):
        with pytest.raises(WeightError, match=f"{name} .* nothing reads it"):
            defined(config | settings, stored | {name: value})


def test_scales_of_activations_and_caches_are_left_out(plain, tmp_path):
    config, tensors = plain
    settings, pack = compressed("NVFP4")
    settings |= {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    stored = quantized(tensors, pack)[0]
    at = "model.layers.0.self_attn"
    names = (f"{at}.k_scale", f"{at}.v_scale", f"{at}.q_proj.input_global_scale")
    made = write(
        tmp_path / "made",
        config | {CONFIG: settings},
        stored | {name: torch.ones(1) for name in names},
    )
    wanted = "3 tensors: 1 of input_global_scale, 1 of k_scale, 1 of v_scale"
    assert inspect(made).left_out == wanted
    stray = stored | {"model.norm.input_scale": torch.ones(1)}  # beside no quantized weight
    with pytest.raises(WeightError, match=r"model.norm.input_scale .*nothing reads it"):
        defined(config | {CONFIG: settings}, stray)


# Experts


MOE: dict[str, Any] = {
    "qwen3_moe/plain": lambda: (files.GPTQ, files.gptq),
    "qwen3_moe/renormalized, bias, tied": lambda: (files.AWQ, files.awq),
    "glm4_moe/GLM-4.5-Air": lambda: compressed("NVFP4"),
}


@pytest.mark.parametrize("name", MOE)
@torch.no_grad()
def test_experts_are_those_of_their_numbers(name, tmp_path):
    config, tensors = small(name, tmp_path / "plain")
    settings, pack = MOE[name]()
    stored, exact = quantized(tensors, pack)
    assert len(exact) < len(stored)
    made = write(tmp_path / "made", config | {CONFIG: settings}, stored)
    assert torch.equal(load(made)(prompt()), ours(config, exact)(prompt()))
    source = open_checkpoint(made)
    found = defined(source.config, source.tensors)
    stacks = {n: s for n, s in found.binding.sources.items() if "experts" in n}
    assert all(isinstance(leaf, Packed) for stack in stacks.values() for leaf in leaves(stack))
    for parameter, stack in stacks.items():
        want = dict(ours(config, exact).named_parameters())[parameter]
        got = torch.cat([block.flatten() for block in values(source, stack)])
        assert torch.equal(got.reshape(want.shape), want)


@pytest.mark.parametrize(
    "name", ["int4", "int4, asymmetric", "fp8, blocks", "nvfp4", "gptq", "gptq, desc_act", "awq"]
)
@torch.no_grad()
def test_projections_fused_in_one_matrix(name, tmp_path):
    config, tensors = small("phi3/plain", tmp_path / "plain")
    settings, pack = CASES[name]()
    stored, exact = quantized(tensors, pack)
    made = write(tmp_path / "made", config | {CONFIG: settings}, stored)
    wanted = dict(ours(config, exact).named_parameters())
    for parameter, got in load(made).named_parameters():
        assert torch.equal(got, wanted[parameter]), parameter
    source = open_checkpoint(made)
    sources = defined(source.config, source.tensors).binding.sources
    packed = {n: s for n, s in sources.items() if isinstance(s, Packed)}
    assert len(packed) == 14  # q, k, v, o, gate, up and down of two layers
    for parameter, origin in packed.items():
        got = torch.cat([block.flatten() for block in values(source, origin)])
        assert torch.equal(got.reshape(wanted[parameter].shape), wanted[parameter]), parameter


@torch.no_grad()
def test_only_routed_experts_as_in_kimi_k2_thinking(tmp_path):
    config, tensors = small("kimi_k2/plain", tmp_path / "plain")
    settings, pack = compressed("W4A16", BF16, group_size=32)
    stored, exact = quantized(tensors, pack, lambda name: ".mlp.experts." in name)
    ignore = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
              r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]  # fmt: skip
    made = write(tmp_path / "made", config | {CONFIG: settings | {"ignore": ignore}}, stored)
    assert torch.equal(load(made)(prompt()), ours(config, exact)(prompt()))
    counted = inspect(made).weights
    experts = [n for n in stored if n.endswith(".weight_packed")]
    assert counted["int4"]["tensors"] == 3 * len(experts) > 0
    # A stack of which one part is plain is none.
    name = experts[0].removesuffix("_packed")
    mixed = {n: t for n, t in stored.items() if not n.startswith(name)} | {name: exact[name]}
    with pytest.raises(ConfigError, match=f"ignore does not list {name.removesuffix('.weight')}"):
        defined(config | {CONFIG: settings | {"ignore": ignore}}, mixed)
    named = settings | {"ignore": [*ignore, name.removesuffix(".weight")]}
    with pytest.raises(WeightError, match=r"are parts of one weight .*not quantized alike"):
        defined(config | {CONFIG: named}, mixed)


@torch.no_grad()
def test_what_a_multimodal_config_says_of_its_text(tmp_path):
    config, tensors = small("mistral3/ministral3, tied", tmp_path / "plain")
    settings, pack = compressed("W4A16", group_size=32)
    stored, exact = quantized(tensors, pack, lambda name: "vision" not in name)
    text = {**config["text_config"], CONFIG: settings}
    wanted = ours(config, exact)(prompt())
    for given in (config | {CONFIG: settings}, config | {"text_config": text}):
        assert torch.equal(ours(given, stored)(prompt()), wanted)
    other = settings | {"ignore": []}
    with pytest.raises(ConfigError, match=f"{CONFIG} and text_config.{CONFIG} differ"):
        defined(config | {"text_config": text, CONFIG: other}, stored)


@torch.no_grad()
def test_a_head_that_repeats_a_quantized_embedding(tmp_path):
    config, tensors = small("qwen3/bias, tied", tmp_path / "plain")
    settings, pack = compressed("W4A16", group_size=32)
    settings |= {"ignore": []}
    stored, exact = quantized(tensors, pack)
    rows = -len(stored["model.embed_tokens.weight"]) % 8
    assert rows  # the words of a group of rows end within one
    leaves_of, exact["model.embed_tokens.weight"] = pack(stored.pop("model.embed_tokens.weight"))
    embed = {f"model.embed_tokens.{leaf}": t for leaf, t in leaves_of.items()}
    head = {f"lm_head.{leaf}": t.clone() for leaf, t in leaves_of.items()}
    wanted = ours(config, exact)(prompt())
    for given in (stored | embed, stored | embed | head):
        assert torch.equal(ours(config | {CONFIG: settings}, given)(prompt()), wanted)
    plain_head = stored | embed | {"lm_head.weight": exact["model.embed_tokens.weight"]}
    with pytest.raises(WeightError, match=r"lm_head.weight and .* not quantized alike"):
        defined(config | {CONFIG: settings}, plain_head)
    found = defined(config | {CONFIG: settings}, stored | embed | head)
    assert len(found.binding.copies) == 3  # codes, scales and the shape


# Engines


@pytest.mark.parametrize("name", [
    "int4, asymmetric", "nvfp4", "gptq, desc_act", "mxfp8", "fbgemm", "auto-round", "mlx",
    "bitsandbytes",
])  # fmt: skip
def test_an_engine_is_proven(name, plain, tmp_path):
    config, tensors = plain
    settings, pack = CASES[name]()
    made = write(tmp_path / "made", config | {CONFIG: settings}, quantized(tensors, pack)[0])
    check_engine(made, tmp_path)


@pytest.mark.parametrize("name", ["int4, asymmetric", "nvfp4", "fp8, blocks"])
def test_an_engine_of_fused_projections_is_proven(name, tmp_path):
    config, tensors = small("phi3/plain", tmp_path / "plain")
    settings, pack = CASES[name]()
    stored = quantized(tensors, pack)[0]
    check_engine(write(tmp_path / "made", config | {CONFIG: settings}, stored), tmp_path)


def check_engine(made: Path, folder: Path) -> None:
    engine = export(made, folder / "engine", tokenizer=False)
    assert json.loads((engine.directory / "parity.json").read_text())["passed"]
    assert not engine.linked
