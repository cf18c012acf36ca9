"""A vision tower: patches of pictures of one grid become features of the text's width.

Letters: N pictures (tiles, crops, frames) of one grid, M merged tokens of each, K patches that
merge into one, E numbers of a patch, J rows of a table that a place is mixed of, S tokens within
the tower (M * K, and one where there is a class token), D width of the tower, R angles of a
head's rotation, H width of the text.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.norm import widen

Axes = tuple[int | str, ...]
Inputs = Mapping[str, tuple[Axes, torch.dtype]]


class TowerPart(nn.Module):
    """A part of a tower that is called on some of the tower's inputs.

    takes: the names of those, in order.
    """

    takes: tuple[str, ...] = ()


class Tower(nn.Module):
    """Patches of N pictures of one grid -> features N*M,H in the dtype of the parameters.

    Attention is over all patches of a picture and no others; patches come in merge order, those
    that become one token side by side.

    inputs: the axes and dtype of every input, by name and in order; patches come first.
    embed: its inputs -> x N,S,D.
    positions: its inputs -> the tensors N,S,R that every block takes besides x; None for none.
    blocks: x and those tensors -> x.
    merger: x, what blocks `keeps` gave, and its inputs -> features N*M,H.
    keeps: indices of blocks whose x the merger also takes.
    """

    def __init__(
        self,
        *,
        inputs: Inputs,
        embed: TowerPart,
        positions: TowerPart | None,
        blocks: Sequence[nn.Module],
        merger: TowerPart,
        keeps: Sequence[int] = (),
    ):
        super().__init__()
        self.inputs = inputs
        self.embed, self.positions = embed, positions
        self.blocks = nn.ModuleList(blocks)
        self.merger, self.keeps = merger, tuple(keeps)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the features."""

        def given(part: nn.Module) -> list[Tensor]:
            return [inputs[name] for name in cast(TowerPart, part).takes]

        x = self.embed(*given(self.embed))
        shared = () if self.positions is None else self.positions(*given(self.positions))
        kept = []
        for index, block in enumerate(self.blocks):
            x = block(x, *shared)
            if index in self.keeps:
                kept.append(x)
        features: Tensor = self.merger(x, *kept, *given(self.merger))
        return features


def tower_inputs(
    patch: int, merged: int | str, *, taps: int = 0, frames: bool = False
) -> dict[str, tuple[Axes, torch.dtype]]:
    """Return the inputs of a tower.

    patch: E. merged: K, or "K" where calls may differ. taps: J, 0 for towers without. frames:
    whether it takes the frame of each patch.
    """
    places: Axes = ("M", merged)
    found: dict[str, tuple[Axes, torch.dtype]] = {
        "patches": (("N", *places, patch), torch.float32),
        "rows": (places, torch.int64),
        "columns": (places, torch.int64),
    }
    if taps:
        found["taps"] = ((*places, taps), torch.int64)
        found["weights"] = ((*places, taps), torch.float32)
    if frames:
        found["frames"] = (places, torch.int64)
    return found


class PatchEmbed(TowerPart):
    """`norm(W patches + bias + places)`, where W is a convolution whose stride is its kernel.

    kernel: channels and sides of a patch, as the weight D,*kernel has them. places: what is added
    for the place of each patch, S,D; None for nothing.
    """

    def __init__(
        self,
        dim: int,
        kernel: tuple[int, ...],
        *,
        bias: bool,
        places: TowerPart | None = None,
        norm: nn.Module | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, *kernel))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.places, self.norm = places, norm or nn.Identity()
        self.takes = ("patches", *(places.takes if places is not None else ()))

    def forward(self, patches: Tensor, *inputs: Tensor) -> Tensor:
        """patches N,M,K,E in fp32, and the inputs of `places` -> x N,S,D."""
        x = patches.to(self.weight.dtype).flatten(1, 2)  # N,S,E
        x = F.linear(x, self.weight.flatten(1), self.bias)
        if self.places is not None:
            x = x + self.places(*inputs)
        return cast(Tensor, self.norm(x))


class MixedRows(TowerPart):
    """`sum of weights_j * table[taps_j]`: a learned grid of places, enlarged or reduced to another.

    grid: axes of the table, whose rows are counted over all of them.
    """

    takes = ("taps", "weights")

    def __init__(self, grid: tuple[int, ...], dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*grid, dim))

    def forward(self, taps: Tensor, weights: Tensor) -> Tensor:
        """taps M,K,J int64, weights M,K,J in fp32 -> S,D in the dtype of the table; the sum is
        taken in fp32 or wider."""
        rows, shares = taps.flatten(0, 1), weights.flatten(0, 1)[..., None]  # S,J and S,J,1
        table = self.weight.flatten(0, -2)
        # Row by row: all at once would take J times the memory.
        mixed = shares[:, 0] * widen(F.embedding(rows[:, 0], table))
        for j in range(1, taps.shape[-1]):
            mixed = mixed + shares[:, j] * widen(F.embedding(rows[:, j], table))
        return mixed.to(table.dtype)


class ConcatMerger(TowerPart):
    """Patches that merge into one token side by side, then a feed-forward with an exact GELU.

    norm: of each patch. late_norm: of the patches side by side.
    """

    def __init__(
        self,
        dim: int,
        merged: int,
        out: int,
        *,
        norm: nn.Module | None = None,
        late_norm: nn.Module | None = None,
    ):
        super().__init__()
        self.merged = merged
        self.norm, self.late_norm = norm or nn.Identity(), late_norm or nn.Identity()
        self.up = nn.Linear(merged * dim, merged * dim)
        self.down = nn.Linear(merged * dim, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).unflatten(1, (-1, self.merged)).flatten(2).flatten(0, 1)  # N*M,K*D
        down: Tensor = self.down(F.gelu(self.up(self.late_norm(x))))
        return down


class TowerLayer(nn.Module):
    """Two residual branches, attention and a feed-forward, each behind a norm."""

    def __init__(
        self,
        *,
        pre_attention: nn.Module,
        attention: nn.Module,
        pre_ffn: nn.Module,
        ffn: nn.Module,
    ):
        super().__init__()
        self.pre_attention, self.attention = pre_attention, attention
        self.pre_ffn, self.ffn = pre_ffn, ffn

    def forward(self, x: Tensor, *positions: Tensor) -> Tensor:
        x = x + self.attention(self.pre_attention(x), *positions)
        return cast(Tensor, x + self.ffn(self.pre_ffn(x)))
