"""One launch of a Triton kernel as data: what runs on a GPU is also what compiles without one."""

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.compiler import ASTSource

from lmcast.plugins.errors import InputError
from lmcast.plugins.launch.sizes import Count, Size

TYPES = {  # Triton's names
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CONSTANT = "constexpr"


@dataclass(frozen=True)
class Kernel:
    """A Triton function with all that its compilation depends on."""

    function: Any  # what triton.jit returns
    types: tuple[str, ...]  # of each parameter; pointers begin with '*'
    constants: tuple[Any, ...]  # a value for each parameter whose type is CONSTANT, else None
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return str(self.function.__name__)

    def by_name(self) -> dict[str, Any]:
        """Return the constants by the names of their parameters."""
        every = zip(self.function.arg_names, self.types, self.constants, strict=True)
        return {name: value for name, kind, value in every if kind == CONSTANT}

    def source(self) -> ASTSource:
        """Return what `triton.compile` takes; pointers are promised to be 16-byte aligned."""
        signature = dict(zip(self.function.arg_names, self.types, strict=True))
        aligned = [["tt.divisibility", 16]]
        attributes = {(i,): aligned for i, kind in enumerate(self.types) if kind.startswith("*")}
        return ASTSource(self.function, signature, self.by_name(), attributes)

    @property
    def options(self) -> dict[str, int | bool]:
        """What `triton.compile` takes beside the source and the target."""
        return options(self.warps, self.stages)


@dataclass(frozen=True)
class Step:
    """A kernel, how many programs of it, and its arguments by name.

    Tensors may be on 'meta', or be stand-ins whose sizes are open (see buffer.py).
    """

    kernel: Any  # what triton.jit returns
    programs: Count
    arguments: Mapping[str, Any]
    warps: int = 4
    stages: int = 3

    def run(self) -> None:
        """Launch on the current stream of the tensors' GPU; Triton's interpreter runs on a CPU."""
        self.kernel[(self.programs,)](**self.arguments, **options(self.warps, self.stages))

    @property
    def compiled(self) -> Kernel:
        """What this launches; TypeError where it would depend on an open size."""
        types, constants = [], []
        # Not `kernel.params`: Triton's interpreter has none.
        for name, parameter in inspect.signature(self.kernel.fn).parameters.items():
            value = self.arguments[name]
            constant = parameter.annotation is tl.constexpr or value is None
            types.append(CONSTANT if constant else type_of(value))
            constants.append(closed(value) if constant else None)
        return Kernel(self.kernel, tuple(types), tuple(constants), self.warps, self.stages)


def options(warps: int, stages: int) -> dict[str, int | bool]:
    """Return how a kernel is compiled beside its source and its target."""
    # Multiply-adds are fused whatever Triton's default is: 3.10 changes it.
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def type_of(value: Any) -> str:
    """Return Triton's name for the type of an argument."""
    if isinstance(value, float):
        return "fp32"
    return "i32" if isinstance(value, int | Size) else "*" + TYPES[value.dtype]


def closed(value: Any) -> Any:
    """Return a constant without sizes in it; TypeError where one is open."""
    if isinstance(value, tuple):
        return tuple(map(closed, value))
    return operator.index(value) if isinstance(value, Size) else value


Steps = Callable[..., tuple[list[Step], Any]]


def launcher(steps: Steps) -> Callable[..., Any]:
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
