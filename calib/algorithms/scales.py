"""Scales of blocks: search, broadcast to values, candidates."""

import torch
from torch import Tensor

from lmcast.calib.formats import WeightFormat
from lmcast.graphs.weights.quantized import Quantized


def searched(
    weight: Tensor, format: WeightFormat, importance: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return scales of a weight N,K, as stored, and the shared one.

    importance: K; multiplies the squared error of every column.
    """
    _, shared = format.scales(weight)
    return format.search(weight, importance, shared), shared


def spread(weight: Tensor, format: WeightFormat, scales: Tensor, shared: Tensor | None) -> Tensor:
    """Broadcast scales: return the factor of every value of a weight N,K, fp32."""
    shape = format.scheme.codes_shape(tuple(weight.shape))
    form = Quantized(format.scheme, torch.empty(shape, dtype=torch.uint8), scales, shared)
    return form.spread(form.factors()).expand_as(weight)


def tried(wanted: Tensor, format: WeightFormat, shared: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return candidate scales C,N, as stored, of a transposed block B,N, and factors C,1,N."""
    most = wanted.abs().amax(0)
    own = format.rule(most, torch.ones(()) if shared is None else shared)
    scales = torch.cat([own[None], format.candidates(own)])
    factors = scales.float() if shared is None else scales.float() * shared
    return scales, factors[:, None]
