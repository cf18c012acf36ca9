"""Number formats of the cache of keys and values.

Letters: B batch, T tokens in this call, G key heads, K width of keys, V of values.
"""

import torch
from torch import Tensor, nn

from lmcast.graphs.weights.bind import Wide

Scales = tuple[Tensor | None, Tensor | None]


class Cache(nn.Module):
    """An unquantized cache. Called with new keys B,T,G,K and values B,T,G,V, a cache returns the
    scales of both, None where there are none."""

    dtype: torch.dtype | None = None  # of the cache; None: that of the model

    def forward(self, key: Tensor, value: Tensor) -> Scales:
        return None, None


class Fp8Cache(Wide):
    """An FP8 cache (plugins.attention.fp8_cache) with one scale for keys and one for values.

    Each scale is a parameter () that stays in fp32.
    """

    dtype = torch.float8_e4m3fn
    wide = ("key_scale", "value_scale")

    def __init__(self, device: torch.device | str | None = None):
        super().__init__()
        self.key_scale = nn.Parameter(torch.empty((), device=device))
        self.value_scale = nn.Parameter(torch.empty((), device=device))

    def forward(self, key: Tensor, value: Tensor) -> Scales:
        return self.key_scale, self.value_scale
