"""Kimi Delta Attention (KDA, arXiv 2510.26692): the gated delta rule, with a decay per channel.

Letters: B batch, T tokens in this call, H heads, K their width, D = H*K channels, W taps of the
convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.ffn import ACTIVATIONS, ActivationName
from lmcast.graphs.blocks.gated_norm import SigmoidGatedNorm
from lmcast.graphs.blocks.norm import widen
from lmcast.graphs.blocks.step import Mixer, State, Step
from lmcast.graphs.weights.bind import Wide
from lmcast.plugins.linear.causal_conv import causal_conv
from lmcast.plugins.linear.linear_attention import linear_attention


class ChannelDecay(Wide):
    """The log decay of each channel of the states, `-exp(A_log) * softplus(up(down(x)) + dt_bias)`,
    x B,T,dim -> B,T,D in fp32. A_log is per head, the rest per channel."""

    wide = ("A_log", "dt_bias")

    def __init__(self, dim: int, heads: int, width: int):
        super().__init__()
        self.down = nn.Linear(dim, width, bias=False)
        self.up = nn.Linear(width, heads * width, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(heads * width))
        self.A_log = nn.Parameter(torch.empty(1, 1, heads, 1))

    def forward(self, x: Tensor) -> Tensor:
        step = F.softplus(widen(self.up(self.down(x))) + widen(self.dt_bias))
        rate = -widen(self.A_log).exp()  # 1,1,H,1
        return (rate * step.unflatten(-1, (rate.shape[2], -1))).flatten(-2)


class KimiDeltaAttention(Mixer):
    """`S = exp(decay) S; S = S + beta k (v - S^T k)^T; y = S^T q / sqrt(K)` for every head.

    Queries, keys and values each pass a convolution and `act`; queries and keys then have length 1.
    beta is a sigmoid of x for each head. y passes a norm with a gate, made of x by way of K.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        width: int,
        taps: int,
        eps: float,
        act: ActivationName = "silu",
    ):
        super().__init__()
        channels = heads * width
        self.heads, self.act, self.scale = heads, act, width**-0.5
        self.query = nn.Linear(dim, channels, bias=False)
        self.key = nn.Linear(dim, channels, bias=False)
        self.value = nn.Linear(dim, channels, bias=False)
        self.query_conv = nn.Parameter(torch.empty(channels, 1, taps))
        self.key_conv = nn.Parameter(torch.empty(channels, 1, taps))
        self.value_conv = nn.Parameter(torch.empty(channels, 1, taps))
        self.decay = ChannelDecay(dim, heads, width)
        self.beta = nn.Linear(dim, heads, bias=False)
        self.gate_down = nn.Linear(dim, width, bias=False)
        self.gate_up = nn.Linear(width, channels, bias=False)
        self.norm = SigmoidGatedNorm(width, eps)
        self.o = nn.Linear(channels, dim, bias=False)
        # A state for each: of one for all three every step would join what it reads of them.
        carried = ("B", taps - 1, channels)
        self.states = (
            State("state", ("B", heads, width, width), torch.float32),
            *(State(f"{name}_conv", carried) for name in ("query", "key", "value")),
        )

    def forward(
        self, x: Tensor, step: Step, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        state, *carried = past
        query, carried[0] = self.convolve(self.query(x), self.query_conv, step, carried[0])
        key, carried[1] = self.convolve(self.key(x), self.key_conv, step, carried[1])
        value, carried[2] = self.convolve(self.value(x), self.value_conv, step, carried[2])
        y, state = linear_attention(
            query, key, value, state, self.decay(x), step.token_counts,
            torch.sigmoid(self.beta(x)), True, True, self.scale,
        )  # fmt: skip
        gate = self.gate_up(self.gate_down(x))  # B,T,D
        y, gate = (t.unflatten(-1, (self.heads, -1)) for t in (y, gate))  # B,T,H,K
        return self.o(self.norm(y, gate).flatten(-2)), (state, *carried)

    def convolve(
        self, x: Tensor, weight: Tensor, step: Step, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return B,T,D and the inputs that the next call needs, B,W-1,D."""
        silu = self.act in ("silu", "swish")
        x, present = causal_conv(x, weight, past, step.token_counts, None, silu)
        return x if silu else ACTIVATIONS[self.act](x), present
