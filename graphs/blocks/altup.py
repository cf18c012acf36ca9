"""Alternating updates (AltUp, arXiv 2301.13310): several streams, one of which goes through layers.

Letters: B batch, T tokens in this call, A streams, D width, L layers, p width of a layer's input.
Between parts the streams lie side by side, B,T,A*D.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.decoder import Past, ScaledEmbedding, rounded
from lmcast.graphs.blocks.ffn import ACTIVATIONS, ActivationName
from lmcast.graphs.blocks.norm import PerHead, WideRMSNorm, widen
from lmcast.graphs.blocks.step import Handoff, Mixer, Spreading, State, Step, placed

SMALLEST = 1e-5  # mean square that a projected stream is taken to have at least


def _magnitude(x: Tensor, least: float = 0.0) -> Tensor:
    """...,D -> ...,1: root mean square."""
    mean = x.square().mean(-1, keepdim=True)
    return (mean.clamp(min=least) if least else mean).sqrt()


def _project(x: Tensor, by: nn.Module, size: Tensor) -> Tensor:
    """Project x and bring it to the root mean square `size`."""
    y = by(x)
    return y * size / _magnitude(y, SMALLEST)


def _projections(dim: int, streams: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(1, streams))


class Spread(Spreading):
    """Ids B,T -> streams B,T,A*D: the embedding, and projections of it at its magnitude.

    others: `other(input_ids, x)` embeds ids of other models anew, one after the other.
    """

    def __init__(self, tokens: ScaledEmbedding, streams: int):
        super().__init__()
        self.tokens = tokens
        self.projections = _projections(tokens.embedding_dim, streams)
        self.others = nn.ModuleList()

    def forward(self, input_ids: Tensor, *images: Tensor) -> Tensor:
        x = self.tokens(input_ids)
        for other in self.others:
            x = other(input_ids, x)
        x = placed(x, *images)
        size = _magnitude(x)
        return torch.cat([x, *(_project(x, by, size) for by in self.projections)], -1)


class Merge(nn.Module):
    """Streams B,T,A*D -> B,T,D: their mean, all projected to the magnitude of the first; a norm."""

    def __init__(self, streams: int, dim: int, eps: float):
        super().__init__()
        self.streams = streams
        self.projections = _projections(dim, streams)
        self.norm = WideRMSNorm(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = x.split(x.shape[-1] // self.streams, -1)
        size = _magnitude(first)
        others = [_project(y, by, size) for y, by in zip(others, self.projections, strict=True)]
        whole = torch.cat([first, *others], -1)
        return self.norm(whole.unflatten(-1, (self.streams, -1)).mean(-2))


class PerLayerInputs(nn.Module):
    """What each layer takes besides the streams: B,T,p from the id and its embedding.

    Ids from `vocab` on use row 0 of the table.
    """

    def __init__(self, vocab: int, dim: int, width: int, layers: int, eps: float):
        super().__init__()
        self.vocab, self.dim, self.width = vocab, dim, width
        self.tokens = ScaledEmbedding(vocab, layers * width, scale=width**0.5)
        self.project = nn.Linear(dim, layers * width, bias=False)
        self.norm = PerHead(WideRMSNorm(width, eps))
        self.scales, self.halves = rounded(dim**-0.5), rounded(0.5**0.5)
        own = State("input", ("B", "T", width))
        self.handoffs = nn.ModuleList(Handoff(own) for _ in range(layers))

    def forward(self, input_ids: Tensor, x: Tensor, step: Step) -> None:
        tokens = self.tokens(torch.where(input_ids < self.vocab, input_ids, 0))
        projected = self.project(x[..., : self.dim]) * self.scales[x.dtype]
        inputs = (self.norm(projected) + tokens) * self.halves[x.dtype]  # B,T,L*p
        for handoff, part in zip(self.handoffs, inputs.split(self.width, -1), strict=True):
            step.hand(cast(Handoff, handoff), (part,))


class AltUp(nn.Module):
    """Predicts all streams before a layer, and corrects them by the layer's output for the active
    one.

    scaled: the corrected active stream is multiplied by a learned factor where it is read.
    """

    def __init__(self, dim: int, streams: int, active: int, scaled: bool, eps: float):
        super().__init__()
        if active >= streams:
            raise ValueError(f"the active stream is {active}; there are {streams}, from 0 on")
        self.streams, self.active = streams, active
        self.router_norm = WideRMSNorm(dim, eps)
        self.modality_router = nn.Linear(dim, streams, bias=False)
        self.prediction_coefs = nn.Linear(streams, streams * streams, bias=False)
        self.correction_coefs = nn.Linear(streams, streams, bias=False)
        self.correct_output_scale = nn.Parameter(torch.empty(dim)) if scaled else None
        self.scales = rounded(1 / dim)

    def _modalities(self, x: Tensor) -> Tensor:
        """B,T,D -> B,T,A."""
        routed = self.modality_router(self.router_norm(x) * self.scales[x.dtype])
        return torch.tanh(widen(routed)).to(x.dtype)

    def predict(self, x: Tensor) -> Tensor:
        """B,T,A*D -> B,T,A,D."""
        x = x.unflatten(-1, (self.streams, -1))
        mix = self.prediction_coefs(self._modalities(x.select(2, self.active)))
        return torch.matmul(mix.unflatten(-1, (self.streams, self.streams)), x) + x

    def correct(self, predicted: Tensor, made: Tensor) -> Tensor:
        """Predicted B,T,A,D and what a layer made B,T,D -> B,T,A,D."""
        share = self.correction_coefs(self._modalities(made)) + 1.0  # B,T,A
        news = made - predicted.select(2, self.active)
        return news[:, :, None] * share[..., None] + predicted

    def read(self, x: Tensor) -> Tensor:
        """B,T,A,D -> the active stream B,T,D."""
        active, scale = x.select(2, self.active), self.correct_output_scale
        return active if scale is None else active * scale


class Laurel(nn.Module):
    """Learned augmented residual (arXiv 2411.07501): `x + norm(right(left(x)))` of a low rank."""

    def __init__(self, dim: int, rank: int, eps: float):
        super().__init__()
        self.linear_left = nn.Linear(dim, rank, bias=False)
        self.linear_right = nn.Linear(rank, dim, bias=False)
        self.post_laurel_norm = WideRMSNorm(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.post_laurel_norm(self.linear_right(self.linear_left(x)))


class AltUpLayer(nn.Module):
    """A layer of Gemma 3n: its two branches on the active stream, then an input of its own B,T,p,
    gated by that stream, into all streams but the first. sizes: D and p; own: the input's handoff.
    """

    def __init__(
        self,
        *,
        altup: AltUp,
        laurel: Laurel,
        mixer: Mixer,
        ffn: nn.Module,
        own: nn.Module,
        sizes: tuple[int, int],
        act: ActivationName,
        eps: float,
    ):
        super().__init__()
        dim, width = sizes
        self.altup, self.laurel, self.mixer, self.ffn, self.own = altup, laurel, mixer, ffn, own
        self.pre_mixer, self.post_mixer = WideRMSNorm(dim, eps), WideRMSNorm(dim, eps)
        self.pre_ffn, self.post_ffn = WideRMSNorm(dim, eps), WideRMSNorm(dim, eps)
        self.per_layer_input_gate = nn.Linear(dim, width, bias=False)
        self.per_layer_projection = nn.Linear(width, dim, bias=False)
        self.post_per_layer_input_norm = WideRMSNorm(dim, eps)
        self.act = act

    def forward(self, x: Tensor, step: Step, past: Past) -> tuple[Tensor, Past]:
        predicted = self.altup.predict(x)  # B,T,A,D
        active = predicted.select(2, self.altup.active)
        normed = self.pre_mixer(active)
        y, present = self.mixer(normed, step, past)
        y = (active + self.post_mixer(y) + self.laurel(normed)) / math.sqrt(2)
        y = y + self.post_ffn(self.ffn(self.pre_ffn(y)))
        x = self.altup.correct(predicted, y)
        (own,) = step.take(cast(Handoff, self.own))
        gate = ACTIVATIONS[self.act](self.per_layer_input_gate(self.altup.read(x)))
        more = self.post_per_layer_input_norm(self.per_layer_projection(gate * own))
        first, others = x[:, :, :1], x[:, :, 1:]  # the first gets none, whichever is active
        return torch.cat([first, others + more[:, :, None]], 2).flatten(-2), present
