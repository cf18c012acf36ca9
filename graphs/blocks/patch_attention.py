"""Attention among the patches of a picture: no mask, no cache, places on two axes.

Letters: N pictures, M merged tokens of each, K patches that merge into one, S tokens within the
tower, D width, d width of a head, R = d/2 angles of a rotation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.rope import Rotation
from lmcast.graphs.blocks.tower import TowerPart


class PatchAttention(nn.Module):
    """Every token of a picture attends to all of it; scores are scaled by 1/sqrt(d).

    rotation: of queries and keys by the tables cos and sin N,S,R; None where there are none.
    bias: of the queries, keys and values. out_bias: of the output, None for the same.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        rotation: Rotation | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"a width of {dim} does not divide among {heads} heads")
        self.heads, self.width = heads, dim // heads
        self.rotation = rotation
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=bias) for _ in range(3))
        self.o = nn.Linear(dim, dim, bias=bias if out_bias is None else out_bias)

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        """x N,S,D; tables: cos and sin N,S,R -> N,S,D."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.rotation is not None:
            cos, sin = tables
            q, k = (self.rotation(part, cos, sin, self.heads) for part in (q, k))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.width**-0.5)  # N,heads,S,d
        return self.o(y.transpose(1, 2).flatten(2))


class PatchRope(TowerPart):
    """cos and sin of the angles `row * row_frequency + column * column_frequency`, N,S,R in fp32.

    row_frequency, column_frequency: R numbers each, 0 where the other axis turns the pair.
    first: what rows and columns count from. unturned: tokens behind the patches, whose angles
    are 0.
    """

    takes = ("patches", "rows", "columns")

    def __init__(
        self,
        row_frequency: Tensor,
        column_frequency: Tensor,
        *,
        first: int = 0,
        unturned: int = 0,
    ):
        super().__init__()
        self.row_frequency, self.column_frequency = row_frequency, column_frequency
        self.first = first
        self.still = torch.zeros(unturned, len(row_frequency), device="cpu") if unturned else None

    def forward(self, patches: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """patches N,M,K,E, of which only N counts; rows, columns M,K int64."""
        angle = self._angle(rows, self.row_frequency) + self._angle(columns, self.column_frequency)
        if self.still is not None:
            angle = torch.cat([angle, self.still.to(angle.device)])
        cos, sin = angle.cos()[None], angle.sin()[None]  # 1,S,R
        pictures = patches.shape[0]
        return cos.expand(pictures, -1, -1), sin.expand(pictures, -1, -1)

    def _angle(self, places: Tensor, frequency: Tensor) -> Tensor:
        counted = places + self.first if self.first else places
        return counted.flatten()[:, None].float() * frequency.to(places.device)  # S,R


def frequencies(theta: float, dim: int) -> Tensor:
    """Return `theta ** (-2j / dim)` for j below dim/2 in fp32, in Hugging Face's order of
    operations; raises ValueError where dim is odd."""
    if dim % 2:
        raise ValueError(f"a rotation over {dim} numbers has no pairs; accepted: an even width")
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim
    return 1.0 / (theta**exponents)
