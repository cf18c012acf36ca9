"""Depthwise causal convolution with a short kernel, and the inputs that it carries between calls.

Letters: B batch, T new tokens, D channels, W taps. As CausalConvWithState of ONNX opset 27, but
channels last, as activations of language models are, and as in ONNX Runtime.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmcast.plugins.onnx_builder import Attribute, Builder, Value
from lmcast.plugins.plugin import Close, Plugin, rounded, triton


def eager(
    x: Tensor,
    weight: Tensor,
    past: Tensor,
    token_counts: Tensor,
    bias: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """`out[t] = sum_w weight[w] * x[t - W + 1 + w] + bias`, with the last W - 1 inputs of each row
    as state.

    x: B,T,D.
    weight: D,1,W.
    past: B,W-1,D, the inputs before the call, oldest first.
    token_counts: B int64, valid tokens of each row; rows are padded on the right.
    bias: D or None.
    silu: whether SiLU is applied to the sum.

    Returns B,T,D and the inputs that the next call needs, B,W-1,D.
    """
    taps = weight.shape[2]
    whole = torch.cat([past, x], 1)  # B,W-1+T,D
    out = F.conv1d(whole.mT, weight, bias, groups=weight.shape[0]).mT.contiguous()
    last = token_counts[:, None] + torch.arange(taps - 1, device=x.device)  # B,W-1
    present = whole.gather(1, last[:, :, None].expand(-1, -1, x.shape[2]))
    return F.silu(out) if silu else out, present


def shapes(x: Tensor, weight: Tensor, past: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(past)


def carried(op: Builder, x: Value, past: Value, token_counts: Value) -> tuple[Value, Value]:
    """Return the old and the new inputs of each row, B,W-1+T,D, and those that it carries on."""
    whole = op.Concat(past, x, axis=1)
    last = op.Unsqueeze(token_counts, [1]) + op.range(op.size(past, 1))  # B,W-1
    return whole, op.GatherND(whole, op.Unsqueeze(last, [2]), batch_dims=1)


def body(
    op: Builder,
    x: Value,
    weight: Value,
    past: Value,
    token_counts: Value,
    bias: Value | None,
    silu: Attribute,
) -> tuple[Value, Value]:
    """A sum over taps of shifted inputs: Conv would need D, which is no attribute here."""
    whole, present = carried(op, x, past, token_counts)
    tap = op.range(op.size(weight, 2))
    seen = op.Unsqueeze(op.range(op.size(x, 1)), [1]) + tap  # T,W
    windows = op.Gather(whole, seen, axis=1)  # B,T,W,D
    products = windows * op.Transpose(weight, perm=[1, 2, 0])
    out = op.ReduceSum(products, [2], keepdims=0)
    if bias is not None:
        out = out + bias
    return out * op.Sigmoid(out) if silu.value else out, present


def case(counts: list[int], channels: int, taps: int, bias: bool, silu: bool) -> tuple[Any, ...]:
    """Return arguments for rows with these token counts."""
    batch, tokens = len(counts), max(counts)
    return (
        torch.randn(batch, tokens, channels),
        torch.randn(channels, 1, taps) / taps**0.5,
        torch.randn(batch, taps - 1, channels),
        torch.tensor(counts),
        torch.randn(channels) if bias else None,
        silu,
    )


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    return [
        case([9, 4], 12, 4, False, True),  # ragged; Qwen3-Next, Kimi Linear
        case([1, 1], 8, 4, True, True),  # decode; Mamba-2
        case([2, 0], 8, 4, False, True),  # fewer tokens than taps, and none
        case([5], 6, 2, True, False),
        case([3, 1], 4, 1, True, True),  # one tap: nothing is carried
    ]


causal_conv = Plugin(
    name="causal_conv",
    eager=eager,
    shapes=shapes,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # 20 fp32 epsilons: sums of up to 5 products near 1. In short dtypes, the result is rounded.
    close={torch.float32: Close(2.4e-6), **rounded(1)},
)
