"""The way of Gemma 3n's other models into its text: a norm, a map to the text's width, a norm.

Letters: F features, D width of the other model, H width of the text, V ids of its own vocabulary.
"""

from torch import Tensor, nn

from lmcast.graphs.blocks.norm import UnitNorm, WideRMSNorm


class SoftTokens(nn.Module):
    """States of a tower F,D -> features F,H."""

    def __init__(self, dim: int, hidden_size: int, eps: float):
        super().__init__()
        self.norm = WideRMSNorm(dim, eps)
        self.project = nn.Linear(dim, hidden_size, bias=False)
        self.post = UnitNorm(hidden_size, eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.post(self.project(self.norm(x)))
        return y
