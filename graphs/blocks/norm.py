"""Root-mean-square norms (arXiv 1910.07467); the statistics are always taken in fp32 or wider."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def widen(x: Tensor) -> Tensor:
    """Return x in fp32, or in fp64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """`weight * cast(x / rms(x))` over the last axis: the cast comes before the weight (Llama)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float32, torch.float64):  # one call: there is no cast to order
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, None, self.eps) * self.weight


class WideRMSNorm(nn.Module):
    """`cast((offset + weight) * x / rms(x))`: weight applied in fp32 (OLMo: 0, Gemma: 1)."""

    def __init__(self, dim: int, eps: float, offset: float = 0.0):
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        weight = widen(self.weight)
        if self.offset:
            weight = weight + self.offset
        return F.rms_norm(widen(x), self.weight.shape, weight, self.eps).to(x.dtype)


class UnitNorm(nn.Module):
    """`cast(x / rms(x))` of each run of `width` on the last axis, without a weight (Llama 4)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        runs = x.unflatten(-1, (-1, self.width))
        return F.rms_norm(runs, (self.width,), None, self.eps).flatten(-2)


class PerHead(nn.Module):
    """Apply a norm of one head's width to each head of ...,heads * width."""

    def __init__(self, norm: RMSNorm | WideRMSNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        width = self.norm.weight.shape[0]
        return self.norm(x.unflatten(-1, (-1, width))).flatten(-2)
