"""What MLX writes is what its numbers mean, bit for bit."""

from hashlib import sha256
from itertools import product
from typing import Any

import pytest
import torch
from files import quantized as files
from files.fp8 import CONFIG
from files.quantized import quantized, small, write
from tiny import defined, ours, prompt

from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.weights.values import values
from lmcast.graphs import ConfigError, load
from lmcast.graphs.layouts.catalogue import take
from lmcast.graphs.layouts.tensors import Tensors

# 64 numbers in fp16 as mlx.core 0.32.4 quantizes them in groups of 32: bits, the bytes of words,
# scales and biases, and of what it dequantizes in fp32 the first numbers and the SHA-256 of all.
BY_MLX: list[tuple[int, str, str, str, list[float], str]] = [
    (
        4, "6f4c1ae8c593715d2b09d6a4826e3c1ae7b592604d2af8c6a3715e3b09d7b482", "4db433b4",
        "60414041", [-1.344482421875, 1.07470703125, -0.5380859375, 1.6123046875],
        "ea4ed5d933b1db5a",
    ),
    (
        8, "ff69d641ae1886f35dca35a20c79e751be2896006ddb45b21c8af761ce39a610"
        "7eef54c52a9b0071e247b81d8eff65d63bac1182f358c92e9f0475e64bbd2293", "e8a3a3a3",
        "60414041", [-1.25018310546875, 1.06610107421875, -0.6170654296875, 1.68377685546875],
        "d65dadab7c3ec995",
    ),
]  # fmt: skip


@pytest.mark.parametrize("recorded", BY_MLX, ids=["4", "8"])
def test_numbers_that_mlx_itself_stored(recorded):
    bits, words, scales, biases, first, digest = recorded
    made = (
        torch.frombuffer(bytearray.fromhex(text), dtype=dtype)[None]
        for text, dtype in ((words, torch.uint32), (scales, torch.half), (biases, torch.half))
    )
    stored = dict(zip(("m.weight", "m.scales", "m.biases"), made, strict=True))
    known = Tensors({n: tuple(t.shape) for n, t in stored.items()},
                    {n: t.dtype for n, t in stored.items()})  # fmt: skip
    found, _ = take("llama", {"quantization": {"group_size": 32, "bits": bits}}, known, False)
    got = found.layouts["m.weight"].values(lambda name, begin, end: stored[name][begin:end], 0, 1)
    assert got[0, :4].tolist() == first
    assert sha256(got.numpy().tobytes()).hexdigest().startswith(digest)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3/bias, tied", "qwen3_moe/plain"])
def test_what_mlx_writes(name, tmp_path):
    """Embeddings and routers are quantized too, experts are stacks; the section is there twice."""
    config, tensors = small(name, tmp_path / "plain")
    stored, exact = quantized(tensors, files.mlx, lambda weight: "experts" not in weight)
    more = [n for n in tensors if n.endswith(("embed_tokens.weight", "mlp.gate.weight"))]
    own: dict[str, Any] = {}
    for weight in more:
        module = weight.removesuffix(".weight")
        leaves_of, exact[weight] = files.mlx(stored.pop(weight), 8, 64)
        stored |= {f"{module}.{leaf}": value for leaf, value in leaves_of.items()}
        own[module] = {"group_size": 64, "bits": 8}
    for layer, matrix in product(range(2), ("gate_proj", "up_proj", "down_proj")):
        experts = f"model.layers.{layer}.mlp.experts."
        names = [n for n in tensors if n.startswith(experts) and f".{matrix}." in n]
        made = [files.mlx(stored.pop(n)) for n in names]
        exact |= {n: value for n, (_, value) in zip(names, made, strict=True)}
        for leaf in made[0][0] if made else ():
            module = f"model.layers.{layer}.mlp.switch_mlp.{matrix}"
            stored[f"{module}.{leaf}"] = torch.stack([leaves_of[leaf] for leaves_of, _ in made])
    section = files.MLX | own | {"lm_head": False}
    made = write(tmp_path / "made", config | {CONFIG: section, "quantization": section}, stored)
    assert torch.equal(load(made)(prompt()), ours(config, exact)(prompt()))
    source = open_checkpoint(made)
    wanted = dict(ours(config, exact).named_parameters())
    for parameter, origin in defined(source.config, source.tensors).binding.sources.items():
        got = torch.cat([block.flatten() for block in values(source, origin)]).float()
        assert torch.equal(got.reshape(wanted[parameter].shape), wanted[parameter]), parameter
    alone = {**config, "quantization": section}
    assert torch.equal(ours(alone, stored)(prompt()), ours(config, exact)(prompt()))
    with pytest.raises(ConfigError, match="quantization_config and quantization differ"):
        defined(config | {CONFIG: section, "quantization": section | {"bits": 8}}, stored)


def test_architectures_whose_tensors_mlx_changes_are_refused(tmp_path):
    config, tensors = small("qwen3_next/plain", tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"qwen3_next: .* is of mlx, which changes tensors of th"):
        defined(config | {"quantization": files.MLX}, tensors)
