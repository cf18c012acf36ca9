"""Presets of `lmcast calibrate --recipe`: weight format, rounding of inputs, algorithms to try."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmcast.graphs.blocks.quantized import InputFormat

PLAIN = InputFormat()
# Measured on single layers of SmolLM2: awq's factors were behind balance's in every format, and
# inputs in FP8, whose steps are relative, gained nothing from any.
PLAINLY = ("rtn", "gptq+refine")
SMOOTHED = ("rtn", "clip", "gptq+refine", "balance+gptq+refine")
SMOOTHQUANT = ("rtn", "smoothquant", "smoothquant+gptq+refine", "balance+gptq+refine")


@dataclass(frozen=True)
class Preset:
    """weights: a name of calib.formats.WEIGHTS. ladder: names of ALGORITHMS; of the first, what the
    others must be better than."""

    weights: str
    inputs: InputFormat
    ladder: tuple[str, ...]


PRESETS: Mapping[str, Preset] = {
    "fp8": Preset("fp8-channel", InputFormat("fp8"), PLAINLY),
    "fp8-static": Preset("fp8-channel", InputFormat("fp8", static=True), PLAINLY),
    "mxfp8": Preset("mxfp8", InputFormat("mxfp8"), PLAINLY),
    "mxfp4": Preset("mxfp4", PLAIN, SMOOTHED),
    "mxfp4-w4a8": Preset("mxfp4", InputFormat("mxfp8"), SMOOTHED),
    "mxfp4-w4a4": Preset("mxfp4", InputFormat("mxfp4", rotation=32), SMOOTHED),
    "nvfp4": Preset("nvfp4", InputFormat("nvfp4"), SMOOTHED),
    "nvfp4-weight": Preset("nvfp4", PLAIN, SMOOTHED),
    "int8": Preset("int8", PLAIN, SMOOTHED),
    "int8-w8a8": Preset("int8", InputFormat("int8"), SMOOTHQUANT),
    "int4": Preset("int4", PLAIN, SMOOTHED),
    "int4-64": Preset("int4-64", PLAIN, SMOOTHED),
    "int4-128": Preset("int4-128", PLAIN, SMOOTHED),
}
