"""Mamba-2 (arXiv 2405.21060).

Letters: B batch, T tokens in this call, H heads, P their width, G groups of heads, N width of the
state, I = H*P inner width, D = I + 2*G*N channels of the convolution, W its taps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.ffn import ACTIVATIONS, ActivationName
from lmcast.graphs.blocks.gated_norm import GateFirstNorm
from lmcast.graphs.blocks.norm import widen
from lmcast.graphs.blocks.step import Mixer, State, Step
from lmcast.graphs.weights.bind import Wide
from lmcast.plugins.linear.causal_conv import causal_conv
from lmcast.plugins.linear.linear_attention import linear_attention


class Mamba(Mixer, Wide):
    """Mamba-2: `S = exp(-dt exp(A_log)) S + dt x B^T; y = S C + D x` for every head.

    `input` projects a token to the gate I, then x I, B and C of each group G*N, then dt H; x, B and
    C pass a convolution and `act`. `dt = softplus(dt + dt_bias)`, clamped to `time_steps`. Head h
    uses B and C of group h*G/H. A norm over each of `norm_groups` (None: G) runs of I, which
    silu(gate) multiplies first, and `output` follow.

    bias: of `input` and `output`. All is fp32 between the projections but the convolution.
    """

    wide = ("A_log", "dt_bias", "D")

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        head_dim: int,
        groups: int,
        state_dim: int,
        taps: int,
        eps: float,
        time_steps: tuple[float | None, float | None] = (None, None),
        norm_groups: int | None = None,
        conv_bias: bool = True,
        bias: bool = False,
        act: ActivationName = "silu",
    ):
        super().__init__()
        if heads % groups:
            raise ValueError(f"{heads} heads of Mamba are not a multiple of its {groups} groups")
        inner, shared = heads * head_dim, groups * state_dim
        channels = inner + 2 * shared
        self.heads, self.time_steps, self.act = heads, time_steps, act
        self.parts, self.channels = (inner, shared, shared), (inner, channels, heads)
        self.input = nn.Linear(dim, inner + channels + heads, bias=bias)
        self.conv = nn.Conv1d(channels, channels, taps, groups=channels, bias=conv_bias)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = GateFirstNorm(inner, eps, norm_groups or groups)
        self.output = nn.Linear(inner, dim, bias=bias)
        self.states = (
            State("state", ("B", heads, state_dim, head_dim), torch.float32),
            State("conv", ("B", taps - 1, channels)),
        )

    def forward(
        self, x: Tensor, step: Step, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        state, carried = past
        gate, mixed, dt = self.input(x).split(self.channels, -1)  # B,T,I and B,T,D and B,T,H
        silu = self.act in ("silu", "swish")
        mixed, carried = causal_conv(
            mixed, self.conv.weight, carried, step.token_counts, self.conv.bias, silu
        )
        if not silu:
            mixed = ACTIVATIONS[self.act](mixed)
        x, key, query = widen(mixed).split(self.parts, -1)  # B,T,I and twice B,T,G*N
        dt = F.softplus(widen(dt) + widen(self.dt_bias))
        low, high = self.time_steps
        if low or high is not None:
            dt = dt.clamp(low, high)
        x = x.unflatten(-1, (self.heads, -1))  # B,T,H,P
        value = (x * dt[..., None]).flatten(-2)
        decay = dt * -widen(self.A_log).exp()
        y, state = linear_attention(
            query, key, value, state, decay, step.token_counts, None, False, False, 1.0
        )
        y = y + (x * widen(self.D)[:, None]).flatten(-2)  # B,T,I
        return self.output(self.norm(y, gate)), (state, carried)
