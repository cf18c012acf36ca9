"""A short causal convolution of every channel on its own, with what it carries from call to call.

Letters: B batch, T new tokens, D channels, W taps. As CausalConvWithState of ONNX opset 27, but
with channels last, as ONNX Runtime has it too: so lie the activations of language models.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmcast.plugins.plugin import Close, Plugin, rounded, triton


def eager(
    x: Tensor,
    weight: Tensor,
    past: Tensor,
    token_counts: Tensor,
    bias: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """`out[t] = sum_w weight[w] * x[t - W + 1 + w] + bias`, and the last W - 1 inputs of each row.

    x B,T,D; weight D,1,W; past B,W-1,D: the inputs before the call, oldest first; token_counts B
    int64: valid tokens of each row (padded on the right); bias D or None. silu: of what comes out.
    -> B,T,D and the inputs that the next call needs.
    """
    taps = weight.shape[2]
    whole = torch.cat([past, x], 1)  # B,W-1+T,D
    out = F.conv1d(whole.mT, weight, bias, groups=weight.shape[0]).mT.contiguous()
    last = token_counts[:, None] + torch.arange(taps - 1, device=x.device)  # B,W-1
    present = whole.gather(1, last[:, :, None].expand(-1, -1, x.shape[2]))
    return F.silu(out) if silu else out, present


def shapes(x: Tensor, weight: Tensor, past: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(past)


# From x, past and token_counts to `whole` B,W-1+T,D and the inputs to carry on.
CARRY = """whole = Concat <axis = 1> (past, x)
    first = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [2]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    carried = Shape <start = 1, end = 2> (past)
    carried_count = Squeeze (carried)
    step = Range (zero, carried_count, one)
    counts = Unsqueeze (token_counts, first)
    at = Add (counts, step)
    place = Unsqueeze (at, last)
    present = GatherND <batch_dims = 1> (whole, place)"""
# What every token sees, B,T,W,D, times the taps: a Conv would need D as an attribute.
WINDOWS = """tokens = Shape <start = 1, end = 2> (x)
    token_count = Squeeze (tokens)
    token = Range (zero, token_count, one)
    token_column = Unsqueeze (token, first)
    tap_count = Add (carried_count, one)
    tap = Range (zero, tap_count, one)
    seen = Add (token_column, tap)
    windows = Gather <axis = 1> (whole, seen)
    taps = Transpose <perm = [1, 2, 0]> (weight)
    products = Mul (windows, taps)
    sum = ReduceSum <keepdims = 0> (products, last)"""


def head(bias: bool) -> str:
    """Return the signature of the body."""
    inputs = f"x, weight, past, token_counts{', bias' if bias else ''}"
    return f"causal_conv <silu> ({inputs}) => (out, present)"


def body(given: Mapping[str, Any]) -> str:
    bias = given["bias"] is not None
    shifted = "shifted = Add (sum, bias)" if bias else "shifted = Identity (sum)"
    act = "out = Identity (shifted)"
    if given["silu"]:
        act = "open = Sigmoid (shifted)\n    out = Mul (shifted, open)"
    return f"""{head(bias)} {{
    {CARRY}
    {WINDOWS}
    {shifted}
    {act}
}}"""


def case(counts: list[int], channels: int, taps: int, bias: bool, silu: bool) -> tuple:
    """Return arguments for rows of so many tokens."""
    batch, tokens = len(counts), max(counts)
    return (
        torch.randn(batch, tokens, channels),
        torch.randn(channels, 1, taps) / taps**0.5,
        torch.randn(batch, taps - 1, channels),
        torch.tensor(counts),
        torch.randn(channels) if bias else None,
        silu,
    )


def cases() -> list[tuple]:
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
