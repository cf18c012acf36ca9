"""Attention to the keys and values of an earlier layer (Gemma 3n).

Letters: B batch, T tokens in this call, H query heads, K head width.
"""

from torch import Tensor, nn

from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import Rope, rotate
from lmcast.graphs.blocks.step import Handoff, Mixer, State, Step
from lmcast.plugins.attention.shared_attention import shared_attention


class BorrowingAttention(Mixer):
    """Attention to keys and values that another layer of the call lends by keeps.Lend; no states.

    loan: that of the lender. q_norm: of B,T,H*K, before the rotation.
    """

    states: tuple[State, ...] = ()

    def __init__(
        self,
        projections: Projections,
        *,
        rope: Rope,
        loan: Handoff,
        q_norm: nn.Module | None = None,
        scale: float | None = None,
    ):
        super().__init__()
        p = self.projections = projections
        self.scale = p.head_dim**-0.5 if scale is None else scale
        self.q, self.o = p.query(), p.output()
        self.q_norm = q_norm or nn.Identity()
        self.rope, self.loan = rope, loan

    def forward(
        self, x: Tensor, step: Step, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        p = self.projections
        cos, sin = step.table(self.rope)
        q = rotate(self.q_norm(self.q(x)), cos, sin, p.heads)
        q = q.unflatten(-1, (p.heads, p.head_dim))  # B,T,H,K
        keys, values, mask = step.take(self.loan)
        y = shared_attention(q, keys, values, mask, None, None, self.scale, 0.0)
        return self.o(y.flatten(-2)), ()
