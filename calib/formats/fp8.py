"""FP8: E4M3 numbers (OCP 8-bit floating point 1.0) with fp32 scales, largest magnitude to 448."""

import torch

from lmcast.calib.formats.scales import quotients, times
from lmcast.calib.formats.weight import WeightFormat
from lmcast.graphs.weights.elements import E4M3
from lmcast.graphs.weights.quantized import Block, Scheme
from lmcast.plugins.rounding import E4M3_MOST


def _format(name: str, block: Block) -> WeightFormat:
    rule = quotients(E4M3_MOST, torch.float32)
    return WeightFormat(name, Scheme(E4M3, block, torch.float32), E4M3_MOST, rule, times)


FP8 = _format("fp8", (0, 0))
FP8_CHANNEL = _format("fp8-channel", (1, 0))
# DeepSeek's blocks; the last of both axes may be partial.
FP8_BLOCK = _format("fp8-block", (128, 128))
