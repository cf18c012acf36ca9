"""Lightning attention (arXiv 2401.04658): linear attention with a fixed decay per head.

Letters: B batch, T tokens in this call, H heads, K head width.
"""

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.ffn import ACTIVATIONS, ActivationName
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.step import Mixer, State, Step, Table
from lmcast.plugins.linear.linear_attention import linear_attention

EPS = 1e-6  # of the norm over all heads; no config sets another


class Decay(Table):
    """The logarithm of the decay of every head of one layer, H in fp32.

    Early heads decay fast, and all of them less in later layers. It is a table, though no position
    enters, so that layers which differ in it alone are traced once.
    """

    outputs = ("log",)

    def __init__(self, heads: int, layer: int, layers: int):
        super().__init__()
        # In fp32 and Hugging Face's order; its 1e-5 keep the last layer from forgetting nothing.
        slope = (1 / 2 ** (8 / heads)) ** torch.arange(1, heads + 1, device="cpu").float()
        self.slope = slope * (1 - layer / (layers - 1 + 1e-5) + 1e-5)

    def forward(self, step: Step) -> tuple[Tensor]:
        return (-self.slope.to(step.positions.device),)


class LightningAttention(Mixer):
    """`S = exp(decay) S + k v^T; y = S^T q` for every head, normed over all heads and gated.

    q, k and v are activations of one projection, whose rows are ordered by head: [q | k | v] of
    each.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, *, decay: Decay, act: ActivationName = "silu"
    ):
        super().__init__()
        inner = heads * head_dim
        self.heads, self.head_dim, self.act = heads, head_dim, act
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.gate = nn.Linear(dim, inner, bias=False)
        self.norm = RMSNorm(inner, EPS)
        self.out = nn.Linear(inner, dim, bias=False)
        self.decay = decay
        self.states = (State("state", ("B", heads, head_dim, head_dim), torch.float32),)

    def forward(
        self, x: Tensor, step: Step, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        qkv = ACTIVATIONS[self.act](self.qkv(x))
        each = qkv.unflatten(-1, (self.heads, 3 * self.head_dim))  # B,T,H,3K
        q, k, v = (part.flatten(-2) for part in each.split(self.head_dim, -1))  # B,T,H*K
        decay = step.table(self.decay)[0].expand(*x.shape[:2], -1)  # B,T,H
        y, state = linear_attention(
            q, k, v, *past, decay, step.token_counts, None, False, False, 1.0
        )
        return self.out(torch.sigmoid(self.gate(x)) * self.norm(y)), (state,)
