"""The way of Gemma 3n's other models into its text: a norm, a map to the text's width, a norm.

Letters: F features, B rows, T tokens, D width of the other model, H width of the text, V ids of its
own vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.norm import UnitNorm, WideRMSNorm
from lmcast.graphs.weights.bind import Table
from lmcast.graphs.weights.sources import View


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


class HardTokens(nn.Module):
    """Ids from `first` on are those of another model: rows of its table, on the way of its states.

    What the rows become follows from weights alone: runtimes compute it once.
    """

    def __init__(self, first: int, vocab: int, dim: int, hidden_size: int, eps: float):
        super().__init__()
        self.first = first
        self.weight = nn.Parameter(torch.empty(vocab, dim))
        self.into = SoftTokens(dim, hidden_size, eps)

    def forward(self, input_ids: Tensor, x: Tensor) -> Tensor:
        """input_ids B,T int64; x B,T,H: their embeddings in the text's own table -> B,T,H."""
        rows = self.into(self.weight)  # V,H
        own = (input_ids - self.first).clamp(0, rows.shape[0] - 1)
        return torch.where((input_ids < self.first)[..., None], x, F.embedding(own, rows))


def hard_weights(module: str) -> Table:
    """Return the weight table of HardTokens; module: of the checkpoint."""
    return {
        "weight": View(f"{module}.embedding.weight"),
        "into.norm": f"{module}.hard_embedding_norm",
        "into.project": f"{module}.embedding_projection",
    }
