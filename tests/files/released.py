"""Names, shapes and dtypes of the tensors of a release, from its config.json: plain ones as Hugging
Face writes the model of that config on meta, quantized ones as the format's description has them.
"""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from math import prod

import torch
from real_configs import Config, as_text, hugging_face
from tiny import CLASSES, HUB_NAMES

from lmcast.graphs import archs
from lmcast.graphs.archs.multimodal import Multimodal
from lmcast.graphs.weights.text_names import HUB, MODULES

Shape = tuple[int, ...]
Stored = dict[str, tuple[Shape, torch.dtype]]
# What is stored in place of a weight N,K or E,N,K, by the ends of names.
Pack = Callable[[str, Shape], Stored]
F8, F32, BF16 = torch.float8_e4m3fn, torch.float32, torch.bfloat16
# Matrices that no format quantizes, and that no section need list: not of an nn.Linear, or no
# product of theirs is worth it.
NEVER = re.compile(r"(embed_tokens|embeddings|norm\w*|gate|router|conv1d|lm_head|weights_proj)$")


def as_released(config: Config) -> Callable[[str], str]:
    """Return what names the tensors of a text as the release of a config has them."""
    arch = archs.get(archs.name_of(config))
    if not isinstance(arch, Multimodal):
        return lambda name: name
    return MODULES if arch.beside == ("visual",) else HUB


def plain(config: Config) -> Stored:
    """Return the tensors of a release in bfloat16."""
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    kind = as_text(config)["model_type"]
    with torch.device("meta"):
        model = getattr(transformers, CLASSES[kind][1])(hugging_face(config))
        tensors = revert_weight_conversion(model, model.state_dict())
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    named, hub = as_released(config), HUB_NAMES.get(kind, str)
    stored: Stored = {named(hub(name)): (tuple(t.shape), BF16) for name, t in tensors.items()}
    return one_by_one(stored) if as_text(config).get("for_llm_compressor") else stored


def one_by_one(tensors: Stored) -> Stored:
    """Return them with in-first stacks of experts E,K,N unfolded, gate before up."""
    out: Stored = {}
    for name, (shape, dtype) in tensors.items():
        module, _, leaf = name.rpartition(".")
        if not module.endswith(".experts"):
            out[name] = shape, dtype
            continue
        parts = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
        experts, columns, rows = shape
        for part in (f"{e}.{part}" for e in range(experts) for part in parts):
            out[f"{module}.{part}.weight"] = (rows // len(parts), columns), dtype
    return out


def left_out(module: str, listed: Iterable[str]) -> bool:
    """Tell whether a list of modules, patterns and regular expressions names a module."""
    return any(
        re.match(entry.removeprefix("re:"), module) is not None
        if entry.startswith("re:")
        else fnmatchcase(module, entry) or module.startswith(f"{entry}.")
        for entry in listed
    )


def block_fp8(name: str, shape: Shape) -> Stored:
    scales = (*shape[:-2], *(-(-size // 128) for size in shape[-2:]))
    return {name: (shape, F8), f"{name}_scale_inv": (scales, F32)}


def tensor_fp8(name: str, shape: Shape) -> Stored:
    module = name.removesuffix(".weight")
    return {
        name: (shape, F8),
        f"{name}_scale_inv": ((), BF16),
        f"{module}.activation_scale": ((), BF16),
    }


def packed_int4(name: str, shape: Shape) -> Stored:
    module, (rows, columns) = name.removesuffix(".weight"), shape
    return {
        f"{module}.weight_packed": ((rows, columns // 8), torch.int32),
        f"{module}.weight_scale": ((rows, columns // 32), BF16),
        f"{module}.weight_shape": ((2,), torch.int32),
    }


def modelopt_fp8(name: str, shape: Shape) -> Stored:
    module = name.removesuffix(".weight")
    scales = {f"{module}.{x}_scale": ((), F32) for x in ("weight", "input")}
    return {name: (shape, F8), **scales}


def nvfp4(name: str, shape: Shape) -> Stored:
    module, (rows, columns) = name.removesuffix(".weight"), shape
    return {
        name: ((rows, columns // 2), torch.uint8),
        f"{module}.weight_scale": ((rows, columns // 16), F8),
        f"{module}.weight_scale_2": ((), F32),
        f"{module}.input_scale": ((), F32),
    }


def nvfp4_weights(name: str, shape: Shape) -> Stored:
    return {n: tensor for n, tensor in nvfp4(name, shape).items() if not n.endswith("input_scale")}


def row_fp8(name: str, shape: Shape) -> Stored:
    return {name: (shape, F8), f"{name}_scale": ((shape[0], 1), F32)}


MODELOPT: dict[str, Pack] = {
    "FP8": modelopt_fp8,
    "NVFP4": nvfp4,
    "W4A16_NVFP4": nvfp4_weights,
}
PACKS: dict[str, Pack] = {
    "fbgemm_fp8": row_fp8,
    "float-quantized": row_fp8,  # of compressed-tensors, as the next
    "pack-quantized": packed_int4,
}


def pack_of(section: Config, module: str) -> Pack | None:
    """Return how a section says that a module is stored; None: plainly."""
    method, algorithm = section.get("quant_method", "modelopt"), section.get("quant_algo", "")
    listed = section.get("ignore") or section.get("modules_to_not_convert") or ()
    if algorithm == "MIXED_PRECISION":
        layers = section["quantized_layers"]
        within = (layers[name] for name in layers if f"{module}.".startswith(f"{name}."))
        layer = next(within, None)
        return MODELOPT[layer["quant_algo"]] if layer else None
    if NEVER.search(module) or left_out(module, listed):
        return None
    if method == "fp8":
        return block_fp8 if section.get("weight_block_size") else tensor_fp8
    return MODELOPT[algorithm] if method == "modelopt" else PACKS[section.get("format", method)]


def quantized(tensors: Stored, section: Config) -> tuple[Stored, set[str]]:
    """Return the tensors of a quantized release, and the names of its quantized weights."""
    if section.get("quant_method") == "mxfp4":
        return mxfp4(tensors)
    out: Stored = {}
    weights = set()
    for name, (shape, dtype) in tensors.items():
        module = name.removesuffix(".weight")
        pack = pack_of(section, module) if module != name and len(shape) == 2 else None
        if pack is None:
            out[name] = shape, dtype
        else:
            out |= pack(name, shape)
            weights.add(name)
    return out, weights


def mxfp4(tensors: Stored) -> tuple[Stored, set[str]]:
    """Return them with the experts of gpt-oss in blocks of 32, from in-first stacks E,K,N."""
    out, weights = dict(tensors), set()
    for name in [n for n in tensors if n.endswith("_proj") and ".experts." in n]:
        (experts, columns, rows), _ = out.pop(name)
        blocks = (experts, rows, columns // 32)
        out[f"{name}_blocks"] = (*blocks, 16), torch.uint8
        out[f"{name}_scales"] = blocks, torch.uint8
        weights.add(f"{name}_blocks")
    return out, weights


def size(tensors: Stored) -> int:
    """Return how many numbers they hold."""
    return sum(prod(shape) for shape, _ in tensors.values())
