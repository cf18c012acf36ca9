"""FP8 checkpoints whose numbers are not what they seem are refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from files.fp8 import CONFIG, RAGGED, blocks, in_fp8, save
from tiny import defined, logits, read
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.weights.place import WeightsError
from lmcast.graphs import ConfigError, WeightError, load

OPTIONS: dict[str, Any] = {"parity": False, "tokenizer": False}
Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"
SCALES = f"{Q}_scale_inv"
Change = Callable[[dict[str, Any], dict[str, Tensor]], Any]


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda config, tensors: tensors.update({name: change(tensors[name]).contiguous()})


def code(name: str, index: int, bits: int) -> Change:
    return lambda _, tensors: tensors[name].view(torch.uint8).view(-1).__setitem__(index, bits)


def number(name: str, index: int, value: float) -> Change:
    return lambda _, tensors: tensors[name].view(-1).__setitem__(index, value)


def settings(**changes: Any) -> Change:
    """Change quantization_config; None takes a key out."""

    def change(config: dict[str, Any], _: dict[str, Tensor]) -> None:
        merged = {**config[CONFIG], **changes}
        config[CONFIG] = {key: value for key, value in merged.items() if value is not None}

    return change


def without_scales(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors.pop(name)


NAN = float("nan")
REFUSED: list[tuple[str, Change, type[Exception], str]] = [
    ("scales_short", tensor(SCALES, lambda t: t[:2]), WeightError,
     rf"{SCALES} has shape \[2, 2\].* {Q} \[64, 32\] in blocks of 24 x 20; accepted: \[3, 2\]"),
    ("scales_turned", tensor(SCALES, lambda t: t.T), WeightError, rf"{SCALES} has shape \[2, 3\]"),
    ("scales_flat", tensor(SCALES, lambda t: t.flatten()), WeightError, r"has shape \[6\]"),
    ("scales_of_another_block", settings(weight_block_size=[16, 16]), WeightError,
     r"has shape \[2, 2\].* \[48, 32\] in blocks of 16 x 16; accepted: \[3, 2\]"),
    ("scales_missing", lambda _, t: t.pop(SCALES), CheckpointError,
     f"{Q} is torch.float8_e4m3fn without a scale that is read; accepted: float32"),
    ("scales_all_missing", without_scales, ConfigError,
     r"quantization_config.quant_method is 'fp8', but no tensor has scales \(NAME_scale_inv\)"),
    ("scales_nan", number(SCALES, 4, NAN), CheckpointError,
     f"the scales of tensor '{Q}' are not all finite"),
    ("scales_inf", number(SCALES, 0, float("inf")), CheckpointError,
     f"the scales of tensor '{Q}' are not all finite"),
    ("scales_beyond_floats", number(SCALES, 5, 3e38), CheckpointError, f"'{Q}' holds -?inf at"),
    ("scales_bytes", tensor(SCALES, lambda t: t.to(torch.uint8)), WeightError,
     f"{SCALES} is torch.uint8; accepted: bfloat16, float32, float8_e8m0fnu"),
    ("scales_halves", tensor(SCALES, lambda t: t.half()), WeightError,
     f"{SCALES} is torch.float16; accepted: bfloat16"),
    ("scales_surplus", lambda _, t: t.update({f"{Q}_scale": torch.ones(1)}), WeightError,
     f"{Q}_scale .*nothing reads it"),
    ("scales_of_activations", lambda _, t: t.update(
        {Q.replace("weight", "activation_scale"): torch.ones(())}), WeightError,
     r"q_proj.activation_scale \[\] .*nothing reads it"),
    ("value_nan", code(Q, 700, 0x7F), CheckpointError, f"'{Q}' holds nan at flat index 700"),
    ("value_minus_nan", code(K, 1023, 0xFF), CheckpointError,
     f"'{K}' holds nan at flat index 1023"),
    ("values_plain", tensor(Q, lambda t: t.float()), WeightError,
     f"{Q} is torch.float32; accepted: float8_e4m3fn"),
    ("values_e5m2", tensor(Q, lambda t: t.float().to(torch.float8_e5m2)), WeightError,
     f"{Q} is torch.float8_e5m2; accepted: float8_e4m3fn"),
    ("values_misshaped", tensor(Q, lambda t: t[:60]), WeightError,
     rf"{Q} has shape \[60, 32\]; config.json asks for \[64, 32\]"),
    ("fmt_other", settings(fmt="e5m2"), ConfigError, "quantization_config.fmt is 'e5m2'; impl"),
    ("scale_fmt_other", settings(scale_fmt="int"), ConfigError, "scale_fmt is 'int'"),
    ("scheme_other", settings(activation_scheme="token"), ConfigError, "activation_scheme is 'tok"),
    ("experts_of_four_bits", settings(expert_dtype="fp4"), ConfigError, "expert_dtype is 'fp4'"),
    ("block_zero", settings(weight_block_size=[0, 20]), ConfigError,
     r"quantization_config.weight_block_size is \[0, 20\]; accepted: two numbers from 1"),
    ("block_of_one", settings(weight_block_size=[24]), ConfigError, r"size is \[24\]; accepted"),
    ("block_of_floats", settings(weight_block_size=[24.0, 20]), ConfigError, r"size\[0\] is 24.0"),
    ("block_number", settings(weight_block_size=24), ConfigError, "size is 24; accepted: a list"),
    ("block_missing", settings(weight_block_size=None), WeightError,
     r"in one block; accepted: \[\] or \[1\]"),
    ("key_unknown", settings(kv_cache_scheme="static"), ConfigError,
     "quantization_config.kv_cache_scheme = 'static', which nothing reads"),
    ("method_other", settings(quant_method="fp6"), ConfigError,
     "quantization_config.quant_method is 'fp6'; accepted: fp8, fbgemm_fp8, .*take the release"),
    ("config_missing", lambda c, _: c.pop(CONFIG), WeightError,
     r"weight_scale_inv .*nothing reads it: config.json does not describe this checkpoint"),
]  # fmt: skip


@pytest.fixture(scope="module")
def quantized(checkpoint) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, plain = read(checkpoint("qwen3/plain"))
    return config | {CONFIG: blocks(RAGGED)}, in_fp8(plain, RAGGED)[0]


@pytest.mark.parametrize(
    ("change", "error", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_does_not_fit_is_refused(change, error, message, quantized, tmp_path):
    config, tensors = dict(quantized[0]), {n: t.clone() for n, t in quantized[1].items()}
    change(config, tensors)
    made = save(tmp_path / "made", config, tensors)
    with pytest.raises(error, match=message) as refused:
        export(made, tmp_path / "engine", **OPTIONS)
    assert type(refused.value) is error
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, t: t.pop(SCALES), f"{Q} is torch.float8_e4m3fn, without a scale"),
        (tensor(Q, lambda t: t.bfloat16()), f"{Q} is torch.bfloat16; accepted: float8_e4m3fn"),
        (tensor(SCALES, lambda t: t.half()), f"{SCALES} is torch.float16; accepted: bfloat16"),
    ],
)
def test_eager_refuses_what_is_no_number(change, message, quantized, tmp_path):
    config, tensors = dict(quantized[0]), dict(quantized[1])
    change(config, tensors)
    with pytest.raises(WeightError, match=message):
        load(save(tmp_path / "made", config, tensors))


def test_link_is_refused(quantized, tmp_path):
    made = save(tmp_path / "made", *quantized)
    reason = r"\.weight is quantized \(fp8\), so .* use --weights copy"
    for target in ("cpu", "onnx"):
        with pytest.raises(WeightsError, match=reason):
            export(made, tmp_path / "engine", target, weights="link", **OPTIONS)


def test_one_place_says_it_or_both_the_same(checkpoint):
    config, plain = read(checkpoint("mistral3/ministral3, tied"))
    packed, exact = in_fp8(plain, RAGGED)
    text, wanted = config["text_config"], logits(config, exact)

    def said(outer: Any, inner: Any) -> dict[str, Any]:
        return {**config, CONFIG: outer, "text_config": {**text, CONFIG: inner}}

    for outer, inner in ((blocks(RAGGED), None), (None, blocks(RAGGED)), (blocks(RAGGED),) * 2):
        assert torch.equal(logits(said(outer, inner), packed), wanted)
    other = said(blocks(RAGGED), blocks((16, 16)))
    with pytest.raises(
        ConfigError, match=f"^mistral3: config.json: {CONFIG} and text_config.{CONFIG}"
    ):
        defined(other, packed)
    with pytest.raises(ConfigError, match=f"config.json: text_config.{CONFIG}.fmt is 'e5m2'"):
        defined(said(None, blocks(RAGGED, fmt="e5m2")), packed)
    with pytest.raises(ConfigError, match=f"text_config.{CONFIG}.bits is missing"):
        defined(said(blocks(RAGGED), {"quant_method": "awq"}), packed)


def test_a_head_that_repeats_the_embedding_has_its_scales(checkpoint, tmp_path):
    config, plain = read(checkpoint("qwen3/bias, tied"))
    config |= {CONFIG: blocks(RAGGED)}
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    packed, (other, _) = in_fp8(plain, RAGGED, also=(embed,))[0], in_fp8(plain, RAGGED)
    again = {f"{head}{end}": packed[f"{embed}{end}"].clone() for end in ("", "_scale_inv")}
    assert torch.equal(logits(config, packed), logits(config, packed | again))
    larger = again | {f"{head}_scale_inv": again[f"{head}_scale_inv"] * 2}
    for name, tensors, message in (
        ("larger", packed | larger, f"{head}_scale_inv differs from {embed}_scale_inv"),
        ("raw", {**other, head: again[head]}, f"{head} differs from {embed}"),
    ):
        with pytest.raises(WeightsError, match=message):
            export(save(tmp_path / name, config, tensors), tmp_path / "engine", **OPTIONS)
    one = f"tensors {head} and {embed} are one weight, but they are not quantized alike"
    for tensors in (packed | {head: again[head]}, other | again):
        with pytest.raises(WeightError, match=rf"{one}.*\(--untie\)"):
            defined(config, tensors)
    assert defined(config, other | again, untie=True).binding.copies == ()
