"""Checkpoints that others quantized are what their numbers mean, bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import quantized_files as files
import torch
from fp8_files import CONFIG
from quantized_files import compressed, quantized, small, write
from tiny import defined, ours, prompt
from torch import Tensor

from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.streams import values
from lmcast.graphs.sources import Packed

BF16 = torch.bfloat16
CASES: dict[str, Any] = {
    "int4": lambda: compressed("W4A16", BF16, group_size=32),
    "int4, asymmetric": lambda: compressed("W4A16_ASYM", group_size=32),
    "int4, rows": lambda: compressed("W4A16", strategy="channel", group_size=None),
    "int8 in words": lambda: compressed("W8A16", BF16, group_size=64),
    "int8": lambda: compressed("W8A8"),
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
    "quark": lambda: (files.QUARK, files.mxfp4),
}  # fmt: skip
# What cannot stay as it is: a group of columns is no run of them.
VALUES_ONLY = {"gptq, desc_act"}


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
