"""FP8 checkpoints made of plain ones, and an independent reading of what they hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from lmcast.graphs.weights.quantized import Block

CONFIG = "quantization_config"
LARGEST = 448.0  # of E4M3
RAGGED = (24, 20)  # divides few of the sizes of tiny models
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
STATIC = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}

# The numbers from their bits, the products in fp64, where they are exact.


def e4m3(bits: np.ndarray) -> np.ndarray:
    sign = np.where(bits & 0x80, -1.0, 1.0)
    exponent, fraction = (bits >> 3 & 15).astype(int), bits & 7
    magnitude = np.where(exponent, 1 + fraction / 8, fraction / 8)
    return sign * magnitude * 2.0 ** (np.maximum(exponent, 1) - 7)


def worked_out(weight: Tensor, scales: Tensor, block: Block | None) -> Tensor:
    """Return weight times scales in fp32, rounded once."""
    numbers = e4m3(weight.view(torch.uint8).numpy())
    if scales.dtype == torch.float8_e8m0fnu:
        factors = 2.0 ** (scales.view(torch.uint8).numpy().astype(int) - 127)
    else:
        factors = scales.double().numpy()
    if block is not None:
        factors = factors.repeat(block[0], -2).repeat(block[1], -1)
        factors = factors[..., : numbers.shape[-2], : numbers.shape[-1]]
    return torch.from_numpy((numbers * factors).astype(np.float32))


def codes(*shape: int, seed: int = 0) -> Tensor:
    """Return every E4M3 number in turn, shuffled, but for NaN."""
    every = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    count = torch.Size(shape).numel()
    mixed = every.repeat(-(-count // len(every)))[:count]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return mixed[order].reshape(shape).view(torch.float8_e4m3fn)


def factors(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return scales; of E8M0 also the least, and the largest whose products fp32 holds."""
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1
    if dtype != torch.float8_e8m0fnu:
        return drawn.to(dtype)
    exponents = (255 * drawn).clamp(0, 246).to(torch.uint8)
    exponents.view(-1)[0], exponents.view(-1)[-1] = 0, 246
    return exponents.view(dtype)


def grid(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def quantizable(name: str, weight: Tensor) -> bool:
    """Tell what files have in FP8: the matrices of layers, but for those that route."""
    left = ("embed_tokens", "lm_head", ".gate.weight", "router", "weights_proj", "vision_tower")
    return weight.dim() > 1 and "layers" in name and not any(part in name for part in left)


def in_fp8(
    plain: dict[str, Tensor],
    block: Block | None,
    dtype: torch.dtype = torch.float32,
    also: tuple[str, ...] = (),
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return tensors with weights in FP8, and the same with the numbers that these are.

    also: parts of the names of further matrices that become FP8.
    """
    packed, exact = dict(plain), dict(plain)
    for name, weight in plain.items():
        if not quantizable(name, weight) and not (
            weight.dim() > 1 and any(a in name for a in also)
        ):
            continue
        shape, split = tuple(weight.shape), block or (weight.shape[-2], weight.shape[-1])
        padded = [n * size for n, size in zip(grid(shape, split)[-2:], split, strict=True)]
        whole = torch.zeros(*shape[:-2], *padded)
        whole[..., : shape[-2], : shape[-1]] = weight
        rows = whole.unflatten(-2, (-1, split[0])).unflatten(-1, (-1, split[1]))
        scales = rows.abs().amax((-3, -1)) / LARGEST
        if dtype == torch.float8_e8m0fnu:
            scales = 2.0 ** scales.log2().ceil()
        scales = scales.to(dtype)
        wide = scales.float().repeat_interleave(split[0], -2).repeat_interleave(split[1], -1)
        quotient = weight / wide[..., : shape[-2], : shape[-1]]
        packed[name] = quotient.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        if block is None and weight.dim() == 2:
            scales = scales.reshape(())
        packed[f"{name}_scale_inv"] = scales
        exact[name] = worked_out(packed[name], scales, block)
    return packed, exact


def save(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def blocks(size: Block, **more: Any) -> dict[str, Any]:
    return {**FP8, "weight_block_size": list(size), **more}


def with_activations(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the scales of activations that a static scheme stores."""
    found = dict(tensors)
    for name, scales in tensors.items():
        if name.endswith(".weight_scale_inv"):
            found[name.replace("weight_scale_inv", "activation_scale")] = torch.tensor(0.5)
        elif name.endswith("_scale_inv"):
            found[name.replace("scale_inv", "activation_scale")] = torch.ones(len(scales))
    return found
