"""The catalogue of number formats that weights are stored and computed in."""

from lmcast.calib.formats.floats import BY_DTYPE, FORMATS, Format

__all__ = ["BY_DTYPE", "FORMATS", "Format"]
