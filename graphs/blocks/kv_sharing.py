"""Layers that attend to the keys and values of an earlier layer of their kind (Gemma 3n).

Letters: B batch, T tokens in this call, H query heads, K head width.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.lending import loan
from lmcast.graphs.blocks.norm import PerHead, UnitNorm, WideRMSNorm
from lmcast.graphs.blocks.rope import Rope, rotate
from lmcast.graphs.blocks.step import Handoff, Mixer, State, Step
from lmcast.graphs.config.rope_parameters import RopeByLayerType
from lmcast.plugins.attention.shared_attention import shared_attention


class BorrowingAttention(Mixer):
    """Attention to what another layer of the same kind has lent; it carries no state.

    q_norm acts on B,T,H*K before the rotation.
    """

    states: tuple[State, ...] = ()

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        head_dim: int,
        rope: Rope,
        loan: Handoff,
        bias: bool = False,
        q_norm: nn.Module | None = None,
        scale: float | None = None,
    ):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.q = nn.Linear(dim, heads * head_dim, bias=bias)
        self.o = nn.Linear(heads * head_dim, dim, bias=bias)
        self.q_norm = q_norm or nn.Identity()
        self.rope, self.loan = rope, loan

    def forward(self, x: Tensor, step: Step, past: tuple[Tensor, ...]):
        cos, sin = step.table(self.rope)
        q = rotate(self.q_norm(self.q(x)), cos, sin, self.heads)
        q = q.unflatten(-1, (self.heads, self.head_dim))  # B,T,H,K
        keys, values, mask = step.take(self.loan)
        y = shared_attention(q, keys, values, mask, None, None, self.scale, 0.0)
        return self.o(y.flatten(-2)), ()


def sharing_attention(
    owners: Sequence[int],
    windows: Sequence[int | None],
    sizes: tuple[int, int, int, int],
    positions: tuple[RopeByLayerType, int],
    *,
    bias: bool,
    eps: float,
) -> list[Mixer]:
    """Return a mixer for every layer, which attends to keys and values of layer `owners[i]`.

    windows: of every layer, None for all positions. sizes: width of the model, query heads, key
    heads, width of a head. positions: what Rope is built from. Queries, keys and values have norms
    per head, the last without a weight, and there is no scale.
    """
    dim, heads, kv_heads, head_dim = sizes
    full = Rope(head_dim, positions[0].full_attention, positions[1])
    sliding = Rope(head_dim, positions[0].sliding_attention, positions[1])
    lenders = {owner for i, owner in enumerate(owners) if owner != i}
    loans = {i: loan(kv_heads, head_dim, windows[i]) for i in lenders}

    def norm() -> PerHead:
        return PerHead(WideRMSNorm(head_dim, eps))

    def mixer(i: int) -> Mixer:
        own: dict[str, Any] = {"dim": dim, "heads": heads, "head_dim": head_dim, "scale": 1.0}
        own |= {"rope": sliding if windows[i] else full, "q_norm": norm()}
        if owners[i] != i:
            return BorrowingAttention(**own, bias=bias, loan=loans[owners[i]])
        return Attention(
            **own,
            kv_heads=kv_heads,
            window=windows[i],
            qkv_bias=bias,
            out_bias=bias,
            k_norm=norm(),
            v_norm=UnitNorm(head_dim, eps),
            loan=loans.get(i),
        )

    return [mixer(i) for i in range(len(owners))]
