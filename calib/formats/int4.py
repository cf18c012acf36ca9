"""INT4: codes -8 to 7 without a zero point, an fp16 scale for every 32, 64 or 128 columns.

-8 is one of only 16 codes: scales that search finds make use of it. fp16, as ONNX Runtime's and
TensorRT's kernels take it, costs 0.5 bits a number in blocks of 32, and its rounding nothing, as
codes are chosen for the rounded scale.
"""

import torch

from lmcast.calib.formats.scales import quotients, shrunk
from lmcast.calib.formats.weight import WeightFormat
from lmcast.graphs.quantized import Scheme

MOST = 7.0


def _format(name: str, columns: int) -> WeightFormat:
    rule = quotients(MOST, torch.float16)
    return WeightFormat(name, Scheme("int4", (1, columns), torch.float16), MOST, rule, shrunk)


INT4, INT4_64, INT4_128 = _format("int4", 32), _format("int4-64", 64), _format("int4-128", 128)
