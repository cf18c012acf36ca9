"""Layers with one residual branch each (Nemotron-H)."""

from torch import Tensor, nn

from lmcast.graphs.blocks.decoder import Past
from lmcast.graphs.blocks.step import Mixer, Step


class SingleLayer(nn.Module):
    """`x + mixer(norm(x))`."""

    def __init__(self, norm: nn.Module, mixer: Mixer):
        super().__init__()
        self.norm, self.mixer = norm, mixer

    def forward(self, x: Tensor, step: Step, past: Past) -> tuple[Tensor, Past]:
        y, present = self.mixer(self.norm(x), step, past)
        return x + y, present


class TokenByToken(Mixer):
    """A feed-forward in the place of a mixer: it mixes no tokens, and carries nothing."""

    states = ()

    def __init__(self, ffn: nn.Module):
        super().__init__()
        self.ffn = ffn

    def forward(self, x: Tensor, step: Step, past: Past) -> tuple[Tensor, Past]:
        return self.ffn(x), ()
