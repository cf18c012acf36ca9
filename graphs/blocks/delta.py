"""Gated DeltaNet (arXiv 2412.06464).

Letters: B batch, T tokens in this call, H heads of values, V their width, G heads of queries and
keys, K their width, D = 2*G*K + H*V channels of the convolution, W its taps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.ffn import ACTIVATIONS, ActivationName
from lmcast.graphs.blocks.gated_norm import SiluGatedNorm
from lmcast.graphs.blocks.norm import widen
from lmcast.graphs.blocks.step import Mixer, State, Step
from lmcast.graphs.weights.bind import Wide
from lmcast.plugins.linear.causal_conv import causal_conv
from lmcast.plugins.linear.linear_attention import linear_attention


class Inputs(nn.Module):
    """x B,T,dim -> queries, keys and values B,T,D, gate B,T,H*V, beta and time step B,T,H."""

    def __init__(self, dim: int, groups: int, heads: int, key_dim: int, value_dim: int):
        super().__init__()
        inner = heads * value_dim
        self.qkv = nn.Linear(dim, 2 * groups * key_dim + inner, bias=False)
        self.gate = nn.Linear(dim, inner, bias=False)
        self.beta = nn.Linear(dim, heads, bias=False)
        self.dt = nn.Linear(dim, heads, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.qkv(x), self.gate(x), self.beta(x), self.dt(x)


class GroupedInputs(nn.Module):
    """The same from two matrices, whose rows are grouped by key head (Qwen3-Next).

    A group has the rows of its query, its key, and its values and gates; in the other matrix, those
    of its betas and time steps.
    """

    def __init__(self, dim: int, groups: int, heads: int, key_dim: int, value_dim: int):
        super().__init__()
        each = heads // groups
        self.parts = (key_dim, key_dim, each * value_dim, each * value_dim)
        self.groups, self.each = groups, each
        self.qkv_gate = nn.Linear(dim, groups * sum(self.parts), bias=False)
        self.beta_dt = nn.Linear(dim, 2 * heads, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        by_group = self.qkv_gate(x).unflatten(-1, (self.groups, -1))  # B,T,G,2*K+2*V*H/G
        *qkv, gate = (part.flatten(-2) for part in by_group.split(self.parts, -1))
        rates = self.beta_dt(x).unflatten(-1, (self.groups, -1))  # B,T,G,2*H/G
        beta, dt = (part.flatten(-2) for part in rates.split(self.each, -1))
        return torch.cat(qkv, -1), gate, beta, dt


class GatedDeltaNet(Mixer, Wide):
    """Linear attention by the gated delta rule, with normalized queries and keys.

    Queries, keys and values pass a convolution and `act`. The log decay of a head is `-exp(A_log) *
    softplus(dt + dt_bias)`, its step size sigmoid(beta). A gated norm of each head follows.
    """

    wide = ("A_log", "dt_bias")

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        groups: int,
        key_dim: int,
        value_dim: int,
        taps: int,
        eps: float,
        inputs: type[Inputs] | type[GroupedInputs] = Inputs,
        act: ActivationName = "silu",
    ):
        super().__init__()
        if heads % groups:
            raise ValueError(
                f"linear_num_value_heads {heads} is not a multiple of linear_num_key_heads {groups}"
            )
        shared, inner = groups * key_dim, heads * value_dim
        channels = 2 * shared + inner
        self.heads, self.parts, self.act = heads, (shared, shared, inner), act
        self.scale = key_dim**-0.5
        self.inputs = inputs(dim, groups, heads, key_dim, value_dim)
        self.conv = nn.Conv1d(channels, channels, taps, groups=channels, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.norm = SiluGatedNorm(value_dim, eps)
        self.output = nn.Linear(inner, dim, bias=False)
        self.states = (
            State("state", ("B", heads, key_dim, value_dim), torch.float32),
            State("conv", ("B", taps - 1, channels)),
        )

    def forward(
        self, x: Tensor, step: Step, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        state, carried = past
        qkv, gate, beta, dt = self.inputs(x)
        silu = ACTIVATIONS[self.act] is F.silu
        qkv, carried = causal_conv(qkv, self.conv.weight, carried, step.token_counts, None, silu)
        if not silu:
            qkv = ACTIVATIONS[self.act](qkv)
        query, key, value = qkv.split(self.parts, -1)  # twice B,T,G*K and B,T,H*V
        decay = F.softplus(widen(dt) + widen(self.dt_bias)) * -widen(self.A_log).exp()  # B,T,H
        y, state = linear_attention(
            query, key, value, state, decay, step.token_counts, torch.sigmoid(beta), True, False,
            self.scale,
        )  # fmt: skip
        y, gate = (part.unflatten(-1, (self.heads, -1)) for part in (y, gate))  # B,T,H,V
        return self.output(self.norm(y, gate).flatten(-2)), (state, carried)
