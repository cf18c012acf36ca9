"""What a product with low-precision inputs sees of them: rounded to a format, and back.

Letters: ... any axes, K the axis that is multiplied over.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.plugin import Close, Plugin
from lmcast.plugins.rounding import E2M1_MOST, E4M3_MOST, exponent, round_e2m1, round_e4m3

# Format -> how many neighbours share a scale; 0: all of a token, or of everything if it is given.
BLOCKS = {"fp8": 0, "int8": 0, "mxfp8": 32, "mxfp4": 32, "nvfp4": 16}
LEAST = 2.0**-100  # instead of a largest value of 0


def eager(x: Tensor, scale: Tensor | None, format: str, rotation: int) -> Tensor:
    """x ...,K -> the same shape and dtype, every value one that `format` has.

    scale () fp32: of 'fp8' and 'int8' the static one, of 'nvfp4' what block scales are divided by;
    None: from the largest value of each token. rotation: a power of two; that many neighbours are
    first turned by a normalized Hadamard matrix (0: none), as the weight's columns were.
    """
    wide = x.float()
    if rotation:
        wide = wide.unflatten(-1, (-1, rotation)) @ hadamard(rotation).to(x.device)
        wide = wide.flatten(-2)
    block = BLOCKS[format]
    grouped = wide.unflatten(-1, (-1, block)) if block else wide[..., None, :]  # ...,G,block
    most = grouped.abs().amax(-1, keepdim=True).clamp(min=LEAST)
    if format == "mxfp8":  # rounded up: no value saturates
        ratio = most / E4M3_MOST
        floor = torch.exp2(exponent(ratio))
        factor = torch.where(floor < ratio, 2 * floor, floor)
        out = round_e4m3(grouped / factor) * factor
    elif format == "mxfp4":  # up from 1.75 times a power of two, where 7 would become 6
        factor = torch.exp2(exponent(most * (8 / 7)) - 2)
        out = round_e2m1(grouped / factor) * factor
    elif format == "nvfp4":
        top = most.amax(-2, keepdim=True) / (E2M1_MOST * E4M3_MOST) if scale is None else scale
        factor = round_e4m3(most / E2M1_MOST / top).clamp(min=2.0**-9) * top
        out = round_e2m1(grouped / factor) * factor
    elif format == "fp8":
        factor = most / E4M3_MOST if scale is None else scale
        out = round_e4m3(grouped / factor) * factor
    else:
        factor = most / 127 if scale is None else scale
        out = (grouped / factor).round().clamp(-128, 127) * factor
    return out.flatten(-2).to(x.dtype)


def hadamard(size: int) -> Tensor:
    """Return Sylvester's matrix of a power of two, orthonormal and symmetric: size,size fp32."""
    out = torch.ones(1, 1)
    while len(out) < size:
        out = torch.cat([torch.cat([out, out], 1), torch.cat([out, -out], 1)])
    return out / math.sqrt(size)


def shapes(x: Tensor, scale: Tensor | None, format: str, rotation: int) -> Tensor:
    return torch.empty_like(x)


# floor(log2(of)) as a power of two: a logarithm may be off by one next to the powers themselves.
FLOOR = """log = Log (of)
    ln2 = Constant <value_float = 0.6931471805599453> ()
    log2 = Div (log, ln2)
    near = Floor (log2)
    two = Constant <value_float = 2.0> ()
    guess = Pow (two, near)
    twice = Mul (guess, two)
    half = Div (guess, two)
    low = LessOrEqual (twice, of)
    raised = Where (low, twice, guess)
    high = Greater (guess, of)
    floor = Where (high, half, raised)"""

E2M1_FACTOR = f"""spare = Constant <value_float = {8 / 7}> ()
    of = Mul (most, spare)
    {FLOOR}
    four = Constant <value_float = 4.0> ()
    factor = Div (floor, four)"""

E4M3_FACTOR = f"""of = Div (most, top)
    {FLOOR}
    under = Less (floor, of)
    above = Mul (floor, two)
    factor = Where (under, above, floor)"""

# Block scales are E4M3 themselves, at least its smallest number.
SHARED_FACTOR = """ratio = Div (most, six)
    part = Div (ratio, shared)
    whole = Constant <value_float = 1.0> ()
    part_codes = QuantizeLinear <output_dtype = 17> (part, whole)
    part_near = DequantizeLinear (part_codes, whole)
    tiny = Constant <value_float = 0.001953125> ()
    part_value = Max (part_near, tiny)
    factor = Mul (part_value, shared)"""

ROUND_E2M1 = """size = Abs (ratio_of)
    six_most = Constant <value_float = 6.0> ()
    within = Min (size, six_most)
    step_half = Constant <value_float = 0.5> ()
    step_one = Constant <value_float = 1.0> ()
    step_two = Constant <value_float = 2.0> ()
    step_four = Constant <value_float = 4.0> ()
    small = Less (within, step_two)
    middle = Less (within, step_four)
    coarse = Where (middle, step_one, step_two)
    step = Where (small, step_half, coarse)
    steps = Div (within, step)
    nearest = Round (steps)
    magnitude = Mul (nearest, step)
    sign = Sign (ratio_of)
    near_value = Mul (magnitude, sign)"""


def body(given: Mapping[str, Any]) -> str:
    format, scaled = given["format"], given["scale"] is not None
    block, rotation = BLOCKS[format], given["rotation"]
    top = 127.0 if format == "int8" else E4M3_MOST
    lines = ["wide = Cast <to = 1> (x)", "shape = Shape (x)"]
    lines.append(turned(rotation) if rotation else "turned = Identity (wide)")
    lines.append(_grouped(block))
    if format in ("fp8", "int8") and scaled:
        lines.append("factor = Identity (scale)")
    else:
        lines.append(f"top = Constant <value_float = {top}> ()")
        if format == "nvfp4":
            lines.append("six = Constant <value_float = 6.0> ()")
            lines.append("shared = Identity (scale)" if scaled else _largest())
        lines.append(
            {"mxfp8": E4M3_FACTOR, "mxfp4": E2M1_FACTOR, "nvfp4": SHARED_FACTOR}.get(
                format, "factor = Div (most, top)"
            )
        )
    lines.append("ratio_of = Div (grouped, factor)")
    if format in ("mxfp4", "nvfp4"):
        lines.append(ROUND_E2M1)
    else:
        code = 3 if format == "int8" else 17  # INT8, FLOAT8E4M3FN
        lines.append("unit = Constant <value_float = 1.0> ()")
        lines.append(f"codes = QuantizeLinear <output_dtype = {code}> (ratio_of, unit)")
        lines.append("near_value = DequantizeLinear (codes, unit)")
    lines.append("scaled = Mul (near_value, factor)")
    lines.append("flat = Reshape (scaled, shape)\n    out = CastLike (flat, x)")
    text = "\n    ".join(lines)
    inputs = "x, scale" if scaled else "x"
    return f"quantize_input <format, rotation> ({inputs}) => (out) {{\n    {text}\n}}"


def turned(rotation: int) -> str:
    """Return the lines of a body that turn `wide`, which has `shape`, into `turned`."""
    numbers = ", ".join(str(value) for value in hadamard(rotation).flatten().tolist())
    return f"""lead = Shape <start = 0, end = -1> (x)
    turn_sizes = Constant <value_ints = [-1, {rotation}]> ()
    turn_shape = Concat <axis = 0> (lead, turn_sizes)
    runs = Reshape (wide, turn_shape)
    matrix = Constant <value = float[{rotation},{rotation}] {{{numbers}}}> ()
    mixed = MatMul (runs, matrix)
    turned = Reshape (mixed, shape)"""


def _grouped(block: int) -> str:
    sizes = f"[-1, {block}]" if block else "[1, -1]"
    return f"""outer = Shape <start = 0, end = -1> (x)
    group_sizes = Constant <value_ints = {sizes}> ()
    group_shape = Concat <axis = 0> (outer, group_sizes)
    grouped = Reshape (turned, group_shape)
    absolute = Abs (grouped)
    last = Constant <value_ints = [-1]> ()
    largest = ReduceMax (absolute, last)
    least = Constant <value_float = {LEAST}> ()
    most = Max (largest, least)"""


def _largest() -> str:
    return f"""blocks_axis = Constant <value_ints = [-2]> ()
    of_token = ReduceMax (most, blocks_axis)
    span = Constant <value_float = {E2M1_MOST * E4M3_MOST}> ()
    shared = Div (of_token, span)"""


def cases() -> list[tuple]:
    torch.manual_seed(0)
    plain = [(torch.randn(2, 3, 64), None, format, 0) for format in BLOCKS]
    fixed = [(torch.randn(3, 32), torch.tensor(s), f, 0) for f, s in (
        ("fp8", 0.01), ("int8", 0.03), ("nvfp4", 0.002),
    )]  # fmt: skip
    turned = [(torch.randn(1, 5, 64), None, format, 32) for format in ("fp8", "mxfp4")]
    # Zeros, a block of zeros, and a range that saturates.
    edges = torch.zeros(2, 64)
    edges[0, :6] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 7.0])
    edges[1, 3] = 1e-30
    return [*plain, *fixed, *turned, *((edges, None, format, 0) for format in BLOCKS)]


quantize_input = Plugin(
    name="quantize_input",
    eager=eager,
    shapes=shapes,
    body=body,
    cases=cases,
    # 4 fp32 epsilons of a value near 4; a sum in another order may move a turned value to the next
    # code, which the cases do not have.
    close={torch.float32: Close(2e-6)},
)
