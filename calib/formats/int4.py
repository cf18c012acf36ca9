"""INT4: codes -8 to 7 without a zero point, an fp16 scale for every 32, 64 or 128 columns.

-8 is one of only 16 codes, so it is used: the largest magnitude becomes 7.5, half way between what
both signs can have, as compressed-tensors has it too. Mean squared error in thousandths of the mean
square, in blocks of 32: SmolLM2-135M 9.7 (10.2 with 7), Gemma 3 270M 10.0 (10.4), normal numbers
9.0 (9.4). fp16, as ONNX Runtime's and TensorRT's kernels take it, is half a bit a number in blocks
of 32, and rounding it costs nothing, as codes are chosen for the rounded scale.
"""

import torch

from lmcast.calib.formats.scales import quotients, times
from lmcast.calib.formats.weight import WeightFormat
from lmcast.graphs.weights import elements
from lmcast.graphs.weights.quantized import Scheme

MOST = 7.5


def _format(name: str, columns: int) -> WeightFormat:
    rule = quotients(MOST, torch.float16)
    return WeightFormat(name, Scheme(elements.INT4, (1, columns), torch.float16), MOST, rule, times)


INT4, INT4_64, INT4_128 = _format("int4", 32), _format("int4-64", 64), _format("int4-128", 128)
