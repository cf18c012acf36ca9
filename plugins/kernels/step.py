"""One launch of a Triton kernel as data: what runs on a GPU is also what compiles without one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.compiler import ASTSource

from lmcast.plugins.errors import InputError

TYPES = {  # Triton's names
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Step:
    """A kernel, how many programs of it, and its arguments by name; tensors may be on 'meta'."""

    kernel: Any  # what triton.jit returns
    programs: int
    arguments: Mapping[str, Any]
    warps: int = 4
    stages: int = 3

    def run(self) -> None:
        """Launch on the current stream of the tensors' GPU; Triton's interpreter runs on a CPU."""
        self.kernel[(self.programs,)](**self.arguments, **self.options)

    def source(self) -> ASTSource:
        """Return what `triton.compile` takes; pointers are promised to be 16-byte aligned."""
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            elif isinstance(value, Tensor):
                signature[parameter.name] = "*" + TYPES[value.dtype]
                attributes[i,] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        return ASTSource(self.kernel, signature, constants, attributes)

    @property
    def options(self) -> dict[str, int | bool]:
        """What `triton.compile` takes beside the source and the target."""
        # Multiply-adds are fused whatever Triton's default is: 3.10 changes it.
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


Steps = Callable[..., tuple[list[Step], Any]]


def launcher(steps: Steps) -> Callable:
    """Return a function that runs the steps, in order, and returns what they filled."""

    def launch(*args: Any) -> Any:
        first: Tensor = args[0]
        if first.dtype not in FLOATS:
            raise InputError(f"Triton kernels take {FLOATS}, not {first.dtype}")
        # On a CPU the index is None, and nothing is switched.
        with torch.accelerator.device_index(first.device.index):
            todo, filled = steps(*args)
            for step in todo:
                step.run()
        return filled

    return launch
