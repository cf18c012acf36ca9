"""INT8: codes -127 to 127, an fp32 scale for every row.

Without -128 a weight and its negative have the same codes, and two products of 8 bits fit the
16 bits in which some processors add them; the largest magnitude, at 127, never needs it.
"""

import torch

from lmcast.calib.formats.scales import quotients, times
from lmcast.calib.formats.weight import WeightFormat
from lmcast.graphs.weights import elements
from lmcast.graphs.weights.quantized import Scheme

MOST = 127.0

INT8 = WeightFormat(
    "int8",
    Scheme(elements.INT8, (1, 0), torch.float32),
    MOST,
    quotients(MOST, torch.float32),
    times,
)
