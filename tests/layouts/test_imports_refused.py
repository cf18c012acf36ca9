"""Quantized checkpoints whose config and tensors contradict each other are refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from files import quantized as files
from files.fp8 import CONFIG
from files.quantized import compressed, quantized, small, write
from tiny import defined, ours
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.checkpoint import CheckpointError
from lmcast.graphs import ConfigError, WeightError

Settings, Tensors = dict[str, Any], dict[str, Tensor]
Change = Callable[[Settings, Tensors], Any]
Q, D = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
MADE: dict[str, Any] = {
    "int4": lambda: compressed("W4A16_ASYM", group_size=32),
    "nvfp4": lambda: compressed("NVFP4"),
    "fp8": lambda: compressed("FP8_DYNAMIC"),
    "gptq": lambda: (files.GPTQ, files.gptq),
    "awq": lambda: (files.AWQ, files.awq),
    "quark": lambda: (files.QUARK, files.mxfp4),
    "fbgemm": lambda: (files.FBGEMM, files.fbgemm),
    "auto-round": lambda: (files.AUTO_ROUND, files.gptq),
    "mlx": lambda: (files.MLX, files.mlx),
    "int8": lambda: (files.INT8, files.int8),
    "modelopt": lambda: (
        {"quant_method": "modelopt", "quant_algo": "mxfp4", "ignore": ["lm_head"]}, files.mxfp4
    ),
}  # fmt: skip


def key(*path: str, to: Any) -> Change:
    """Set a key of the quantization_config, by the keys that lead there."""

    def change(settings: Settings, _: Tensors) -> None:
        for name in path[:-1]:
            settings = settings[name]
        settings[path[-1]] = to

    return change


def weights(**changes: Any) -> Change:
    return lambda settings, _: settings["config_groups"]["group_0"]["weights"].update(changes)


def tensor(leaf: str, change: Callable[[Tensor], Tensor], module: str = Q) -> Change:
    name = f"{module}.{leaf}"
    return lambda _, tensors: tensors.update({name: change(tensors[name].clone()).contiguous()})


def without(leaf: str) -> Change:
    return lambda _, tensors: tensors.pop(f"{Q}.{leaf}")


def beside(leaf: str, value: Tensor) -> Change:
    return lambda _, tensors: tensors.update({f"{Q}.{leaf}": value})


def plain(_: Settings, tensors: Tensors) -> None:
    """Store one of several projections as plain numbers."""
    for name in [name for name in tensors if name.startswith(f"{Q}.")]:
        tensors.pop(name)
    tensors[f"{Q}.weight"] = torch.zeros(128, 128)


def bare(_: Settings, tensors: Tensors) -> None:
    """Take away what tells quantized weights from others."""
    leaves = (".weight_scale", ".qweight", ".weight_packed", ".biases", ".SCB")
    for name in [name for name in tensors if name.endswith(leaves)]:
        tensors.pop(name)


def as_bytes(settings: Settings, _: Tensors) -> None:
    """Say of packed integers that each has a byte."""
    weights(symmetric=True)(settings, {})
    settings["config_groups"]["group_0"]["format"] = "int-quantized"


def entry(value: int) -> Callable[[Tensor], Tensor]:
    def change(whole: Tensor) -> Tensor:
        whole.view(-1)[0] = value
        return whole

    return change


NOT = float("nan")
# Made how, changed how, the error, what it says.
REFUSED: list[tuple[str, Change, type[Exception], str]] = [
    ("int4", weights(group_size=64), WeightError,
     rf"{D}.weight_scale has shape \[128, 8\], .* {D}.weight_packed \[128, 32\] in runs of 64 in"
     r" a row; accepted: \[128, 4\]"),
    ("int4", weights(num_bits=8), WeightError, r"weight_scale has shape \[128, 8\], which does"),
    ("int4", weights(num_bits=3), ConfigError, "group_0.weights.num_bits is 3; implemented: 4, 8"),
    ("int4", weights(type="float"), ConfigError, "type is 'float'; .*'pack-quantized': 'int'"),
    ("int4", weights(strategy="token"), ConfigError, "weights.strategy is 'token'; implemented"),
    ("int4", weights(strategy="tensor"), ConfigError, "strategy is 'tensor'; accepted in format"),
    ("int4", weights(group_size=None), ConfigError, "group_size is None; accepted for groups"),
    ("int4", weights(actorder="group"), ConfigError, "weights.actorder is 'group'; implemented"),
    ("int4", weights(dynamic=True), ConfigError, "weights.dynamic is True; implemented: False"),
    ("int4", weights(sparsity="2:4"), ConfigError, "weights.sparsity = '2:4', which nothing reads"),
    ("int4", weights(symmetric=True), WeightError, "weight_zero_point .*nothing reads it"),
    ("int4", key("format", to="marlin-24"), ConfigError, "config.format is 'marlin-24'; implem"),
    ("int4", key("config_groups", "group_0", "format", to="int-quantized"), ConfigError,
     "symmetric is False; accepted in format 'int-quantized': True"),
    ("int4", as_bytes, WeightError, f"tensor {D}.weight is missing"),
    ("fp8", weights(num_bits=4), ConfigError, "num_bits is 4; accepted in .*float-quantized': 8"),
    ("int4", key("config_groups", to={}), ConfigError, "config_groups is {}; accepted: an obj"),
    ("int4", key("config_groups", "group_0", to=[]), ConfigError, r"group_0 is \[\]; accepted"),
    ("int4", key("quantization_status", to="initialized"), ConfigError, "status is 'initialized'"),
    ("int4", key("transform_config", to={"a": 1}), ConfigError, "transform_config = .*nothing r"),
    ("int4", key("ignore", to=["lm_head", Q]), ConfigError, f"ignore has '{Q}', but {Q} is quan"),
    ("int4", key("ignore", to=["re:.*q_proj"]), ConfigError, "ignore has 're:.*', but .* is qu"),
    ("int4", key("ignore", to=["re:("]), ConfigError, r"'re:\(' is no pattern: missing \)"),
    ("int4", key("config_groups", "group_0", "targets", to=["re:.*experts.*"]), ConfigError,
     "config_groups has no target for model.layers.0.mlp.down_proj, which is quantized"),
    ("int4", key("quant_method", to="higgs"), ConfigError,
     f"{CONFIG}.quant_method is 'higgs'; accepted: .*gptq.*transformers, model.dequantize"),
    ("int4", key("quant_method", to="hqq"), ConfigError, "'hqq'; .*with its library and save_pret"),
    ("int8", lambda s, _: (s.pop("quant_method"), s.update(load_in_4bit=True)), ConfigError,
     f"{CONFIG}.load_in_4bit is true; accepted: 8 bits; load it with transformers, model.dequant"),
    ("int8", key("load_in_8bit", to=False), ConfigError, "load_in_8bit is False; implemented: Tr"),
    ("int8", key("llm_int8_skip_modules", to=["q_proj"]), ConfigError, "has 'q_proj', but model"),
    ("int8", plain, ConfigError, f"llm_int8_skip_modules does not list {Q}"),
    ("int8", without("weight_format"), WeightError, f"{Q}.weight_format is missing, which belongs"),
    ("int8", tensor("SCB", lambda t: t[:9]), WeightError, r"SCB has shape \[9\], .*: \[128\]"),
    ("int8", tensor("weight", lambda t: t.float()), WeightError, "weight is torch.float32; accep"),
    ("int8", bare, ConfigError, r"load_in_8bit is true, but no tensor has scales \(X.SCB\)"),
    ("int4", key("quant_method", to="intel/auto-round"), ConfigError, "export it again with an A"),
    ("gptq", key("data_type", to="float"), ConfigError, "data_type is 'float'; implemented: 'int'"),
    ("int4", key("quant_method", to="aqlm"), ConfigError, "'aqlm'; .*; take the release that is"),
    ("int4", lambda s, _: s.pop("quant_method"), ConfigError, "quant_method is missing; accepted"),
    ("int4", key("quant_method", to=["awq"]), ConfigError, r"quant_method is \['awq'\]; accep"),
    ("int4", plain, ConfigError, f"ignore does not list {Q}, whose weight is plain while others"),
    ("int4", bare, ConfigError, "quant_method is 'compressed-tensors', but no tensor has scales"),
    ("int4", without("weight_scale"), WeightError,
     f"{Q}.weight_scale is missing, which belongs to {Q}.weight_packed"),
    ("int4", without("weight_shape"), WeightError, f"{Q}.weight_shape is missing"),
    ("int4", without("weight_zero_point"), WeightError, f"{Q}.weight_zero_point is missing"),
    ("int4", without("weight_packed"), WeightError, f"tensor {Q}.weight_packed is missing"),
    ("int4", beside("weight_g_idx", torch.zeros(128)), WeightError, "g_idx .*nothing reads it"),
    ("int4", beside("weight", torch.zeros(128, 128)), WeightError,
     f"tensors {Q}.weight and {Q}.weight_packed are forms of the same; accepted is one"),
    ("int4", tensor("weight_packed", lambda t: t.float()), WeightError,
     f"{Q}.weight_packed is torch.float32; accepted: int32"),
    ("int4", tensor("weight_scale", lambda t: t.double()), WeightError,
     "weight_scale is torch.float64; accepted: bfloat16, float16, float32"),
    ("int4", tensor("weight_zero_point", lambda t: t[:-1]), WeightError,
     r"weight_zero_point has shape \[15, 4\], .*accepted: \[16, 4\]"),
    ("int4", tensor("weight_packed", lambda t: t[None]), WeightError,
     r"weight_packed has shape \[1, 128, 16\]; accepted: a matrix"),
    ("int4", tensor("weight_packed", lambda t: t[:, :12]), WeightError,
     r"weight_scale has shape \[128, 4\], which does not fit .*\[128, 12\]"),
    ("nvfp4", tensor("weight_scale", lambda t: t.float()), WeightError,
     f"{Q}.weight_scale is torch.float32; accepted: float8_e4m3fn"),
    ("nvfp4", tensor("weight_global_scale", lambda t: t.repeat(2)), WeightError,
     r"weight_global_scale has shape \[2\], .* in one number; accepted: \[\] or \[1\]"),
    ("nvfp4", without("weight_global_scale"), WeightError, "weight_global_scale is missing"),
    ("nvfp4", weights(group_size=32), ConfigError, "group_size is 32; accepted in .*nvfp4.*: 16"),
    ("fp8", tensor("weight", lambda t: t.float()), WeightError,
     f"{Q}.weight is torch.float32; accepted: float8_e4m3fn"),
    ("fp8", weights(strategy="tensor"), WeightError,
     r"weight_scale has shape \[128, 1\], .* in one block; accepted: \[\] or \[1\]"),
    ("fp8", weights(strategy="block", block_structure=[64]), ConfigError, r"structure is \(64,\)"),
    ("fp8", weights(strategy="block", block_structure=[64, 64]), WeightError,
     r"weight_scale has shape \[128, 1\], .* in blocks of 64 x 64; accepted: \[2, 4\]"),
    ("gptq", key("bits", to=3), ConfigError, "bits is 3; implemented: 4, 8; or take the release"),
    ("gptq", key("bits", to=8), WeightError, r"scales has shape \[8, 128\], .*accepted: \[4, 12"),
    ("gptq", key("group_size", to=64), WeightError,
     rf"{D}.scales has shape \[8, 128\], .* in groups of 64; accepted: \[4, 128\]"),
    ("gptq", key("group_size", to=0), ConfigError, "group_size is 0; accepted: -1 or from 1"),
    ("gptq", key("checkpoint_format", to="marlin"), ConfigError, "format is 'marlin'; impl"),
    ("gptq", key("format", to="gptq_v2"), ConfigError, "format is 'gptq_v2', checkpoint_format"),
    ("gptq", key("is_marlin_format", to=True), ConfigError, "is_marlin_format = True, which noth"),
    ("gptq", key("dynamic", to={"-:.*up": {}}), ConfigError,
     r"dynamic has '-:\.\*up', but model.layers.0.mlp.up_proj is quantized; one is wrong"),
    ("gptq", key("dynamic", to=["-:.*"]), ConfigError, r"dynamic is \['-:\.\*'\]; accepted: an"),
    ("gptq", key("dynamic", to={"+:(": {}}), ConfigError, r"'\+:\(' is no pattern"),
    ("gptq", key("dynamic", to={"+:.*up": 8}), ConfigError, r"dynamic\.\+:\.\*up is 8; acc"),
    ("gptq", key("dynamic", to={".*up": {"bits": 3}}), ConfigError, r"\.\*up\.bits is 3; impl"),
    ("gptq", key("dynamic", to={".*up": {"rotation": "hadamard"}}), ConfigError,
     r"sets quantization_config\.dynamic\.\.\*up\.rotation = 'hadamard', which nothing reads"),
    ("gptq", key("dynamic", to={".*up": {"group_size": 64}}), WeightError,
     r"up_proj.scales has shape \[4, 256\], .* in groups of 64; accepted: \[2, 256\]"),
    ("gptq", bare, ConfigError, "quant_method is 'gptq', but no tensor is quantized"),
    ("gptq", without("qzeros"), WeightError, f"{Q}.qzeros is missing, which belongs"),
    ("gptq", tensor("qzeros", lambda t: t[:2]), WeightError, r"qzeros has shape \[2, 16\]"),
    ("gptq", tensor("g_idx", lambda t: t[:9]), WeightError, r"g_idx has shape \[9\], .*\[128\]"),
    ("awq", key("version", to="gemv"), ConfigError, "version is 'gemv'; implemented: 'gemm'"),
    ("awq", key("zero_point", to=False), ConfigError, "zero_point is False; implemented: True"),
    ("awq", key("bits", to=8), ConfigError, "bits is 8; implemented: 4"),
    ("awq", key("modules_to_not_convert", to=["self_attn"]), ConfigError,
     "modules_to_not_convert has 'self_attn', but model.layers.0.self_attn.k_proj is quantized"),
    ("awq", tensor("qzeros", lambda t: t.long()), WeightError, "qzeros is torch.int64; accepted"),
    ("awq", tensor("scales", lambda t: t[:, :8]), WeightError, r"scales has shape \[4, 8\], which"),
    ("quark", key("global_quant_config", "weight", "dtype", to="int4"), ConfigError,
     "global_quant_config.weight.dtype is 'int4'; implemented: 'fp4'"),
    ("quark", key("layer_quant_config", to={"*q_proj": {"weight": {"dtype": "x"}}}), ConfigError,
     r"layer_quant_config.\*q_proj.weight.dtype is 'x'"),
    ("quark", key("algo_config", to=[{"name": "rotation"}]), ConfigError, "algo_config = .*no"),
    ("quark", key("layer_type_quant_config", to={"Linear": {}}), ConfigError, "layer_type_quant_c"),
    ("quark", key("exclude", to=["*.mlp.*"]), ConfigError, r"exclude has '\*.mlp.\*', but model."),
    ("quark", plain, ConfigError, f"exclude does not list {Q}"),
    ("quark", tensor("weight_scale", lambda t: t.float()), WeightError,
     "weight_scale is torch.float32; accepted: float8_e8m0fnu, uint8"),
    ("fbgemm", key("modules_to_not_convert", to=[Q]), ConfigError,
     f"modules_to_not_convert has '{Q}', but {Q} is quantized"),
    ("fbgemm", key("modules_to_not_convert", to=["mlp.up_proj"]), ConfigError, "up_proj is quanti"),
    ("fbgemm", plain, ConfigError, f"modules_to_not_convert does not list {Q}"),
    ("fbgemm", key("activation_scale_ub", to=-1.0), ConfigError, "activation_scale_ub is -1.0; ac"),
    ("fbgemm", tensor("weight_scale", lambda t: t[:9]), WeightError, r"shape \[9, 1\], .* in rows"),
    ("fbgemm", bare, ConfigError, "quant_method is 'fbgemm_fp8', but no tensor has scales"),
    ("auto-round", key("packing_format", to="auto_round:llm_compressor"), ConfigError,
     "packing_format is 'auto_round:llm_compressor'; accepted: auto_round:auto_gptq, "),
    ("auto-round", key("packing_format", to="auto_round:awq"), WeightError, "scales has shape"),
    ("auto-round", key("bits", to=2), ConfigError, f"{CONFIG}.bits is 2; implemented: 4, 8"),
    ("auto-round", key("data_type", to="mx_fp"), ConfigError, "data_type is 'mx_fp'; implemented"),
    ("auto-round", key("super_bits", to=6), ConfigError, "super_bits = 6, which nothing reads"),
    ("auto-round", key("extra_config", to={Q: {"bits": 16}}), ConfigError,
     f"extra_config has {Q} in 16 bits, but it is quantized"),
    ("auto-round", key("extra_config", to={Q: {"bits": 3}}), ConfigError, f"{Q}: bits is 3; imple"),
    ("auto-round", key("extra_config", to={Q: {"rotation": 1}}), ConfigError, "rotation = 1, whi"),
    ("auto-round", key("extra_config", to={".*q_proj": {"group_size": 64}}), WeightError,
     rf"{Q}.scales has shape \[4, 128\], .* in groups of 64; accepted: \[2, 128\]"),
    ("auto-round", key("extra_config", to={"(": {"bits": 8}}), ConfigError, r"'\(' is no pattern"),
    ("auto-round", bare, ConfigError, "quant_method is 'auto-round', but no tensor is quantized"),
    ("mlx", key("bits", to=3), ConfigError, f"{CONFIG}.bits is 3; implemented: 4, 8"),
    ("mlx", key("mode", to="mxfp4"), ConfigError, "mode is 'mxfp4'; implemented: 'affine'"),
    ("mlx", key(Q, to=False), ConfigError, f"{Q} is false, but its weight is quantized"),
    ("mlx", key(Q, to={"group_size": 64}), WeightError,
     rf"{Q}.scales has shape \[128, 4\], .* in runs of 64 in a row; accepted: \[128, 2\]"),
    ("mlx", key(Q, to={"scheme": 1}), ConfigError, f"{CONFIG}.{Q}.scheme = 1, which nothing reads"),
    ("mlx", key(Q, to=8), ConfigError, f"{Q} is 8; accepted: an object, true or false"),
    ("mlx", key("sym", to=True), ConfigError, f"{CONFIG}.quant_method is missing; accepted: fp8"),
    ("mlx", tensor("biases", lambda t: t.float()), WeightError, "biases is torch.float32; acc"),
    ("mlx", tensor("weight", lambda t: t[None]), WeightError, r"does not fit .* \[1, 128, 16\] in"),
    ("mlx", tensor("weight", lambda t: t[0]), WeightError, r"weight has shape \[16\]; accepted: a"),
    ("mlx", bare, ConfigError, "it is a quantization of MLX, but no tensor is quantized"),
    ("modelopt", key("quant_algo", to="MXFP8"), WeightError, "weight is torch.uint8; accepted: f"),
    ("modelopt", key("quant_algo", to="NVFP4"), WeightError, "weight_scale is torch.uint8; acc"),
    ("modelopt", key("quant_algo", to="W4A8_AWQ"), ConfigError,
     "quant_algo is 'W4A8_AWQ'; accepted: FP8"),
    ("modelopt", key("group_size", to=16), ConfigError, "group_size is 16; accepted for MXFP4"),
    ("modelopt", key("config_groups", to={"a": {"weights": {"group_size": 16}}}), ConfigError,
     r"config_groups.a.weights.group_size is 16, which is not that of mxfp4, \(32,\)"),
    ("modelopt", key("ignore", to=["lm_head", "*q_proj"]), ConfigError, r"ignore has '\*q_proj'"),
    ("modelopt", plain, ConfigError, f"ignore does not list {Q}"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, tuple[Settings, Settings, Tensors]]:
    """Return config, quantization_config and tensors of a model in every way of MADE."""
    config, tensors = small("qwen3/plain", tmp_path_factory.mktemp("plain"))
    found = {}
    for name, make in MADE.items():
        settings, pack = make()
        found[name] = config, settings, quantized(tensors, pack)[0]
    return found


def changed(base: tuple[Settings, Settings, Tensors], change: Change) -> tuple[Settings, Tensors]:
    config, settings, tensors = base[0], json_copy(base[1]), dict(base[2])
    change(settings, tensors)
    return config | {CONFIG: settings}, tensors


def json_copy(value: Any) -> Any:
    return {k: json_copy(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(("made", "change", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused(made, change, error, message, bases):
    config, tensors = changed(bases[made], change)
    with pytest.raises(error, match=message) as refused:
        defined(config, tensors)
    assert type(refused.value) is error
    assert "\n" not in str(refused.value)


READ: list[tuple[str, Change, str]] = [
    ("int4", tensor("weight_shape", entry(64)), rf"{Q}.weight_shape says \[64, 128\], but"),
    ("gptq", tensor("g_idx", entry(1)), f"{Q}.g_idx does not count up by groups of 32, but"),
    ("gptq", tensor("qzeros", entry(0x77777776)), f"{Q}.qzeros has zeros beside the middle"),
    ("gptq", tensor("qzeros", entry(0x7777777F)), f"{Q}.qzeros holds 15, which has no one"),
    ("int8", tensor("weight_format", entry(2)), f"{Q}.weight_format is 2, an order of columns of"),
    ("gptq", lambda s, t: (s.update(desc_act=True), tensor("g_idx", entry(4))(s, t)),
     f"{Q}.g_idx has group 4 of 4"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "change", "message"), READ)
def test_numbers_that_contradict_the_config_are_refused(made, change, message, bases):
    config, tensors = changed(bases[made], change)
    defined(config, tensors)  # names, shapes and dtypes fit
    with pytest.raises(WeightError, match=message):
        ours(config, tensors)


NAN: list[tuple[str, Change, str]] = [
    ("int4", tensor("weight_scale", lambda t: t.fill_(NOT)), f"scales of .*{Q}.weight_packed"),
    ("awq", tensor("scales", lambda t: t.fill_(NOT)), f"scales of .*{Q}.qweight"),
    ("quark", tensor("weight_scale", entry(255)), f"scales of .*{Q}.weight"),
    ("fp8", tensor("weight", lambda t: t.view(torch.uint8).fill_(127).view(t.dtype)), "holds nan"),
]


@pytest.mark.parametrize(("made", "change", "message"), NAN)
def test_an_engine_of_what_is_no_number_is_refused(made, change, message, bases, tmp_path):
    made = write(tmp_path / "made", *changed(bases[made], change))
    with pytest.raises(CheckpointError, match=message):
        export(made, tmp_path / "engine", parity=False, tokenizer=False)


def test_without_its_settings_nothing_is_read(bases):
    config, _, tensors = bases["int4"]
    with pytest.raises(WeightError, match=r"q_proj.weight is missing .*weight_packed"):
        defined(config, tensors)
