"""The table of dtypes: their names in files and libraries. It needs no torch.

Names are torch's, which engine.json uses too; 4-bit types, which torch lacks, are named as in
ml_dtypes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DType:
    """One dtype. onnx: TensorProto.DataType. safetensors: in a header; None: it has none."""

    name: str
    onnx: int
    safetensors: str | None
    numpy: "np.dtype[Any]"
    bits: int

    @property
    def torch(self) -> "torch.dtype":
        import torch

        dtype = getattr(torch, self.name)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def bytes(self) -> int:
        """Bytes of one number; undefined for 4-bit types, of which two share a byte."""
        assert self.bits % 8 == 0, self.name
        return self.bits // 8


def _dtype(
    name: str, onnx: int, safetensors: str | None, numpy: Any = None, bits: int | None = None
) -> DType:
    held = np.dtype(numpy or name)
    return DType(name, onnx, safetensors, held, bits or 8 * held.itemsize)


# In the order in which safetensors lists them.
DTYPES: Mapping[str, DType] = {
    dtype.name: dtype
    for dtype in (
        _dtype("float64", 11, "F64"),
        _dtype("float32", 1, "F32"),
        _dtype("float16", 10, "F16"),
        _dtype("bfloat16", 16, "BF16", ml_dtypes.bfloat16),
        _dtype("float8_e4m3fn", 17, "F8_E4M3", ml_dtypes.float8_e4m3fn),
        _dtype("float8_e5m2", 19, "F8_E5M2", ml_dtypes.float8_e5m2),
        _dtype("float8_e8m0fnu", 24, "F8_E8M0", ml_dtypes.float8_e8m0fnu),
        _dtype("int64", 7, "I64"),
        _dtype("int32", 6, "I32"),
        _dtype("int16", 5, "I16"),
        _dtype("int8", 3, "I8"),
        _dtype("uint64", 13, "U64"),
        _dtype("uint32", 12, "U32"),
        _dtype("uint16", 4, "U16"),
        _dtype("uint8", 2, "U8"),
        _dtype("bool", 9, "BOOL"),
        # Two in a byte, the first in the low half.
        _dtype("float4_e2m1fn", 23, None, ml_dtypes.float4_e2m1fn, 4),
        _dtype("int4", 22, None, ml_dtypes.int4, 4),
        _dtype("uint4", 21, None, ml_dtypes.uint4, 4),
    )
}
OF_ONNX: Mapping[int, DType] = {dtype.onnx: dtype for dtype in DTYPES.values()}
OF_SAFETENSORS: Mapping[str, DType] = {
    dtype.safetensors: dtype for dtype in DTYPES.values() if dtype.safetensors is not None
}
# What models are computed in, and plain weights are stored in.
COMPUTED: Mapping[str, DType] = {n: DTYPES[n] for n in ("float32", "float16", "bfloat16")}


def of_torch(dtype: "torch.dtype") -> DType:
    """Return the entry of a torch dtype; raises KeyError for one that the table lacks."""
    return DTYPES[str(dtype).removeprefix("torch.")]


def computed(dtype: "torch.dtype") -> DType | None:
    """Return the entry of a dtype that models are computed in, None for any other."""
    return COMPUTED.get(str(dtype).removeprefix("torch."))
