"""Weights of two engines, byte by byte, with a few megabytes of each in memory at a time."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lmcast.exporter.dtypes import OF_ONNX, DType

CHUNK = 1 << 20  # elements, an even number: of 4-bit ones two share a byte
PACKED = "uint8"  # holds codes of other widths, whose differences are no numbers


@dataclass(frozen=True)
class Numbers:
    """A weight whose numbers differ: how many of them, and the largest difference; None where they
    are packed codes, infinite where a number is beside none."""

    place: str
    differ: int
    elements: int
    largest: float | None

    def as_json(self) -> dict[str, Any]:
        """Return it; JSON knows no infinity."""
        finite = self.largest is not None and math.isfinite(self.largest)
        return {**asdict(self), "largest": self.largest if finite else None}

    def text(self) -> str:
        """Return it in a line."""
        much = "" if self.largest is None else f", by up to {self.largest:.3g}"
        return f"{self.place}: {self.differ:,} of {self.elements:,} numbers differ{much}"


def compare(before: ir.Value, after: ir.Value, advance: Callable[[int], None]) -> Numbers | None:
    """Compare two weights of one name; None where they are equal, or not of one shape.

    advance: called with numbers of bytes of the second.
    """
    one, other = before.const_value, after.const_value
    if one is None or other is None or tuple(one.shape) != tuple(other.shape):
        return None
    if _same_place(one, other):
        advance(other.nbytes)
        return None
    dtypes = [OF_ONNX[int(tensor.dtype)] for tensor in (one, other)]
    differ, largest = 0, 0.0
    for old, new in zip(_chunks(one, dtypes[0]), _chunks(other, dtypes[1]), strict=True):
        advance(new.nbytes)
        if old.dtype == new.dtype and old.tobytes() == new.tobytes():
            continue
        wide, also = old.astype(np.float64), new.astype(np.float64)
        unlike = _bits(old) != _bits(new) if old.dtype == new.dtype else wide != also
        differ += int(unlike.sum())
        if unlike.any():
            with np.errstate(invalid="ignore"):  # of infinities
                gap = np.abs(wide[unlike] - also[unlike])
            largest = max(largest, math.inf if np.isnan(gap).any() else float(gap.max()))
    if not differ:
        return None
    packed = any(dtype.name == PACKED for dtype in dtypes)
    return Numbers(str(after.name), differ, other.size, None if packed else largest)


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(f"u{values.itemsize}")


def _same_place(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    """Whether both are the same bytes of the same file, as of engines linked to one checkpoint."""
    if not (isinstance(one, ir.ExternalTensor) and isinstance(other, ir.ExternalTensor)):
        return False
    place = (one.offset, one.dtype) == (other.offset, other.dtype)
    return place and os.path.samefile(one.path, other.path)


def _chunks(tensor: ir.TensorProtocol, dtype: DType) -> Iterator[np.ndarray]:
    """Yield the numbers of a tensor in order, flat."""
    for begin in range(0, tensor.size, CHUNK):
        count = min(CHUNK, tensor.size - begin)
        first, length = begin * dtype.bits // 8, -(-count * dtype.bits // 8)
        if isinstance(tensor, ir.ExternalTensor):
            with open(tensor.path, "rb") as file:
                file.seek((tensor.offset or 0) + first)
                data = file.read(length)
        else:
            data = tensor.tobytes()[first : first + length]
        codes = np.frombuffer(data, np.uint8)
        if dtype.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], -1).ravel()[:count]
        yield codes.view(dtype.numpy)
