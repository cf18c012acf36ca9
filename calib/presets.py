"""The names of `lmcast calibrate --recipe`: a format, how inputs are rounded, what is tried."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmcast.graphs.blocks.quantized import InputFormat

PLAIN = InputFormat()
WEIGHT_ONLY = ("rtn", "clip", "awq+clip", "gptq+refine", "awq+gptq+refine")
BOTH = ("rtn", "gptq", "smoothquant", "smoothquant+gptq+refine")
TURNED = ("rtn", "gptq+refine", "balance+gptq+refine")


@dataclass(frozen=True)
class Preset:
    """weights: a name of calib.formats.WEIGHTS. ladder: names of ALGORITHMS; of the first, what the
    others must be better than."""

    weights: str
    inputs: InputFormat
    ladder: tuple[str, ...]


PRESETS: Mapping[str, Preset] = {
    "fp8": Preset("fp8-channel", InputFormat("fp8"), BOTH),
    "fp8-static": Preset("fp8-channel", InputFormat("fp8", static=True), ("rtn", "gptq")),
    "mxfp8": Preset("mxfp8", InputFormat("mxfp8"), BOTH),
    "mxfp4": Preset("mxfp4", PLAIN, WEIGHT_ONLY),
    "mxfp4-w4a8": Preset("mxfp4", InputFormat("mxfp8"), WEIGHT_ONLY),
    "mxfp4-w4a4": Preset("mxfp4", InputFormat("mxfp4", rotation=32), TURNED),
    "nvfp4": Preset("nvfp4", InputFormat("nvfp4"), WEIGHT_ONLY),
    "nvfp4-weight": Preset("nvfp4", PLAIN, WEIGHT_ONLY),
    "int8": Preset("int8", PLAIN, ("rtn", "clip", "gptq")),
    "int8-w8a8": Preset("int8", InputFormat("int8"), BOTH),
    "int4": Preset("int4", PLAIN, WEIGHT_ONLY),
    "int4-64": Preset("int4-64", PLAIN, WEIGHT_ONLY),
    "int4-128": Preset("int4-128", PLAIN, WEIGHT_ONLY),
}
