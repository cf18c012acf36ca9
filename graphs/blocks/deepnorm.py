"""A layer with DeepNorm residuals: they are normed, and both summands are scaled."""

from torch import Tensor, nn

from lmcast.graphs.blocks.decoder import Past
from lmcast.graphs.blocks.step import Mixer, Step

Gains = tuple[float, float]


class GainedLayer(nn.Module):
    """`h = norm(x); x = alpha * h + beta * branch(h)`, for a token mixer, then a feed-forward.

    Gains are alpha and beta of either branch (DeepNorm, arXiv 2203.00555, where alpha is above 1).
    """

    def __init__(
        self,
        *,
        mixer: Mixer,
        ffn: nn.Module,
        pre_mixer: nn.Module,
        pre_ffn: nn.Module,
        mixer_gains: Gains,
        ffn_gains: Gains,
    ):
        super().__init__()
        self.pre_mixer, self.mixer, self.mixer_gains = pre_mixer, mixer, mixer_gains
        self.pre_ffn, self.ffn, self.ffn_gains = pre_ffn, ffn, ffn_gains

    def forward(self, x: Tensor, step: Step, past: Past) -> tuple[Tensor, Past]:
        h = self.pre_mixer(x)
        y, present = self.mixer(h, step, past)
        h = self.pre_ffn(weighed(h, y, self.mixer_gains))
        return weighed(h, self.ffn(h), self.ffn_gains), present


def weighed(residual: Tensor, branch: Tensor, gains: Gains) -> Tensor:
    """Return alpha * residual + beta * branch; a factor of 1 costs nothing."""
    parts = zip((residual, branch), gains, strict=True)
    first, second = (x if gain == 1 else x * gain for x, gain in parts)
    return first + second
