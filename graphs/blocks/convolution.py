"""Convolutional blocks of pictures (MobileNet v4, arXiv 2404.10518).

Letters: N pictures, C channels, R rows and Q columns of places, h heads, d width of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.norm import widen


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many places to add before and behind an axis, so that ceil(size / stride) come out
    (TensorFlow's "same"): the odd one behind."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Module):
    """Convolution N,C,R,Q -> N,out,ceil(R/stride),ceil(Q/stride), padded as TensorFlow does.

    depthwise: each channel by itself; `out` is then C.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        self.kernel, self.stride, self.groups = kernel, stride, channels if depthwise else 1
        self.weight = nn.Parameter(torch.empty(out, channels // self.groups, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (same_padding(n, self.kernel, self.stride) for n in x.shape[2:])
        padding: tuple[int, int] = (rows[0], columns[0])
        if padding != (rows[1], columns[1]):
            x, padding = F.pad(x, (*columns, *rows)), (0, 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each place, N,C,R,Q; statistics in fp32 or wider."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = widen(x)
        size = (wide.square().mean(1, keepdim=True) + self.eps).sqrt()  # N,1,R,Q
        return (wide / size * widen(self.weight)[:, None, None]).to(x.dtype)


class ConvNorm(nn.Module):
    """A convolution, a norm, and GELU (tanh) where it is `active`."""

    def __init__(self, conv: SameConv, eps: float, active: bool = True):
        super().__init__()
        self.conv, self.active = conv, active
        self.norm = ChannelNorm(conv.weight.shape[0], eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.gelu(x, approximate="tanh") if self.active else x


class ChannelScale(nn.Module):
    """A learned factor of each channel (CaiT, arXiv 2103.17239)."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[:, None, None]


class EdgeResidual(nn.Module):
    """A full convolution to `expand` times the channels, then one place at a time to `out`; added
    to x where nothing changes shape."""

    def __init__(
        self, channels: int, out: int, eps: float, *, kernel: int = 3, stride: int = 1, expand: int
    ):
        super().__init__()
        inner = channels * expand
        self.expand = ConvNorm(SameConv(channels, inner, kernel, stride), eps)
        self.project = ConvNorm(SameConv(inner, out), eps, active=False)
        self.skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.expand(x))
        return x + y if self.skip else y


class InvertedBottleneck(nn.Module):
    """The universal inverted bottleneck: depthwise, `expand` times the channels, depthwise, and
    back to `out`; added to x where nothing changes shape.

    start, middle: kernels of the depthwise convolutions, 0 for none; the last of them strides.
    scaled: with a factor of each channel at the end.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        eps: float,
        *,
        expand: int,
        start: int = 0,
        middle: int = 0,
        stride: int = 1,
        scaled: bool = True,
    ):
        super().__init__()
        inner = channels * expand
        before = 1 if middle else stride
        self.start = self._depthwise(channels, start, before, eps, active=False)
        self.expand = ConvNorm(SameConv(channels, inner), eps)
        self.middle = self._depthwise(inner, middle, stride, eps, active=True)
        self.project = ConvNorm(SameConv(inner, out), eps, active=False)
        self.scale = ChannelScale(out) if scaled else nn.Identity()
        self.skip = scaled and stride == 1 and channels == out

    @staticmethod
    def _depthwise(channels: int, kernel: int, stride: int, eps: float, active: bool) -> nn.Module:
        if not kernel:
            return nn.Identity()
        conv = SameConv(channels, channels, kernel, stride, depthwise=True)
        return ConvNorm(conv, eps, active)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(self.project(self.middle(self.expand(self.start(x)))))
        return x + y if self.skip else y


class SharedKey(nn.Module):
    """The keys, or the values, that all heads share: N,C,R,Q -> N,d,places, every `down`-th."""

    def __init__(self, channels: int, width: int, eps: float, down: int):
        super().__init__()
        self.down: nn.Module = nn.Identity()
        if down > 1:
            conv = SameConv(channels, channels, 3, down, depthwise=True)
            self.down = ConvNorm(conv, eps, active=False)
        self.project = SameConv(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.down(x)).flatten(2)


class MultiQueryAttention(nn.Module):
    """Attention of every place to all, with `heads` queries to one key and value of `width`, of
    every `down`-th row and column."""

    def __init__(
        self, channels: int, out: int, eps: float, *, heads: int, width: int, down: int = 1
    ):
        super().__init__()
        self.heads, self.width = heads, width
        self.norm = ChannelNorm(channels, eps)
        self.q = SameConv(channels, heads * width)
        self.k, self.v = (SharedKey(channels, width, eps, down) for _ in "kv")
        self.o = SameConv(heads * width, out)
        self.scale = ChannelScale(out)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        k, v = self.k(normed), self.v(normed)  # N,d,places
        q = self.q(normed).flatten(2).unflatten(1, (self.heads, self.width))  # N,h,d,R*Q
        q = q.transpose(2, 3).flatten(1, 2)  # N,h*R*Q,d: to one key, heads are more queries
        parts = (q, k.transpose(1, 2), v.transpose(1, 2))
        q, k, v = (part.unflatten(-1, (1, self.width)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.width**-0.5)  # N,1,h*R*Q,d
        y = y.transpose(1, 2).flatten(2)
        y = y.unflatten(1, (self.heads, -1)).transpose(2, 3)  # N,h,d,R*Q
        y = y.flatten(1, 2).unflatten(2, x.shape[2:])  # N,h*d,R,Q
        return x + self.scale(self.o(y))


class Fusion(nn.Module):
    """States of several stages, the smaller ones enlarged to the first by the nearest place; a
    bottleneck to `out` channels, the mean of each of `side` x `side` squares, and a norm."""

    def __init__(self, channels: int, out: int, eps: float, side: int):
        super().__init__()
        self.side = side
        self.mix = InvertedBottleneck(channels, out, eps, expand=2, scaled=False)
        self.norm = ChannelNorm(out, eps)

    def forward(self, *stages: Tensor) -> Tensor:
        size = stages[0].shape[2:]
        x = torch.cat([s if s.shape[2:] == size else F.interpolate(s, size) for s in stages], 1)
        kernel = size[0] // self.side
        return self.norm(F.avg_pool2d(self.mix(x), kernel))
