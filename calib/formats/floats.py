"""The formats that models are computed in, and plain weights are stored in."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Format:
    """One format of a number: its name on the command line and its code in each file format."""

    name: str
    dtype: torch.dtype
    safetensors: str  # dtype in a safetensors header
    onnx: int  # TensorProto.DataType

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize


FORMATS = {
    f.name: f
    for f in (
        Format("float32", torch.float32, "F32", 1),
        Format("float16", torch.float16, "F16", 10),
        Format("bfloat16", torch.bfloat16, "BF16", 16),
    )
}
BY_DTYPE = {f.dtype: f for f in FORMATS.values()}
# What layers carry from call to call may also be in.
STATES = FORMATS | {"float8_e4m3fn": Format("float8_e4m3fn", torch.float8_e4m3fn, "F8_E4M3", 17)}
STATE_OF = {f.dtype: f for f in STATES.values()}
