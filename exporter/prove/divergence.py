"""Comparison of two models on the same text: perplexity, divergence, and standard errors.

Letters: C chunks, T tokens of each, N positions, V vocabulary.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.errors import CheckFailed

BINS_PER_DECADE = 4
LEAST_KL = 1e-12  # below it the fp64 arithmetic of a divergence is what one sees
SHOWN_LAYERS = 5
MOST_LOSS = 700.0  # nats; exp of 709.8 is the largest float


@dataclass(frozen=True)
class Mean:
    """A mean over chunks, and its standard error: None where there is but one chunk."""

    value: float
    error: float | None

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """Return the mean of one number for each chunk, C."""
        count = len(values)
        error = values.double().std().item() / math.sqrt(count) if count > 1 else None
        return cls(values.double().mean().item(), error)

    def exp(self) -> "Mean":
        """Return its exponential; the error is scaled by the derivative.

        Raises CheckFailed where no number holds it: of logits of thousands, which are no model's.
        """
        if self.value > MOST_LOSS:
            raise CheckFailed(f"the loss is {self.value:.4g} nats a token: it has no perplexity")
        value = math.exp(self.value)
        return Mean(value, None if self.error is None else self.error * value)

    def text(self, format: str) -> str:
        shown = f"{self.value:{format}}"
        return shown if self.error is None else f"{shown} ±{self.error:{format}}"


@dataclass(frozen=True)
class LayerError:
    """The error of one layer on the same inputs as the checkpoint's layer.

    error: |difference| / |output| of a token, mean over tokens.
    """

    layer: int
    error: Mean


@dataclass(frozen=True)
class Worst:
    """The position with the largest divergence."""

    chunk: int
    position: int
    kl: float


@dataclass(frozen=True)
class Measured:
    """The loss of a model against its checkpoint; divergences are in nats.

    kl: KL(checkpoint || model) of the next-token distributions, mean over tokens.
    top1: share of positions with the same most likely token.
    perplexity_ratio: model to checkpoint, chunk by chunk, so that the difficulty of a text cancels.
    bytes: of the weights, as stored.
    by_position: kl at every position, mean over chunks. by_chunk: kl of every chunk.
    histogram: (lower edge, upper edge, positions) by kl.
    layers: None where they were not measured.
    """

    chunks: int
    tokens: int  # of each chunk
    kl: Mean
    top1: Mean
    perplexity: Mean
    reference_perplexity: Mean
    perplexity_ratio: Mean
    worst: Worst
    bytes: int
    reference_bytes: int
    by_position: tuple[float, ...]
    by_chunk: tuple[float, ...]
    histogram: tuple[tuple[float, float, int], ...]
    layers: tuple[LayerError, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they are, means as {"value", "error"}."""
        return asdict(self)

    def require(self, most: float) -> None:
        """Raise CheckFailed where the mean divergence is above `most`."""
        if not self.kl.value <= most:
            raise CheckFailed(
                f"the mean KL per token is {self.kl.text('.4g')} nats, above the {most:g} allowed"
            )

    def ranked(self) -> list[LayerError]:
        """Return the layers, the worst first."""
        return sorted(self.layers or (), key=lambda each: -each.error.value)

    def table(self) -> str:
        """Return what was measured, for a person."""
        share = f"{self.bytes / self.reference_bytes:.3f}"
        rows = [
            ("", "checkpoint", "engine", "ratio"),
            (
                "perplexity",
                self.reference_perplexity.text(".2f"),
                self.perplexity.text(".2f"),
                self.perplexity_ratio.text(".4f"),
            ),
            ("bytes of weights", f"{self.reference_bytes:,}", f"{self.bytes:,}", share),
        ]
        lines = [f"{name:18}{a:>18} {b:>18} {c:>18}" for name, a, b, c in rows]
        error = "" if self.top1.error is None else f" ±{self.top1.error:.2%}"
        lines += [
            f"KL per token      {self.kl.text('.3g')} nats",
            f"same top token    {self.top1.value:.2%}{error}",
            f"largest KL        {self.worst.kl:.3g} nats, position {self.worst.position} of chunk"
            f" {self.worst.chunk}",
            *self._layers(),
            f"over {self.chunks} chunks of {self.tokens} held-out tokens; ±: standard error over"
            " chunks",
        ]
        return "\n".join(lines)

    def _layers(self) -> list[str]:
        if self.layers is None:
            return [
                "layers            not measured: that needs the recipe of the engine (--recipe)"
            ]
        lines = ["worst layers      relative error of the output, each layer alone"]
        for each in self.ranked()[:SHOWN_LAYERS]:
            lines.append(f"{'':18}layer {each.layer}: {each.error.text('.3g')}")
        return lines


class Comparison:
    """Collects numbers for each position from the logits of both models, piece by piece."""

    def __init__(self, ids: Tensor):
        """ids: C,T int64, the chunks."""
        self._ids = ids
        self._kl = torch.full(ids.shape, math.nan, dtype=torch.float64)
        self._same = torch.zeros(ids.shape, dtype=torch.float64)
        losses = (ids.shape[0], ids.shape[1] - 1)  # nothing follows the last token
        self._loss = torch.zeros(losses, dtype=torch.float64)
        self._reference_loss = torch.zeros(losses, dtype=torch.float64)

    def add(self, chunk: int, begin: int, reference: Tensor, other: Tensor) -> None:
        """Take the logits N,V of positions begin, begin + 1, ... of a chunk.

        Raises CheckFailed for logits that are not finite.
        """
        log_p = _log_softmax(reference, "the checkpoint", chunk, begin)
        log_q = _log_softmax(other, "the engine", chunk, begin)
        end = begin + len(log_p)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        self._kl[chunk, begin:end] = kl.clamp_(min=0)  # below by rounding alone
        self._same[chunk, begin:end] = (log_p.argmax(-1) == log_q.argmax(-1)).double()
        following = self._ids[chunk, begin + 1 : end + 1, None]
        rows = slice(begin, begin + len(following))
        for losses, logs in ((self._reference_loss, log_p), (self._loss, log_q)):
            losses[chunk, rows] = -logs[: len(following)].gather(-1, following)[:, 0]

    def kl(self) -> Tensor:
        """Return the mean divergence of every chunk, C, once all positions have been added."""
        assert not self._kl.isnan().any(), "positions are missing"
        return self._kl.mean(1)

    def measured(
        self, bytes: int, reference_bytes: int, layers: tuple[LayerError, ...] | None = None
    ) -> Measured:
        """Return the result, once all positions have been added."""
        kl, loss, reference = self.kl(), self._loss.mean(1), self._reference_loss.mean(1)
        chunk, position = divmod(int(self._kl.argmax()), self._kl.shape[1])
        return Measured(
            chunks=len(self._ids),
            tokens=self._ids.shape[1],
            kl=Mean.of(kl),
            top1=Mean.of(self._same.mean(1)),
            perplexity=Mean.of(loss).exp(),
            reference_perplexity=Mean.of(reference).exp(),
            perplexity_ratio=Mean.of(loss - reference).exp(),
            worst=Worst(chunk, position, self._kl[chunk, position].item()),
            bytes=bytes,
            reference_bytes=reference_bytes,
            by_position=tuple(self._kl.mean(0).tolist()),
            by_chunk=tuple(kl.tolist()),
            histogram=_histogram(self._kl),
            layers=layers,
        )


def _log_softmax(logits: Tensor, of: str, chunk: int, begin: int) -> Tensor:
    finite = logits.isfinite().all(-1)
    if not finite.all():
        position = begin + int(finite.int().argmin())
        raise CheckFailed(f"{of} gives logits that are not finite at {position} of chunk {chunk}")
    return logits.double().log_softmax(-1)


def _histogram(kl: Tensor) -> tuple[tuple[float, float, int], ...]:
    """Count divergences in bins of equal width on a logarithmic scale; the first has all below."""
    places = (kl.flatten().clamp(min=LEAST_KL).log10() * BINS_PER_DECADE).floor().long()
    first = int(places.min())
    counts = torch.bincount(places - first).tolist()
    edges = [10 ** ((first + i) / BINS_PER_DECADE) for i in range(len(counts) + 1)]
    return tuple(zip(edges, edges[1:], counts, strict=False))
