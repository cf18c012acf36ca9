"""MXFP8 (OCP MX 1.0): E4M3 numbers, a power of two (E8M0) for every 32 columns.

The power is the least with which nothing saturates, as quantize_input and ModelOpt have it. OCP's
floor(log2(largest)) - 8 cuts up to an eighth of the largest magnitudes, and finer steps gain
nothing where numbers have exponents of their own: mean squared error in thousandths of the mean
square 0.703 on SmolLM2-135M (OCP's rule 0.932), 0.703 on Gemma 3 270M (0.899).
"""

import torch

from lmcast.calib.formats.scales import next_powers, powers
from lmcast.calib.formats.weight import WeightFormat
from lmcast.graphs.weights.elements import E4M3
from lmcast.graphs.weights.quantized import Scheme
from lmcast.plugins.rounding import E4M3_MOST

# The largest number is 1.75 * 2^8: what is above 1.75 times a power takes the next.
EXPONENT, CARRY = 8, (1 << 21) - 1

MXFP8 = WeightFormat(
    "mxfp8",
    Scheme(E4M3, (1, 32), torch.float8_e8m0fnu),
    E4M3_MOST,
    powers(EXPONENT, CARRY),
    next_powers,
)
