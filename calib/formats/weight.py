"""A format of quantized weights: how scales and codes are chosen, and the error they leave.

Letters: ... a stack's axis or none, N rows (output features), K columns (input features), B blocks.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmcast.calib.formats import strips
from lmcast.calib.formats.strips import Factors, FormatError, Rule
from lmcast.graphs.weights.quantized import Quantized, Scheme

# Of a strip whose candidates torch compares: blocks of 16 of them are no work for threads of torch.
COMPARED = 1 << 18
LEAST = 2.0**-126  # of fp32 scales: what is smaller has fewer bits, and products of it none


@dataclass(frozen=True)
class WeightFormat:
    """How a weight ...,N,K of finite fp32, bf16 or fp16 numbers is quantized.

    rule: (largest magnitudes of blocks, shared) -> their scales, both fp32; shared is 1, or the
        shared scale if the scheme has one.
    candidates: scales ... -> C,...; other scales for a search to try, as stored.
    span: the largest magnitude that a block can hold when its scale is 1; with the largest scale,
        if there is a shared one.
    """

    name: str
    scheme: Scheme
    span: float
    rule: Rule
    candidates: Callable[[Tensor], Tensor]

    @property
    def whole(self) -> bool:
        """Whether scales depend on all rows: from some of the rows they follow only with `most`
        given."""
        return self.scheme.shared or not self.scheme.block[0]

    def most(self, weight: Tensor) -> Tensor:
        """Return the largest magnitude of each matrix: ...,1,1 fp32 (of parts: torch.maximum)."""
        self.check(weight)
        return strips.largest(weight)

    def scales(self, weight: Tensor, most: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the scales of blocks by their largest magnitudes, as stored, and the shared one.

        most: the largest magnitude of the whole matrix, where `weight` has only some of its rows.
        """
        self.check(weight)
        if not self.whole:
            return strips.scales(weight, self.scheme, self.rule, torch.ones(())), None
        top = strips.largest(weight) if most is None else most
        if not self.scheme.shared:
            return self.rule(top, torch.ones(())), None
        shared = torch.where(top > 0, (top / self.span).clamp(min=LEAST), 1.0)
        shared = shared if weight.dim() > 2 else shared.reshape(())
        return self._with(weight, shared)

    def pack(
        self, weight: Tensor, scales: Tensor | None = None, shared: Tensor | None = None
    ) -> Quantized:
        """Return the nearest codes, ties to the even one, saturating.

        scales: as stored; None: by the largest magnitudes.
        shared: the shared scale that `scales` were made with; None: by the largest magnitude.

        Raises FormatError for Inf and NaN in weight or scales: MX allows a block to be NaN, but a
        checkpoint that has one is damaged.
        """
        self.check(weight)
        if scales is None or (self.scheme.shared and shared is None):
            own, shared = self.scales(weight) if shared is None else self._with(weight, shared)
            scales = own if scales is None else scales
        factors = self._factors(weight, scales, shared)
        codes = strips.encode(weight, factors, self.scheme)
        return Quantized(self.scheme, codes, scales, shared)

    def round(self, values: Tensor, factors: Tensor) -> Tensor:
        """Return the values after packing with these factors and dequantizing, fp32.

        factors: positive, fp32, of any shape that broadcasts to that of the values.
        """
        return strips.rounded(values, factors, self.scheme.element)

    def search(
        self, weight: Tensor, importance: Tensor | None = None, shared: Tensor | None = None
    ) -> Tensor:
        """Return scales, as stored, with the least squared error among the rule's and its
        candidates.

        importance: K or ...,K fp32, multiplies the squared error of every column. shared: as in
        pack. Of equally good scales the first is kept, the rule's own before all.
        """
        scales, shared = self.scales(weight) if shared is None else self._with(weight, shared)
        if self.scheme.block[0] != 1:
            return self._best(weight, scales, shared, importance)
        columns, stack = weight.shape[-1], weight.shape[:-2]
        times = self._importance(weight, importance).expand(*stack, columns).reshape(-1, columns)
        by = None if shared is None else shared.expand(*stack, 1, 1).reshape(-1, 1, 1)
        matrices, out = strips.stacked(weight), torch.empty_like(scales)
        of, places = strips.stacked(scales), strips.stacked(out)

        def work(matrix: int, begin: int, end: int) -> None:
            own = of[matrix, begin:end]
            tried = torch.cat([own[None], self.candidates(own)])
            factors = strips.numbers(tried) * (1 if by is None else by[matrix].numpy())
            best = strips.search(matrices[matrix, begin:end], factors, times[matrix], self.scheme)
            places[matrix, begin:end] = strips.picked(tried, best)

        strips.each_strip(matrices, work, values=COMPARED)
        return out

    def _best(
        self, weight: Tensor, scales: Tensor, shared: Tensor | None, importance: Tensor | None
    ) -> Tensor:
        best = self.squares(weight, scales, shared, importance)
        for other in self.candidates(scales):
            squares = self.squares(weight, other, shared, importance)
            better = squares < best
            best = torch.where(better, squares, best)
            scales = _choose(better, other, scales)
        return scales

    def squares(
        self,
        weight: Tensor,
        scales: Tensor,
        shared: Tensor | None = None,
        importance: Tensor | None = None,
    ) -> Tensor:
        """Return the squared errors of every block, summed: fp64 in the shape of the scales."""
        self.check(weight)
        importance = self._importance(weight, importance)
        factors = self._factors(weight, scales, shared)
        return strips.errors(weight, factors, importance, self.scheme)

    def error(self, weight: Tensor, packed: Quantized) -> float:
        """Return the mean squared error of a packed weight."""
        self.check(weight)
        return strips.missed(weight, packed) / weight.numel()

    def pack_rows(
        self, blocks: Iterable[Tensor], most: Tensor | None = None
    ) -> Iterator[Quantized]:
        """Pack a matrix that comes in runs of rows n,K: yield its parts, in order.

        most: where `whole`, the largest magnitude of all rows, from a first pass over them; else
        None. Runs have whole blocks, but for the last.
        """
        if self.whole and most is None:
            raise FormatError(f"{self.name}: scales of rows need the largest value of all rows")
        for rows in strips.regroup(blocks, self.scheme.block[0] or 1):
            scales, shared = self.scales(rows, most)
            if self.scheme.block == (0, 0):
                scales = scales.reshape(1, 1)
            yield self.pack(rows, scales, shared)

    def check(self, weight: Tensor) -> None:
        """Raise FormatError for what no scheme of this format can hold."""
        strips.check(self.name, weight)
        block, columns = self.scheme.block, weight.shape[-1]
        if block[0] == 1 and block[1] and columns % block[1]:
            raise FormatError(
                f"{self.name}: a weight {list(weight.shape)} has {columns} columns; accepted:"
                f" multiples of {block[1]}, the columns that share a scale"
            )

    def _importance(self, weight: Tensor, importance: Tensor | None) -> Tensor:
        columns = weight.shape[-1]
        if importance is None:
            return torch.ones(columns)
        if importance.shape not in ((columns,), (*weight.shape[:-2], columns)):
            raise FormatError(
                f"{self.name}: importance has shape {list(importance.shape)} for a weight"
                f" {list(weight.shape)}; accepted: one number for each of {columns} columns"
            )
        return importance

    def _with(self, weight: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        self._require_shared(weight, shared)
        return strips.scales(weight, self.scheme, self.rule, shared), shared

    def _require_shared(self, weight: Tensor, shared: Tensor | None) -> None:
        stack = (*weight.shape[:-2], 1, 1)
        places = ((), stack) if self.scheme.shared else (None,)
        found = None if shared is None else tuple(shared.shape)
        if found not in places:
            raise FormatError(
                f"{self.name}: what scales share has shape {found} for a weight"
                f" {list(weight.shape)}; accepted: {' or '.join(map(str, places))}"
            )

    def _factors(self, weight: Tensor, scales: Tensor, shared: Tensor | None) -> Factors:
        accepted = self.scheme.scales_shape(tuple(weight.shape))
        if tuple(scales.shape) != accepted or scales.dtype != self.scheme.scale:
            raise FormatError(
                f"{self.name}: scales are {scales.dtype} {list(scales.shape)} for a weight"
                f" {list(weight.shape)}; accepted: {self.scheme.scale} {list(accepted)}"
            )
        self._require_shared(weight, shared)
        of = strips.stacked(scales)
        by = None if shared is None else shared.float().expand(*weight.shape[:-2], 1, 1)
        each = None if by is None else by.reshape(-1, 1, 1).numpy()

        def factors(matrix: int, rows: slice) -> Any:
            found = strips.numbers(of[matrix, rows])
            found = found if each is None else found * each[matrix]
            if not 0 <= found.min() <= found.max() < math.inf:  # NaN is neither
                raise FormatError(
                    f"{self.name}: scales are NaN, Inf or negative; accepted: from 0 on"
                )
            return found

        return factors


def _choose(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """torch.where for 8-bit floats, which torch itself does not select from."""
    if yes.dtype.itemsize > 1:
        return torch.where(which, yes, no)
    return torch.where(which, yes.view(torch.uint8), no.view(torch.uint8)).view(yes.dtype)
