"""Launch plans: the kernel launches of an operator, as text that a plugin replays without Python.

Tokens are separated by white space. A launch plan is

    lmcast-recipe 2
    kernels K    then K times:  NAME THREADS SHARED_BYTES N    then N times:  SM OFFSET SIZE CRC32
    outputs O    then O times:  TYPE ALIAS RANK    then RANK times:  INTEGER or AXIS
    cases M      then M times:
      ranges R      then R times:  AXIS LOW HIGH
      buffers B     then B times:  EXPR
      launches L    then L times:  KERNEL EXPR N    then N times:  ARG

AXIS is I.A, axis A of input I; inputs are the tensors that are given, in the operator's order.
OFFSET, SIZE and CRC32 (zlib's) are of a cubin in the machine code beside the text, for SM (89).
TYPE is fp32, fp16, bf16, i32 or i64. ALIAS is -1, or the input that kernels update in place: the
output begins as its copy, unless it lies in the same memory. The first case is taken whose ranges,
ends included, all hold. Buffers have EXPR bytes, of any content, 16-byte aligned as all tensors
are. A launch is of kernel number KERNEL, with EXPR programs (0: no launch) and its arguments in
order:

    ARG:   in I | out O | buf B | null | i32 EXPR | fp32 NUMBER
    EXPR:  INTEGER | AXIS | + E E | - E E | * E E | / E E | % E E | min E E | max E E

An updated input is `out`, never `in`. Expressions are of 64 bits, divisors positive; a quotient is
rounded down, and a remainder is not negative. Launches are one after the other, on one stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import torch
from triton import knobs

from lmcast.plugins.errors import InputError
from lmcast.plugins.launch.buffer import Buffer
from lmcast.plugins.launch.cubins import Cubin, cubin
from lmcast.plugins.launch.sizes import Count, Size, largest, text
from lmcast.plugins.launch.step import CONSTANT, FLOATS, TYPES, Kernel, Step, Steps
from lmcast.plugins.plugin import REGISTRY, find

MOST = 2**31 - 1  # of a 32-bit argument, and of the programs of a launch


class Given(NamedTuple):
    """A tensor that an operator is given, contiguous; axes are numbers, or names of open ones."""

    dtype: torch.dtype
    shape: tuple[int | str, ...]


class Bounds(NamedTuple):
    """The values of an open axis in a case, from 1, and the one to be fast at."""

    low: int
    high: int
    usual: int


Case: TypeAlias = Mapping[str, Bounds]  # by the name of the axis


class Launch(NamedTuple):
    """A kernel by its number, and how many programs and which arguments as text."""

    kernel: int
    programs: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """What is launched in one case, and what for."""

    ranges: tuple[str, ...]
    buffers: tuple[str, ...]
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class Draft:
    """A launch plan before anything is compiled."""

    kernels: tuple[Kernel, ...]
    outputs: tuple[str, ...]
    works: tuple[Work, ...]


@dataclass
class MachineCode:
    """The cubins that launch plans name by their place in it; each is held once."""

    blob: bytearray = field(default_factory=bytearray)
    places: dict[bytes, int] = field(default_factory=dict)

    def place(self, code: bytes) -> int:
        """Return the offset of these bytes, which are added where they are new."""
        if code not in self.places:
            self.places[code] = len(self.blob)
            self.blob += code
        return self.places[code]


@dataclass
class Names:
    """How the tensors of one case are called as arguments; others become buffers."""

    known: dict[Buffer, str]
    buffers: list[str] = field(default_factory=list)

    def argument(self, value: Any) -> str:
        if isinstance(value, float):
            return f"fp32 {value!r}"
        if isinstance(value, int | Size):
            return f"i32 {within(value)}"
        if value.memory not in self.known:
            self.known[value.memory] = f"buf {len(self.buffers)}"
            self.buffers.append(text(value.numel() * value.dtype.itemsize))
        return self.known[value.memory]

    def launch(self, step: Step, kernels: dict[Kernel, int]) -> Launch:
        """Return a step as text; its kernel gets a number, unless it has one."""
        kernel = step.compiled
        names = zip(kernel.function.arg_names, kernel.types, strict=True)
        arguments = [self.argument(step.arguments[n]) for n, kind in names if kind != CONSTANT]
        number = kernels.setdefault(kernel, len(kernels))
        return Launch(number, within(step.programs), (*arguments, "null", "null"))


def within(size: Count) -> str:
    """Return a size as text; InputError where it may exceed 32 bits."""
    if largest(size) > MOST:
        raise InputError(f"a kernel would count to {largest(size)}; accepted: up to {MOST}")
    return text(size)


def axes_of(arguments: Sequence[Any], case: Case) -> dict[str, Size]:
    """Return the open axes by name, each as it is first found among the inputs."""
    found: dict[str, Size] = {}
    inputs = [argument for argument in arguments if isinstance(argument, Given)]
    for i, given in enumerate(inputs):
        for a, axis in enumerate(given.shape):
            if not isinstance(axis, str) or axis in found:
                continue
            if axis not in case:
                raise InputError(f"axis {axis} is open, but a case bounds {sorted(case)} alone")
            low, high, usual = case[axis]
            if not 1 <= low <= usual <= high:
                raise InputError(f"axis {axis}: {case[axis]}; accepted: 1 <= low <= usual <= high")
            found[axis] = Size(f"{i}.{a}", low, high, usual)
    return found


def stand_in(value: Any, kind: str, axes: Mapping[str, Size]) -> Any:
    """Return what host code gets for an argument of this kind, as torch's schema calls it."""
    if isinstance(value, Given):
        shape = tuple(axes[axis] if isinstance(axis, str) else axis for axis in value.shape)
        return Buffer(value.dtype, shape)
    plain = {"bool": bool, "int": int, "float": float}  # ONNX has booleans as integers
    return plain[kind](value) if kind in plain else value


def output(made: Buffer, inputs: Sequence[Buffer]) -> str:
    """Return an output as text: its type, the input that it is, and its axes."""
    alias = inputs.index(made) if made in inputs else -1
    axes = [size.name if isinstance(size, Size) else str(size) for size in made.shape]
    return " ".join([TYPES[made.dtype], str(alias), str(len(axes)), *axes])


def host_code(operator: str) -> Steps:
    """Return what gives the launches of an operator; InputError where it has no kernels."""
    found = find(operator)
    if "triton" not in found.kernels:
        raise InputError(f"{operator} has no kernels in Triton")
    steps: Steps = import_module(f"{found.eager.__module__}_triton").steps
    return steps


def draft(operator: str, arguments: Sequence[Any], cases: Sequence[Case]) -> Draft:
    """Return what an operator launches in each case; nothing is compiled.

    arguments: all of the operator's, in its order; tensors as Given, or None where optional ones
    are absent. Cases come in the order in which they are tried. Raises InputError for an operator
    without kernels, an axis without bounds, sizes beyond 32 bits, and what host code refuses;
    TypeError where host code would decide by an open size.
    """
    first = arguments[0]
    if first.dtype not in FLOATS:
        raise InputError(f"{operator}: Triton kernels take {FLOATS}, not {first.dtype}")
    steps = host_code(operator)
    kinds = [str(argument.type) for argument in REGISTRY[operator].schema.arguments]
    kernels: dict[Kernel, int] = {}
    outputs: list[tuple[str, ...]] = []
    works = []
    for case in cases:
        axes = axes_of(arguments, case)
        own = [stand_in(a, kind, axes) for a, kind in zip(arguments, kinds, strict=True)]
        todo, filled = steps(*own)
        filled = filled if isinstance(filled, tuple) else (filled,)
        inputs = [value for value in own if isinstance(value, Buffer)]
        outputs.append(tuple(output(made, inputs) for made in filled))
        known = {made: f"in {i}" for i, made in enumerate(inputs)}
        names = Names(known | {made: f"out {o}" for o, made in enumerate(filled)})
        launches = tuple(names.launch(step, kernels) for step in todo)
        ranges = tuple(f"{size.name} {size.low} {size.high}" for size in axes.values())
        works.append(Work(ranges, tuple(names.buffers), launches))
    assert len(set(outputs)) == 1, f"{operator}: outputs {outputs} differ from case to case"
    return Draft(tuple(kernels), outputs[0], tuple(works))


def written(drawn: Draft, cubins: Sequence[Mapping[int, Cubin]], code: MachineCode) -> str:
    """Return the text, whose cubins are added to `code`; cubins: of each kernel, by SM."""
    lines = ["lmcast-recipe 2", f"kernels {len(drawn.kernels)}"]
    for kernel, by_sm in zip(drawn.kernels, cubins, strict=True):
        shared = max((made.shared for made in by_sm.values()), default=0)
        lines.append(f"{kernel.name} {32 * kernel.warps} {shared} {len(by_sm)}")
        for sm, made in by_sm.items():
            assert (made.name, made.threads) == (kernel.name, 32 * kernel.warps)
            place = f"{code.place(made.code)} {len(made.code)} {crc32(made.code)}"
            lines.append(f"  {sm} {place}")
    lines += [f"outputs {len(drawn.outputs)}", *drawn.outputs, f"cases {len(drawn.works)}"]
    for work in drawn.works:
        lines += [f"ranges {len(work.ranges)}", *(f"  {one}" for one in work.ranges)]
        lines += [f"buffers {len(work.buffers)}", *(f"  {one}" for one in work.buffers)]
        lines.append(f"launches {len(work.launches)}")
        for number, programs, arguments in work.launches:
            lines.append(f"  {number} {programs} {len(arguments)}")
            lines += [f"    {one}" for one in arguments]
    return "\n".join(lines) + "\n"


def compiled_plan(
    operator: str,
    arguments: Sequence[Any],
    cases: Sequence[Case],
    sms: Sequence[int],
    code: MachineCode,
) -> str:
    """Return an operator's launch plan (see `draft`), whose cubins for these SMs are in `code`.

    Raises also InputError where a kernel does not fit an SM. Each kernel is compiled once in a
    process, for all launch plans.
    """
    knobs.runtime.interpret = False  # TRITON_INTERPRET is for kernels that run
    drawn = draft(operator, arguments, cases)
    cubins = [{sm: cubin(kernel, sm) for sm in sms} for kernel in drawn.kernels]
    return written(drawn, cubins, code)
