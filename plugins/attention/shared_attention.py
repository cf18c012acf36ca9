"""Attention to keys and values of an earlier layer (KV sharing); no cache is written.

Letters: B batch, T new tokens, S visible positions, H query heads, G key heads, K width of keys, V
width of values.
"""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.attention import onnx_body
from lmcast.plugins.attention.attend import attend
from lmcast.plugins.onnx_builder import Attribute, Builder, Value
from lmcast.plugins.plugin import Close, Plugin


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    sink: Tensor | None,
    factor: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """Attend to given keys and values under a mask.

    query: B,T,H,K.
    key, value: B,G,S,K and B,G,S,V.
    mask: B,T,S bool, true where a token sees a position; at least one for every token.
    sink, factor, scale, softcap: as in `attend`.

    Returns B,T,H,V.
    """
    return attend(query, key, value, mask, sink, factor, scale, softcap)


def shapes(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty((*query.shape[:3], value.shape[3]))


def body(
    op: Builder,
    query: Value,
    key: Value,
    value: Value,
    mask: Value,
    sink: Value | None,
    factor: Value | None,
    scale: Attribute,
    softcap: Attribute,
) -> Value:
    return onnx_body.attend(op, query, key, value, mask, sink, factor, scale, softcap)


def case(
    tokens: int, seen: int, sizes: tuple[int, ...], cap: float = 0.0, *, more: bool = False
) -> tuple[Any, ...]:
    """Return arguments for two rows; sizes: heads, groups, widths of keys and values.

    more: with sinks, and factors behind the softcap.
    """
    heads, groups, width, value_width = sizes
    mask = torch.rand(2, tokens, seen) < 0.5
    mask[..., 0] |= ~mask.any(-1)
    return (
        torch.randn(2, tokens, heads, width),
        torch.randn(2, groups, seen, width),
        torch.randn(2, groups, seen, value_width),
        mask,
        2 * torch.randn(heads) if more else None,
        1 + torch.rand(2, tokens) if more else None,
        width**-0.5,
        cap,
    )


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    return [
        case(5, 9, (4, 2, 16, 16)),
        case(1, 7, (6, 3, 8, 8), cap=2.0),  # decode with a softcap
        case(3, 3, (4, 1, 24, 8)),  # narrow values
        case(4, 1, (2, 2, 8, 8)),  # one position
        case(5, 9, (4, 2, 16, 8), cap=2.0, more=True),
    ]


shared_attention = Plugin(
    name="shared_attention",
    eager=eager,
    shapes=shapes,
    body=body,
    cases=cases,
    close={torch.float32: Close(2.4e-6)},  # 20 fp32 epsilons: outputs are means of values near 1
)
