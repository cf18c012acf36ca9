"""MXFP4 (OCP MX 1.0): E2M1 numbers, a power of two (E8M0) for every 32 columns.

The power is floor(log2(largest)) - 2, as OCP has it, or the next where the largest magnitude is
1.75 times a power of two or more: there OCP's would cut 7 to 6 or more. It is what
compressed-tensors and Quark call `even`, and what quantize_input does. Mean squared error in
thousandths of the mean square: SmolLM2-135M 12.96 (OCP's rule 13.78, ModelOpt's, which never
saturates, 14.15), Gemma 3 270M 13.17 (13.64, 14.45), normal numbers 12.53 (13.22, 13.34).
"""

import torch

from lmcast.calib.formats.scales import next_powers, powers
from lmcast.calib.formats.weight import WeightFormat
from lmcast.graphs.weights.elements import E2M1
from lmcast.graphs.weights.quantized import Scheme
from lmcast.plugins.rounding import E2M1_MOST

# The largest number is 1.5 * 2^2; a quarter of a mantissa below the next power is that power.
EXPONENT, CARRY = 2, 1 << 21

MXFP4 = WeightFormat(
    "mxfp4",
    Scheme(E2M1, (1, 32), torch.float8_e8m0fnu),
    E2M1_MOST,
    powers(EXPONENT, CARRY),
    next_powers,
)
