"""Arrays that callers give: integers of any dtype; what is none is refused by name."""

from typing import Any

import numpy as np

from lmcast.exporter.backends.runner import SessionError


def as_ids(input_ids: Any) -> np.ndarray:
    """Return integers B,T of any dtype and value, not empty; raises SessionError."""
    ids = as_integers("input_ids", input_ids)
    if ids.ndim != 2 or not ids.size:
        raise SessionError(
            f"input_ids has shape {list(ids.shape)}; accepted: [rows, tokens], not empty"
        )
    return ids


def within(name: str, values: np.ndarray, below: int) -> np.ndarray:
    """Return integers of any dtype as int64; raises SessionError for any outside 0..below-1."""
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= below:
        raise SessionError(
            f"{name} holds {least if least < 0 else most}; accepted: 0 to {below - 1}"
        )
    return values.astype(np.int64)


def as_integers(name: str, values: Any) -> np.ndarray:
    """Return an array of integers, or an empty one; raises SessionError for anything else."""
    if isinstance(values, np.ma.MaskedArray):  # whose mask np.asarray forgets
        raise SessionError(f"{name} is a masked array; accepted: an array without a mask")
    try:
        array = np.asarray(values)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError,
            TypeError, ValueError) as error:  # fmt: skip  # what an object's __array__ may raise
        said = " ".join(str(error).split())
        raise SessionError(f"{name} is not a rectangular array of integers: {said:.200}") from None
    if array.size and array.dtype.kind not in "iu":  # numpy makes floats of an empty list
        raise SessionError(f"{name} holds {array.dtype}; accepted: integers")
    return array
