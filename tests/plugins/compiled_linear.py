"""Launches of linear attention and short convolutions at the sizes of released models."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lmcast.plugins.launch.step import Step
from lmcast.plugins.linear import causal_conv_triton, linear_attention_triton


class Sizes(NamedTuple):
    """Heads of values, of queries and keys, and the widths of keys and of values."""

    heads: int
    groups: int
    width: int
    value_width: int
    delta: bool = True
    channels: bool = False


QWEN3_NEXT = Sizes(32, 16, 128, 128)
KIMI_LINEAR = Sizes(32, 32, 128, 128, channels=True)
MAMBA2 = Sizes(80, 8, 128, 64, delta=False)


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def linear(dtype: torch.dtype, tokens: int, sizes: Sizes) -> list[Step]:
    heads, groups, width, value_width, delta, channels = sizes
    decays = heads * width if channels else heads
    return linear_attention_triton.steps(
        empty(dtype, 1, tokens, groups * width),
        empty(dtype, 1, tokens, groups * width),
        empty(dtype, 1, tokens, heads * value_width),
        empty(torch.float32, 1, heads, width, value_width),
        empty(torch.float32, 1, tokens, decays),
        empty(torch.int64, 1),
        empty(dtype, 1, tokens, heads) if delta else None,
        delta,  # only delta rules divide queries and keys by their length
        channels,
        1.0,
    )[0]


def conv(dtype: torch.dtype, tokens: int, channels: int, bias: bool) -> list[Step]:
    counts, biases = empty(torch.int64, 1), empty(dtype, channels) if bias else None
    inputs = (empty(dtype, 1, tokens, channels), empty(dtype, channels, 1, 4))
    past = empty(dtype, 1, 3, channels)
    return causal_conv_triton.steps(*inputs, past, counts, biases, True)[0]


def linear_steps() -> Iterator[Step]:
    """Every kernel and each way to compile it that changes more than a size."""
    for sizes in (QWEN3_NEXT, KIMI_LINEAR, MAMBA2):
        yield from linear(torch.bfloat16, 1, sizes)
        yield from linear(torch.bfloat16, 4096, sizes)
    yield from linear(torch.float32, 4096, QWEN3_NEXT)
    yield linear(torch.float32, 4096, KIMI_LINEAR)[0]  # pairs of tokens alone
    yield from conv(torch.bfloat16, 1, 8192, bias=False)
    yield from conv(torch.bfloat16, 4096, 8192, bias=True)
