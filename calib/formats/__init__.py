"""The catalogue of number formats that weights are stored in."""

from collections.abc import Mapping

from lmcast.calib.formats.fp8 import FP8, FP8_BLOCK, FP8_CHANNEL
from lmcast.calib.formats.int4 import INT4, INT4_64, INT4_128
from lmcast.calib.formats.int8 import INT8
from lmcast.calib.formats.mxfp4 import MXFP4
from lmcast.calib.formats.mxfp8 import MXFP8
from lmcast.calib.formats.nvfp4 import NVFP4
from lmcast.calib.formats.strips import FormatError
from lmcast.calib.formats.weight import WeightFormat

# What `lmcast calibrate` packs weights into.
WEIGHTS: Mapping[str, WeightFormat] = {
    f.name: f
    for f in (
        FP8, FP8_CHANNEL, FP8_BLOCK, MXFP8, MXFP4, NVFP4, INT8, INT4, INT4_64, INT4_128,
    )
}  # fmt: skip

__all__ = ["WEIGHTS", "FormatError", "WeightFormat"]
