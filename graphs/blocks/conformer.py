"""Conformer blocks of sound (arXiv 2005.08100), as the Universal Speech Model has them (arXiv
2303.01037): attention to near frames only, and statistics of the frames so far.

Letters: N clips of one length, T frames in, S frames within the tower, Q bands, C channels, D
width, h heads, d width of a head, P places that a frame attends to.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.norm import WideRMSNorm, widen

EPS = 1e-6  # of the norms that no key speaks of


class CumulativeNorm(nn.Module):
    """Norm of N,C,T,Q by mean and variance over all channels and bands of the frames so far, in
    fp32 or wider.

    The squared distances of a frame are from the mean so far, which later frames do not change.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = widen(x)
        frames = torch.arange(x.shape[2], device=x.device)[:, None] + 1  # T,1
        away = wide - self._mean(wide, frames)
        size = (self._mean(away.square(), frames) + self.eps).sqrt()
        return (away / size * widen(self.weight)[:, None, None]).to(x.dtype)

    @staticmethod
    def _mean(x: Tensor, frames: Tensor) -> Tensor:
        """N,C,T,Q -> N,1,T,1: of all frames up to each."""
        return x.mean((1, 3), keepdim=True).cumsum(2) / frames


class Subsampling(nn.Module):
    """A convolution of frames and bands, N,C,T,Q; a norm of the frames so far; ReLU.

    kernel, stride: of frames and bands. Frames are padded behind, bands by one on both sides.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        eps: float,
    ):
        super().__init__()
        self.padding, self.stride = (1, 1, 0, kernel[0] - 1), stride
        self.weight = nn.Parameter(torch.empty(out, channels, *kernel))
        self.norm = CumulativeNorm(out, eps)

    def bands(self, bands: int) -> int:
        """Return how many bands come out; raises ValueError for none."""
        out = (bands + 2 - self.weight.shape[3]) // self.stride[1] + 1
        if out < 1:
            raise ValueError(f"kernels of {self.weight.shape[3]} bands do not fit into {bands}")
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.pad(x, self.padding), self.weight, stride=self.stride)
        return F.relu(self.norm(x))


class Clamp(nn.Module):
    """Numbers from -most to most."""

    def __init__(self, most: float):
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        most = min(self.most, torch.finfo(x.dtype).max)  # of fp16, as Hugging Face has it
        return x.clamp(-most, most)


class HalfFeedForward(nn.Module):
    """`x + share * norm(down(silu(up(norm(x)))))`, four times as wide inside."""

    def __init__(self, dim: int, share: float, most: float):
        super().__init__()
        self.share, self.clamp = share, Clamp(most)
        self.pre, self.post = WideRMSNorm(dim, EPS), WideRMSNorm(dim, EPS)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.silu(self.up(self.pre(self.clamp(x)))))
        return x + self.post(self.clamp(y)) * self.share


def _signal(dim: int, past: int, future: int) -> Tensor:
    """Return sines and cosines of the distances from `past` down to -`future`, P,D in fp32."""
    pairs = dim // 2
    step = math.log(1e4) / max(pairs - 1, 1)
    rates = torch.exp(torch.arange(pairs, device="cpu") * -step)
    places = torch.arange(past, -future - 1, -1, device="cpu").float()
    angle = places[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], -1)


class NearAttention(nn.Module):
    """Attention of each frame to `past` frames before it, itself, and `future` ones behind it, by
    content and by how far each lies away (Transformer-XL, arXiv 1901.02860); N,S,D.

    cap: scores are bounded to +-cap. Hugging Face cuts frames into chunks, which changes nothing
    but what it takes: of S frames, here all pairs are scored.
    """

    def __init__(self, dim: int, heads: int, *, past: int, future: int, cap: float):
        super().__init__()
        if dim % heads:
            raise ValueError(f"a width of {dim} does not divide among {heads} heads")
        if dim % 2:
            raise ValueError(f"a width of {dim} has no pairs of sine and cosine")
        self.dim, self.heads, self.width = dim, heads, dim // heads
        self.past, self.future, self.cap = past, future, cap
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in "qkv")
        self.position = nn.Linear(dim, dim, bias=False)
        self.scales = nn.Parameter(torch.empty(self.width))
        self.scale = self.width**-0.5 / math.log(2)  # log(2): softplus of 0
        self.signal = _signal(dim, past, future)

    def forward(self, x: Tensor) -> Tensor:
        scales = F.softplus(self.scales)
        q = self._heads(self.q(x)) * self.scale * scales  # N,h,S,d
        k, v = self._heads(self.k(x)), self._heads(self.v(x))
        signal = self.signal.to(x.device).to(x.dtype)  # P,D
        away = self._heads(self.position(signal)).transpose(1, 2)  # h,d,P
        frames = torch.arange(x.shape[1], device=x.device)
        ahead = frames[None] - frames[:, None]  # S,S: how far a key lies behind its query
        index = (ahead + self.past).clamp(0, self.past + self.future)
        scores = torch.matmul(q, away)  # N,h,S,P
        scores = scores.gather(3, index.expand(*scores.shape[:2], -1, -1))
        scores = torch.matmul(q, k.transpose(2, 3)) + scores  # N,h,S,S
        scores = widen(torch.tanh(scores / self.cap) * self.cap)
        least = torch.finfo(scores.dtype).min
        scores = torch.where(ahead > -self.past - 1, scores, least)
        scores = torch.where(ahead < self.future + 1, scores, least)
        y = torch.matmul(torch.softmax(scores, -1).to(x.dtype), v)  # N,h,S,d
        return y.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        """...,S,D -> ...,h,S,d."""
        return x.unflatten(-1, (self.heads, self.width)).transpose(-3, -2)


class LightConv(nn.Module):
    """`x + end(silu(norm(conv(GLU(start(norm(x)))))))`; conv: a channel's last `kernel` frames."""

    def __init__(self, dim: int, kernel: int, eps: float, most: float):
        super().__init__()
        self.kernel, self.dim, self.clamp = kernel, dim, Clamp(most)
        self.pre, self.post = WideRMSNorm(dim, eps), WideRMSNorm(dim, eps)
        self.start = nn.Linear(dim, 2 * dim, bias=False)
        self.weight = nn.Parameter(torch.empty(dim, 1, kernel))
        self.end = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.start(self.pre(x)).split(self.dim, -1)
        y = F.pad((value * torch.sigmoid(gate)).transpose(1, 2), (self.kernel - 1, 0))
        y = F.conv1d(y, self.weight, groups=self.dim).transpose(1, 2)
        return x + self.end(F.silu(self.post(self.clamp(y))))


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, a light convolution, half a feed-forward, a norm; N,S,D."""

    def __init__(
        self, attention: NearAttention, conv: LightConv, dim: int, share: float, most: float
    ):
        super().__init__()
        self.first, self.last = (HalfFeedForward(dim, share, most) for _ in range(2))
        self.pre, self.post = WideRMSNorm(dim, EPS), WideRMSNorm(dim, EPS)
        self.attention, self.conv = attention, conv
        self.o = nn.Linear(dim, dim, bias=False)
        self.norm, self.clamp = WideRMSNorm(dim, EPS), Clamp(most)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.o(self.attention(self.pre(self.clamp(x))))
        x = self.conv(x + self.post(self.clamp(y)))
        y = self.norm(self.clamp(self.last(x)))
        return y
