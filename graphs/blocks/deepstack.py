"""Further features of pictures, added behind the first layers of a text (arXiv 2406.04334).

Letters: B batch, T tokens in this call, F features that it uses, H width of the text.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.step import Handoff, Step


class Deepstack(nn.Module):
    """`x + features[rows]` where pictures stand, x where there is text.

    images: hands over features, whose numbers from `first` on are these, and rows; a call without
    pictures hands over nothing.
    """

    def __init__(self, images: Handoff, first: int):
        super().__init__()
        self.images, self.first = images, first

    def forward(self, x: Tensor, step: Step) -> Tensor:
        if not step.holds(self.images):
            return x
        features, rows = step.take(self.images)
        own = features[:, self.first : self.first + x.shape[-1]]
        added = F.embedding(rows.clamp(min=0), own.to(x.dtype))  # B,T,H
        return x + torch.where((rows < 0)[..., None], 0.0, added)
