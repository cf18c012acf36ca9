"""MXFP4 (OCP MX 1.0): E2M1 numbers, a power of two (E8M0) for every 32 columns."""

import torch

from lmcast.calib.formats.scales import next_powers, powers
from lmcast.calib.formats.weight import WeightFormat
from lmcast.graphs.quantized import Scheme
from lmcast.plugins.numbers import E2M1_MOST

# The largest number is 1.5 * 2^2.
EXPONENT, CARRY = 2, 1 << 21

MXFP4 = WeightFormat(
    "mxfp4",
    Scheme("e2m1", (1, 32), torch.float8_e8m0fnu),
    E2M1_MOST,
    powers(EXPONENT, CARRY),
    next_powers,
)
