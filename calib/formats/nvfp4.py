"""NVFP4: E2M1 numbers, an E4M3 scale for every 16 columns, and fp32 that all scales share."""

import torch

from lmcast.calib.formats.scales import next_codes, shared_quotients
from lmcast.calib.formats.weight import WeightFormat
from lmcast.graphs.weights.elements import E2M1
from lmcast.graphs.weights.quantized import Scheme
from lmcast.plugins.rounding import E2M1_MOST, E4M3_MOST

NVFP4 = WeightFormat(
    "nvfp4",
    Scheme(E2M1, (1, 16), torch.float8_e4m3fn, shared=True),
    E2M1_MOST * E4M3_MOST,
    shared_quotients,
    next_codes,
)
