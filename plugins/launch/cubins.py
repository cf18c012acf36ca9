"""Kernels as machine code, compiled without a GPU, in a process that does not interpret them."""

from functools import cache
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from lmcast.plugins.errors import InputError
from lmcast.plugins.launch.step import Kernel

# Bytes of shared memory that a program may have on an SM (CUDA programming guide, table 30).
KILOBYTES = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99}
KILOBYTES |= {90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}


class Cubin(NamedTuple):
    """A kernel for one SM: its entry point, and what a launch needs to know."""

    name: str
    threads: int
    shared: int
    code: bytes


@cache
def cubin(kernel: Kernel, sm: int) -> Cubin:
    """Compile a kernel, once in this process, for an SM such as 89.

    After its own parameters it takes two pointers that are null: to scratch memory, of which it has
    none. Raises InputError where the SM is not known, or has less shared memory than is needed, and
    in a process that interprets kernels.
    """
    if not isinstance(kernel.function, triton.JITFunction):
        raise InputError("TRITON_INTERPRET is set, and no kernel is compiled then: unset it")
    if sm not in KILOBYTES:
        raise InputError(f"SM {sm} is not known; accepted: {sorted(KILOBYTES)}")
    # What a debugger wants names folders of this machine, and is half of all bytes.
    options = kernel.options | {"ptx_options": "-suppress-debug-info"}
    made = triton.compile(kernel.source(), target=GPUTarget("cuda", sm, 32), options=options)
    facts = made.metadata
    assert facts.num_ctas == 1 and not facts.launch_cooperative_grid
    assert not facts.global_scratch_size and not facts.profile_scratch_size, kernel.name
    if facts.shared > KILOBYTES[sm] << 10:
        room = f"SM {sm} has {KILOBYTES[sm] << 10}"
        raise InputError(f"{kernel.name} needs {facts.shared} bytes of shared memory, but {room}")
    return Cubin(facts.name, 32 * facts.num_warps, facts.shared, made.asm["cubin"])
