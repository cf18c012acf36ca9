"""Quantized checkpoints made of plain ones, by other libraries or by descriptions of formats, and
the numbers that they hold: worked out here, number by number, in fp32."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tiny import case, make, read
from torch import Tensor

from files.fp8 import e4m3

CONFIG = "quantization_config"
Leaves = dict[str, Tensor]  # of one module
Pack = Callable[[Tensor], tuple[Leaves, Tensor]]  # a weight N,K -> what is stored, what it means
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32}


def small(name: str, directory: Path) -> tuple[dict[str, Any], Leaves]:
    """Return the config and the tensors of a model whose sizes every format divides."""
    settings, sizes = case(name).settings, dict(WIDE)
    if "moe_intermediate_size" in settings:
        sizes["moe_intermediate_size"] = 64
    if "qk_rope_head_dim" in settings:  # of latent attention, which has widths of its own
        del sizes["head_dim"]
    if "text_config" in settings:
        sizes = {"text_config": {**settings["text_config"], **WIDE}}
    own = dataclasses.replace(case(name), settings={**settings, **sizes})
    return read(make(own, directory))


def quantized(
    plain: Mapping[str, Tensor], pack: Pack, also: Callable[[str], bool] = lambda name: True
) -> tuple[Leaves, Leaves]:
    """Return tensors with the projections of layers packed, and the same with what they mean."""
    stored, exact = dict(plain), dict(plain)
    for name in [n for n in plain if "layers" in n and n.endswith("_proj.weight") and also(n)]:
        leaves, exact[name] = pack(stored.pop(name))
        module = name.removesuffix("weight")
        stored |= {f"{module}{leaf}": value.contiguous() for leaf, value in leaves.items()}
    return stored, exact


def write(directory: Path, config: dict[str, Any], tensors: Leaves) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in tensors.items()}, directory / "model.safetensors")
    return directory


# What formats mean, from their descriptions


def nibbles(packed: Tensor) -> Tensor:
    """Bytes ...,C -> numbers ...,2C, the low half first."""
    out = torch.empty(*packed.shape[:-1], 2 * packed.shape[-1], dtype=torch.long)
    out[..., 0::2], out[..., 1::2] = packed.long() % 16, packed.long() // 16
    return out


def powers(scales: Tensor) -> Tensor:
    return (2.0 ** (scales.view(torch.uint8).double() - 127)).float()


def wide(scales: Tensor, columns: int) -> Tensor:
    """Scales N,G -> one for each of N,K."""
    return scales.float().repeat_interleave(columns // scales.shape[1], 1)


def fp8(codes: Tensor) -> Tensor:
    return torch.from_numpy(e4m3(codes.view(torch.uint8).numpy()).astype(np.float32))


def word(words: Tensor, bits: int) -> Tensor:
    """Words ...,C of 32 bits -> numbers ...,C * 32 / bits, the lowest bits first."""
    whole = words.long() & 0xFFFFFFFF
    parts = [whole >> bits * i & (1 << bits) - 1 for i in range(32 // bits)]
    return torch.stack(parts, -1).flatten(-2)


def as_words(numbers: Tensor, bits: int) -> Tensor:
    """Numbers ...,C * 32 / bits -> words ...,C, the inverse."""
    each = numbers.long().unflatten(-1, (-1, 32 // bits))
    whole = sum(each[..., i] << bits * i for i in range(32 // bits))
    assert isinstance(whole, Tensor)
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).int()


# compressed-tensors, by its own compressors


def settings_of(preset: str, **changes: Any) -> dict[str, Any]:
    """Return the quantization_config of a preset of compressed-tensors."""
    from compressed_tensors.quantization import QuantizationConfig

    found = QuantizationConfig(
        config_groups={"group_0": scheme_of(preset, **changes)}, ignore=["lm_head"],
        format=scheme_of(preset, **changes).format, quantization_status="compressed",
    )  # fmt: skip
    return json.loads(found.model_dump_json())


def scheme_of(preset: str, **changes: Any) -> Any:
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme

    scheme = preset_name_to_scheme(preset, ["Linear"])
    given = {**scheme.weights.model_dump(exclude_unset=True), **changes}
    scheme.weights = QuantizationArgs(**given)
    scheme.format = infer_module_format(torch.nn.Linear, scheme).value
    return scheme


def grid(weight: Tensor, weights: Any) -> Tensor:
    """Return a weight's blocks by the settings of compressed-tensors: rows,columns,values."""
    rows, columns = weight.shape
    high, across = {
        "tensor": (rows, columns), "channel": (1, columns), "group": (1, weights.group_size),
        "tensor_group": (1, weights.group_size), "block": weights.block_structure,
    }[weights.strategy]  # fmt: skip
    blocks = weight.unflatten(0, (-1, high)).unflatten(2, (-1, across))  # R,h,C,w
    return blocks.transpose(1, 2).flatten(2)


def by_compressed_tensors(scheme: Any, dtype: torch.dtype, weight: Tensor) -> tuple[Leaves, Tensor]:
    """Pack a weight, with scales of `dtype` where the format has no dtype of its own."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    args, blocks = scheme.weights, grid(weight, scheme.weights)
    state: Leaves = {"weight": weight}
    shared = 448.0 * 6 / weight.abs().amax().reshape(1) if args.strategy == "tensor_group" else None
    scales, zeros = calculate_qparams(blocks.amin(2), blocks.amax(2), args, global_scale=shared)
    scales = scales if args.scale_dtype else scales.to(dtype)
    if args.strategy == "tensor":
        scales, zeros = scales.reshape(1), zeros.reshape(1)
    state |= {"weight_scale": scales, "weight_zero_point": zeros}
    if shared is not None:
        state["weight_global_scale"] = shared
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    leaves = compressor.compress(state, scheme)
    theirs = compressor.decompress(leaves, scheme)["weight"]
    exact = meaning(scheme.format, leaves, args)
    assert torch.equal(exact.to(theirs.dtype), theirs) or scheme.format == "nvfp4-pack-quantized"
    assert (exact - theirs).abs().max() <= 0.01 * exact.abs().max()  # scales rounded to bf16
    return leaves, exact


def meaning(form: str, leaves: Leaves, args: Any) -> Tensor:
    scales = leaves["weight_scale"]
    if form == "nvfp4-pack-quantized":
        codes, factors = E2M1[nibbles(leaves["weight_packed"])], fp8(scales)
        return codes * wide(factors / leaves["weight_global_scale"], codes.shape[1])
    if form == "mxfp4-pack-quantized":
        codes = E2M1[nibbles(leaves["weight_packed"])]
        return codes * wide(powers(scales), codes.shape[1])
    if form == "mxfp8-quantized":
        return fp8(leaves["weight"]) * wide(powers(scales), leaves["weight"].shape[1])
    if form == "pack-quantized":
        rows, columns = leaves["weight_shape"].tolist()
        numbers = word(leaves["weight_packed"], args.num_bits)[:, :columns].float()
        zeros = torch.tensor(float(1 << args.num_bits - 1))
        if "weight_zero_point" in leaves:
            zeros = wide(word(leaves["weight_zero_point"].T, args.num_bits).T[:rows], columns)
        return (numbers - zeros) * wide(scales, columns)
    weight = leaves["weight"]
    codes = weight.float() if weight.dtype == torch.int8 else fp8(weight)
    if args.strategy == "block":  # the last may be a part of one
        scales = scales.float().repeat_interleave(args.block_structure[0], 0)[: len(codes)]
    return codes * (scales.float() if scales.dim() == 1 else wide(scales, codes.shape[1]))


# GPTQ, AWQ, Quark, from the descriptions


def gptq(
    weight: Tensor, bits: int = 4, group: int = 32, sym: bool = True, v1: bool = True,
    order: Tensor | None = None,
) -> tuple[Leaves, Tensor]:  # fmt: skip
    """order: the group of every column; None: groups are neighbours."""
    columns, most = weight.shape[1], (1 << bits) - 1
    group = columns if group == -1 else group
    order = torch.arange(columns) // group if order is None else order
    blocks = [weight[:, order == g] for g in range(-(-columns // group))]  # the last may be shorter
    least, largest = (torch.stack([f(b, 1) for b in blocks], 1) for f in (torch.amin, torch.amax))
    if sym:
        scales = (torch.maximum(-least, largest) / (most / 2)).half()
        zeros = torch.full(scales.shape, float(1 << bits - 1))
    else:
        scales = ((largest - least) / most).half()
        zeros = (-least / scales.float()).round().clamp(1, most)
    factor, zero = scales.float()[:, order], zeros[:, order]
    numbers = (weight / factor + zero).round().clamp(0, most)
    leaves = {
        "qweight": as_words(numbers, bits).T,
        "qzeros": as_words(zeros.T - int(v1), bits),
        "scales": scales.T,
        "g_idx": order.int(),
    }
    return leaves, (numbers - zero) * factor


def awq(weight: Tensor, group: int = 32) -> tuple[Leaves, Tensor]:
    blocks = weight.unflatten(1, (-1, group))
    scales = ((blocks.amax(2) - blocks.amin(2)) / 15).half()
    zeros = (-blocks.amin(2) / scales.float()).round().clamp(0, 15)
    numbers = (weight / wide(scales, weight.shape[1]) + wide(zeros, weight.shape[1])).round()
    numbers = numbers.clamp(0, 15)

    def words(whole: Tensor) -> Tensor:  # K,N: slot j of a word holds the column 0 2 4 6 1 3 5 7
        return as_words(whole.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1), 4)

    leaves = {"qweight": words(numbers.T), "qzeros": words(zeros.T), "scales": scales.T}
    exact = (numbers - wide(zeros, weight.shape[1])) * wide(scales, weight.shape[1])
    return leaves, exact


def fbgemm(weight: Tensor) -> tuple[Leaves, Tensor]:
    scales = weight.abs().amax(1, True) / 448
    codes = (weight / scales).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales}, fp8(codes) * scales


def mlx(weight: Tensor, bits: int = 4, group: int = 32) -> tuple[Leaves, Tensor]:
    """A step and the least value of each group, in bf16; words have the first number lowest."""
    blocks = weight.unflatten(1, (-1, group))
    least, most = blocks.amin(2), (1 << bits) - 1
    scales = ((blocks.amax(2) - least) / most).bfloat16()
    biases = least.bfloat16()
    factor, base = wide(scales, weight.shape[1]), wide(biases, weight.shape[1])
    numbers = ((weight - base) / factor).round().clamp(0, most)
    leaves = {
        "weight": as_words(numbers, bits).view(torch.uint32), "scales": scales, "biases": biases,
    }  # fmt: skip
    return leaves, (numbers.double() * factor + base).float()  # exact before it is rounded


def int8(weight: Tensor) -> tuple[Leaves, Tensor]:
    """bitsandbytes' tensors."""
    largest = weight.abs().amax(1)
    codes = (weight / largest[:, None] * 127).round().to(torch.int8)
    leaves = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0).byte()}
    return leaves, codes.float() * (largest / 127)[:, None]


def nvfp4(weight: Tensor) -> tuple[Leaves, Tensor]:
    """ModelOpt's tensors."""
    shared = weight.abs().amax() / (6 * 448)
    blocks = weight.unflatten(1, (-1, 16))
    scales = (blocks.abs().amax(2) / 6 / shared).to(torch.float8_e4m3fn)
    factor = wide(fp8(scales) * shared, weight.shape[1])
    codes = ((weight / factor)[..., None] - E2M1).abs().argmin(-1)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    leaves = {"weight": packed, "weight_scale": scales, "weight_scale_2": shared}
    return leaves, E2M1[codes] * factor


def fp8_tensor(weight: Tensor) -> tuple[Leaves, Tensor]:
    """ModelOpt's tensors."""
    scale = weight.abs().amax() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, fp8(codes) * scale


def mxfp4(weight: Tensor, seed: int = 0) -> tuple[Leaves, Tensor]:
    """Quark's tensors; of codes every one, whatever the weight was."""
    rows, columns = weight.shape
    random = torch.Generator().manual_seed(seed)
    packed = torch.randint(256, (rows, columns // 2), generator=random, dtype=torch.uint8)
    scales = torch.randint(120, 124, (rows, columns // 32), generator=random, dtype=torch.uint8)
    exact = E2M1[nibbles(packed)] * wide(powers(scales), columns)
    return {"weight": packed, "weight_scale": scales}, exact


GPTQ = {
    "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True,
    "checkpoint_format": "gptq", "damp_percent": 0.1, "true_sequential": True, "lm_head": False,
    "pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:2.0"]}, "static_groups": False,
}  # fmt: skip
AWQ = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": None,
}  # fmt: skip
FBGEMM = {
    "quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": [],
}  # fmt: skip
ROUNDED = {
    "data_type": "int", "iters": 200, "autoround_version": "0.5.1", "lr": 0.005, "seqlen": 512,
    "low_gpu_mem_usage": True, "scale_dtype": "torch.float16", "act_bits": 16, "amp": True,
}  # fmt: skip
AUTO_ROUND = {
    "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4,
    "group_size": 32, "sym": True, "block_name_to_quantize": "model.layers", **ROUNDED,
}  # fmt: skip
INT8 = {
    "quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False,
    "_load_in_8bit": True, "_load_in_4bit": False, "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "fp4", "llm_int8_threshold": 6.0,
    "bnb_4bit_use_double_quant": False, "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": None,
}  # fmt: skip
MLX = {"group_size": 32, "bits": 4, "mode": "affine"}
QUARK_WEIGHT = {
    "dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "ch_axis": -1,
    "is_dynamic": False, "observer_cls": "PerBlockMXObserver", "round_method": "half_even",
    "scale_type": "float", "scale_calculation_mode": "even", "symmetric": None,
}  # fmt: skip
QUARK = {
    "quant_method": "quark", "quant_mode": "eager_mode", "version": "0.8", "exclude": ["lm_head"],
    "global_quant_config": {
        "weight": QUARK_WEIGHT, "input_tensors": {**QUARK_WEIGHT, "is_dynamic": True},
        "output_tensors": None, "bias": None, "target_device": None,
    },
    "layer_quant_config": {}, "layer_type_quant_config": {}, "kv_cache_quant_config": {},
    "export": {"pack_method": "reorder", "weight_format": "real_quantized", "kv_cache_group": []},
    "algo_config": None, "softmax_quant_spec": None, "kv_cache_post_rope": False,
}  # fmt: skip


def shuffled(columns: int, group: int) -> Tensor:
    """Return groups of columns in disorder, as desc_act leaves them."""
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
    return (torch.arange(columns) // group)[order]


def disordered(weight: Tensor) -> tuple[Leaves, Tensor]:
    return gptq(weight, order=shuffled(weight.shape[1], 32))


def compressed(preset: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple:
    """Return a quantization_config of compressed-tensors, and what packs a weight so."""
    scheme = scheme_of(preset, **changes)
    return settings_of(preset, **changes), partial(by_compressed_tensors, scheme, dtype)
