"""Root-mean-square norms with a gate, which is always applied in fp32 or wider."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.norm import RMSNorm, widen


class GateFirstNorm(nn.Module):
    """`cast(weight * u / rms(u))` with `u = x * silu(gate)`; the rms is that of each of `groups`
    equal runs of the last axis (Mamba-2, arXiv 2405.21060)."""

    def __init__(self, dim: int, eps: float, groups: int = 1):
        super().__init__()
        if dim % groups:
            raise ValueError(f"{dim} channels do not divide into {groups} groups of a norm")
        self.eps, self.groups = eps, groups
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x and gate ...,D -> ...,D in the dtype of the gate."""
        gated = (widen(x) * F.silu(widen(gate))).unflatten(-1, (self.groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], None, self.eps).flatten(-2)
        return (normed * widen(self.weight)).to(gate.dtype)


class SigmoidGatedNorm(nn.Module):
    """`cast(weight * x / rms(x) * sigmoid(gate))` over the last axis (Kimi Linear, arXiv
    2510.26692)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x and gate ...,D -> ...,D in the dtype of x."""
        normed = F.rms_norm(widen(x), self.weight.shape, widen(self.weight), self.eps)
        return (normed * torch.sigmoid(widen(gate))).to(x.dtype)


class SiluGatedNorm(nn.Module):
    """`cast(norm(x) * silu(gate))`, the norm as in Llama, over the last axis (Gated DeltaNet, arXiv
    2412.06464)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.norm = RMSNorm(dim, eps)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x and gate ...,D -> ...,D in the dtype of x."""
        return (self.norm(x) * F.silu(widen(gate))).to(x.dtype)
