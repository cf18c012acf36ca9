"""Attention whose memory is a matrix for each head, as ONNX defines it in opset 27.

Letters: B batch, T new tokens, H heads of values, G heads of queries and keys, K their width, V
width of values, C tokens of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.linear.onnx_body import EPS, body
from lmcast.plugins.plugin import Close, Plugin, rounded, triton


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor,
    decay: Tensor,
    token_counts: Tensor,
    beta: Tensor | None,
    normalize: bool,
    channels: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Recurrent linear attention: the state S of each head is updated, then read, token by token.

    `S = exp(decay) S + k v^T`, or with beta `S = exp(decay) S; S = S + beta k (v - S^T k)^T`, the
    gated delta rule (arXiv 2412.06464); then `out = scale * S^T q`, all in fp32. Per channel, decay
    multiplies the rows of S (arXiv 2510.26692).

    query, key: B,T,G*K; head h uses those of group h // (H / G).
    value: B,T,H*V.
    past_state: B,H,K,V fp32.
    decay: at most 0; B,T,H fp32, or B,T,H*K where `channels`.
    token_counts: B int64, valid tokens of each row (padded on the right); others change no state.
    beta: B,T,H or None.
    normalize: queries and keys are divided by their length first.

    Returns B,T,H*V in value's dtype, and the state after the call.
    """
    heads, width = past_state.shape[1:3]
    wide = torch.promote_types(value.dtype, torch.float32)

    def split(x: Tensor) -> Tensor:
        x = x.to(wide).unflatten(-1, (-1, width))  # B,T,G,K
        if normalize:
            x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)
        return x.repeat_interleave(heads // x.shape[2], 2)

    q, k, v = split(query) * scale, split(key), value.to(wide).unflatten(-1, (heads, -1))
    kept = decay.to(wide).unflatten(-1, (heads, -1)).exp()  # B,T,H,1 or B,T,H,K
    state, out = past_state.to(wide), torch.empty_like(v)
    for t in range(query.shape[1]):
        new = state * kept[:, t, :, :, None]
        told = v[:, t]  # B,H,V
        if beta is not None:
            known = (new * k[:, t, :, :, None]).sum(-2)
            told = (told - known) * beta[:, t, :, None].to(wide)
        new = new + k[:, t, :, :, None] * told[:, :, None]
        state = torch.where((t < token_counts)[:, None, None, None], new, state)
        out[:, t] = (state * q[:, t, :, :, None]).sum(-2)
    return out.flatten(-2).to(value.dtype), state.clone()


def shapes(
    query: Tensor, key: Tensor, value: Tensor, past_state: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(value.dtype, torch.float32)
    return torch.empty_like(value), torch.empty_like(past_state, dtype=wide)


def case(
    counts: list[int],
    sizes: tuple[int, int, int, int],
    delta: bool = True,
    normalize: bool = False,
    channels: bool = False,
    scale: float = 1.0,
) -> tuple[Any, ...]:
    """Return arguments for rows with these token counts; sizes: H, G, K, V. Keys are near 1."""
    heads, groups, width, value_width = sizes
    batch, tokens = len(counts), max(counts)
    key = torch.randn(batch, tokens, groups, width)
    key = key if normalize else key / key.norm(dim=-1, keepdim=True)
    decays, strength = heads * width if channels else heads, torch.tensor([0.01, 1.0, 8.0])
    return (
        torch.randn(batch, tokens, groups * width),
        key.flatten(-2),
        torch.randn(batch, tokens, heads * value_width),
        torch.randn(batch, heads, width, value_width),
        -torch.rand(batch, tokens, decays) * strength[torch.randint(3, (batch, tokens, decays))],
        torch.tensor(counts),
        torch.rand(batch, tokens, heads) if delta else None,
        normalize,
        channels,
        scale,
    )


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    return [
        case([9, 4], (4, 2, 8, 16), normalize=True, scale=0.35),  # ragged; Qwen3-Next
        case([1, 1, 1], (6, 3, 16, 8), normalize=True),  # decode
        case([65, 64], (2, 2, 8, 8), normalize=True),  # a chunk, and one token of the next
        case([130], (3, 1, 8, 12), normalize=True, scale=0.5),  # three chunks
        case([9, 4], (4, 4, 8, 16), normalize=True, channels=True),  # ragged; Kimi Linear
        case([33, 1], (2, 2, 16, 8), channels=True, scale=0.25),  # three chunks
        case([1], (2, 1, 8, 8), channels=True),  # decode
        case([70, 3], (4, 2, 8, 16), delta=False),  # ragged; Mamba-2, lightning
        case([1, 1], (4, 4, 8, 16), delta=False),  # decode
        case([0, 5], (2, 2, 8, 8)),  # a row that gets nothing
    ]


linear_attention = Plugin(
    name="linear_attention",
    eager=eager,
    shapes=shapes,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # 80 fp32 epsilons: reads of matrices whose entries near 1 were updated up to 130 times. In
    # short dtypes the matrix before a chunk is rounded for products, and so are keys, pairs and
    # what is new in values of up to 64 tokens, of which a query reads a sum.
    close={torch.float32: Close(1e-5, 1e-5), **rounded(8)},
)
