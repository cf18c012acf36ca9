"""Scales of blocks, and what they make of values."""

import torch
from torch import Tensor

from lmcast.calib.formats import WeightFormat
from lmcast.graphs.weights.quantized import Quantized


def searched(
    weight: Tensor, format: WeightFormat, importance: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return scales of a weight N,K, as stored, and what they share.

    importance K: what the squared error of every column counts.
    """
    _, shared = format.scales(weight)
    return format.search(weight, importance, shared), shared


def spread(weight: Tensor, format: WeightFormat, scales: Tensor, shared: Tensor | None) -> Tensor:
    """Return what the code of every value of a weight N,K is multiplied with: N,K fp32."""
    shape = format.scheme.codes_shape(tuple(weight.shape))
    form = Quantized(format.scheme, torch.empty(shape, dtype=torch.uint8), scales, shared)
    return form.spread(form.factors()).expand_as(weight)


def tried(wanted: Tensor, format: WeightFormat, shared: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return scales C,N to try for a block B,N that lies turned, as stored, and factors C,1,N."""
    most = wanted.abs().amax(0)
    own = format.rule(most, torch.ones(()) if shared is None else shared)
    scales = torch.stack([own, *format.candidates(own)])
    factors = scales.float() if shared is None else scales.float() * shared
    return scales, factors[:, None]
