"""Statistics of a layer's inputs for calibration: sums, and a sample of rows.

Letters: n rows (tokens), K width of the inputs.
"""

import torch
from torch import Tensor

from lmcast.plugins.errors import InputError

ROWS = 256  # rows of the sample at least, once that many were seen; at most twice as many
BINS = 1 << 15  # of magnitudes: one for each bfloat16 number that is not negative


class StatisticsError(InputError):
    """Inputs that cannot be counted."""


class InputStatistics:
    """Sums over all rows seen.

    gram: sum of x x^T, K,K fp32.
    drift: sum of (reference - x) x^T, K,K, the reference being the layer's input in the unquantized
        model; None until one is given.
    most, total: largest and summed magnitude of every channel, K.
    histogram: count of magnitudes by their upper 15 bits as bfloat16, truncated; int64.
    rows: a sample of the inputs, spread evenly over all.
    """

    def __init__(self, width: int):
        self.width, self.count = width, 0
        self.gram = torch.zeros(width, width)
        self.drift: Tensor | None = None
        self.most, self.total = torch.zeros(width), torch.zeros(width)
        self.histogram = torch.zeros(BINS, dtype=torch.int64)
        self.rows = torch.zeros(0, width)
        self._stride = 1  # every how many rows one is sampled

    def add(self, x: Tensor, reference: Tensor | None = None) -> None:
        """Count rows n,K fp32, and the same rows in the unquantized model.

        Raises StatisticsError where they are not finite.
        """
        if not x.isfinite().all():
            raise StatisticsError(
                "inputs of a layer are not finite; accepted: a model whose activations stay finite"
                " on the calibration text in fp32"
            )
        self.gram.addmm_(x.T, x)
        if reference is not None:
            if self.drift is None:
                self.drift = torch.zeros_like(self.gram)
            self.drift.addmm_((reference - x).T, x)
        size = x.abs()
        if len(x):
            self.most = torch.maximum(self.most, size.amax(0))
        self.total += size.sum(0)
        bins = size.contiguous().view(torch.int32).flatten() >> 16
        self.histogram += torch.bincount(bins, minlength=BINS)
        self._keep(x[-self.count % self._stride :: self._stride])
        self.count += len(x)

    def merge(self, other: "InputStatistics") -> None:
        """Add the statistics of other inputs of the same layer."""
        self.gram += other.gram
        if other.drift is not None:
            self.drift = other.drift.clone() if self.drift is None else self.drift + other.drift
        self.most = torch.maximum(self.most, other.most)
        self.total += other.total
        self.histogram += other.histogram
        stride = max(self._stride, other._stride)
        self.rows = self.rows[:: stride // self._stride]
        self._stride = stride
        self._keep(other.rows[:: stride // other._stride])
        self.count += other.count

    @property
    def mean(self) -> Tensor:
        """The mean magnitude of every channel, K."""
        return self.total / max(self.count, 1)

    def _keep(self, x: Tensor) -> None:
        self.rows = torch.cat([self.rows, x])
        while len(self.rows) > 2 * ROWS:
            self.rows, self._stride = self.rows[::2], 2 * self._stride
