"""Compiled loops over the rows of a weight: largest values, codes, rounding, squared errors.

The nearest code of a number is defined here and nowhere else. Quotients are fp32. That decides
rightly unless the rounded quotient is half way between two codes: then the exact one may be on
either side, which _settle finds out.

Letters: R rows, K columns, B blocks of a row. numba makes 64-bit numbers of two 32-bit ones, at
half the speed: hence the many casts.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

E2M1, E4M3, INT4, INT8 = range(4)  # the elements, as loops tell them apart
MAGNITUDE, EXPONENT, FRACTION = (np.uint32(m) for m in (0x7FFFFFFF, 0x7F800000, 0x007FFFFF))
RUN = 16  # sums side by side, for vector instructions
PART = 4096  # numbers of a long row at a time, which fit in the nearest cache
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

Loop = TypeVar("Loop", bound=Callable[..., Any])
Row = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # what _room returns


def compiled(function: Loop) -> Loop:
    """Compile a loop on its first use, and keep the result where numba finds a place for it."""
    try:
        loop: Loop = njit(function, cache=True, **OPTIONS)
    except RuntimeError:  # neither beside this file nor below the user's home may be written
        loop = njit(function, **OPTIONS)
    return loop


@compiled
def _widen(bits: np.ndarray, shift: int, wide: np.ndarray) -> None:
    """Write a row as bits of fp32: bf16 is the upper half of it (shift 16)."""
    for k in range(len(wide)):
        wide[k] = np.uint32(bits[k]) << np.uint32(shift)


@compiled
def _spread(factors: np.ndarray, wide: int, out: np.ndarray) -> bool:
    """Write the divisor of every column (a factor of 0 rounds every number to 0). Return whether
    division by all of them is exact."""
    width = wide if wide else len(out)
    exact = True
    for b in range(len(factors)):
        factor = factors[b]
        exact &= (np.float32(factor).view(np.uint32) & FRACTION) == 0
        out[b * width : (b + 1) * width] = factor if factor > 0.0 else np.inf
    return exact


@compiled
def _near_float(
    ratios: np.ndarray, most: float, least: float, shift: int, ties: np.ndarray, codes: np.ndarray
) -> None:
    """Round to floats; write codes, and which quotients are half way between two.

    most, least: the largest number, and the smallest normal one.
    shift: how many of the 23 bits of fp32's fraction the format lacks.
    """
    bits, half = ratios.view(np.uint32), np.float32(2.0 ** (shift - 24))
    magic, digits = np.uint32((shift << 23) | (1 << 22)), np.uint32((1 << (25 - shift)) - 1)
    low = np.float32(least).view(np.uint32)
    sign, lowest = np.uint32(28 if most == 6.0 else 24), np.uint32(low >> np.uint32(shift))
    sign_bit = np.uint32(np.uint32(1 << 31) >> sign)
    for k in range(len(ratios)):
        size = min(abs(ratios[k]), np.float32(most))
        power = max(np.uint32(np.float32(size).view(np.uint32) & EXPONENT), low)
        # 1.5 * 2^shift times the power of two of a number: of the number, their sum has the bits
        # that the floats have, rounded as sums are.
        large = np.uint32(power + magic).view(np.float32)
        total = np.float32(size + large)
        near = np.float32(total - large)
        beside = np.float32(np.uint32(power).view(np.float32) * half)
        ties[k] = abs(np.float32(size - near)) == beside
        code = np.uint32(np.uint32(np.float32(total).view(np.uint32) & digits) - lowest)
        code = np.uint32(code + np.uint32(power >> np.uint32(shift)))
        codes[k] = np.uint8(code | np.uint32(np.uint32(bits[k] >> sign) & sign_bit))
        ratios[k] = np.copysign(near, ratios[k])


@compiled
def _near_int(
    ratios: np.ndarray, least: float, most: float, mask: int, ties: np.ndarray, codes: np.ndarray
) -> None:
    """Round to integers, as _near_float; mask: the bits of a code."""
    for k in range(len(ratios)):
        within = min(max(ratios[k], np.float32(least)), np.float32(most))
        near = np.rint(within)
        ties[k] = abs(np.float32(within - near)) == np.float32(0.5)
        codes[k] = np.uint8(np.int32(np.int32(near) & np.int32(mask)))
        ratios[k] = near


@compiled
def _settle(
    element: int,
    numbers: np.ndarray,
    divisors: np.ndarray,
    ties: np.ndarray,
    nearest: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Correct quotients that are half way between two codes only because of their rounding to fp32.

    The even code was taken. Which of the two is nearer is decided by a product, which is exact for
    two fp32 numbers.
    """
    eights = ties[: len(ties) // 8 * 8].view(np.uint64)
    for i in range(len(eights) + 1):
        if i < len(eights) and not eights[i]:
            continue
        for k in range(8 * i, min(8 * i + 8, len(ties))):
            if not ties[k]:
                continue
            number, half_way, was = numbers[k], numbers[k] / divisors[k], nearest[k]
            beside = abs(np.float64(number)) - abs(np.float64(half_way) * divisors[k])
            if beside != 0.0 and (beside > 0.0) == (abs(was) < abs(half_way)):
                now = np.float32(2.0 * half_way - was)
                if element in (INT4, INT8):
                    codes[k] = np.int32(now) & (0xF if element == INT4 else 0xFF)
                else:
                    codes[k] += np.uint8(1 if beside > 0.0 else 255)
                nearest[k] = np.copysign(now, number)


@compiled
def near_codes(element: int, ratios: np.ndarray, ties: np.ndarray, codes: np.ndarray) -> None:
    """Round fp32 quotients in place; write codes, and which quotients are half way between two."""
    if element == E2M1:
        _near_float(ratios, 6.0, 1.0, 22, ties, codes)
    elif element == E4M3:
        _near_float(ratios, 448.0, 2.0**-6, 20, ties, codes)
    elif element == INT4:
        _near_int(ratios, -8.0, 7.0, 0xF, ties, codes)
    else:
        _near_int(ratios, -127.0, 127.0, 0xFF, ties, codes)


@compiled
def _floats(ratios: np.ndarray, most: float, least: float, shift: int) -> None:
    """Round to floats in place, as _near_float."""
    magic, low = np.uint32((shift << 23) | (1 << 22)), np.float32(least).view(np.uint32)
    for k in range(len(ratios)):
        size = min(abs(ratios[k]), np.float32(most))
        power = max(np.uint32(np.float32(size).view(np.uint32) & EXPONENT), low)
        large = np.uint32(power + magic).view(np.float32)
        ratios[k] = np.copysign(np.float32(np.float32(size + large) - large), ratios[k])


@compiled
def _integers(ratios: np.ndarray, least: float, most: float) -> None:
    for k in range(len(ratios)):
        ratios[k] = np.rint(min(max(ratios[k], np.float32(least)), np.float32(most)))


@compiled
def near_values(element: int, ratios: np.ndarray) -> None:
    """Round fp32 quotients in place, as near_codes, where neither codes nor ties matter: on either
    side of a tie the error is the same."""
    if element == E2M1:
        _floats(ratios, 6.0, 1.0, 22)
    elif element == E4M3:
        _floats(ratios, 448.0, 2.0**-6, 20)
    elif element == INT4:
        _integers(ratios, -8.0, 7.0)
    else:
        _integers(ratios, -127.0, 127.0)


@compiled
def _near(
    element: int,
    wide: np.ndarray,
    divisors: np.ndarray,
    exact: bool,
    nearest: np.ndarray,
    ties: np.ndarray,
    codes: np.ndarray,
) -> np.uint32:
    """Write the nearest representable value and the code of every quotient; return the largest
    magnitude of the numbers, as bits. exact: what _spread returned for the divisors."""
    numbers = wide.view(np.float32)
    for k in range(len(wide)):
        nearest[k] = numbers[k] / divisors[k]
    most = np.uint32(0)
    for k in range(len(wide)):
        most = max(most, np.uint32(wide[k] & MAGNITUDE))
    near_codes(element, nearest, ties, codes)
    if not exact:
        _settle(element, numbers, divisors, ties, nearest, codes)
    return most


@compiled
def _room(columns: int) -> Row:
    """Allocate the buffers of a row: divisors, values, ties and codes."""
    divisors, values = np.empty(columns, np.float32), np.empty(columns, np.float32)
    return divisors, values, np.empty(columns, np.uint8), np.empty(columns, np.uint8)


@compiled
def _most(sizes: np.ndarray) -> Any:  # a number of the dtype of sizes
    most = sizes[0]
    for k in range(len(sizes)):
        most = max(most, sizes[k])
    return most


@compiled
def _halved(sizes: np.ndarray, out: np.ndarray) -> None:
    for k in range(len(out)):
        out[k] = max(sizes[2 * k], sizes[2 * k + 1])


@compiled
def largest(bits: np.ndarray, shift: int, width: int, out: np.ndarray) -> None:
    """Write the largest magnitude of every block, R,B, as bits of fp32.

    bits: R,K; uint16 of bf16 (shift 16) or uint32 of fp32 (shift 0).
    width: columns of a block; 0: all.
    """
    columns = bits.shape[1]
    sizes, fewer = np.empty(columns, bits.dtype), np.empty(columns // 2, bits.dtype)
    for r in range(len(bits)):
        for k in range(columns):
            sizes[k] = bits[r, k] << 1  # without the sign; the largest stays the largest
        now, then, count, each = sizes, fewer, columns, width if width else columns
        while width and each % 2 == 0 and count % 2 == 0:  # neighbours, of one block
            count, each = count // 2, each // 2
            _halved(now, then[:count])
            now, then = then, now
        for b in range(out.shape[1]):
            most = now[b] if each == 1 else _most(now[b * each : min((b + 1) * each, count)])
            out[r, b] = np.uint32(most) >> np.uint32(1) << np.uint32(shift)


@compiled
def encode(
    bits: np.ndarray,
    shift: int,
    factors: np.ndarray,
    high: int,
    width: int,
    element: int,
    out: np.ndarray,
) -> np.uint32:
    """Write codes R,K or R,K/2 uint8; return the largest magnitude, as bits of fp32.

    bits, shift: as in `largest`.
    factors: fp32; the dequantization factor of each block.
    high, width: rows and columns of a block; 0: all.
    element: E2M1, E4M3, INT4 or INT8.
    """
    columns = bits.shape[1]
    wide = np.empty(columns, np.uint32)
    divisors, nearest, ties, codes = _room(columns)
    pairs = codes[: columns // 2 * 2].view(np.uint16)
    place, exact, most = -1, False, np.uint32(0)
    for r in range(len(bits)):
        now = r // high if high else 0
        if now != place:
            exact = _spread(factors[now], width, divisors)
            place = now
        _widen(bits[r], shift, wide)
        most = max(most, _near(element, wide, divisors, exact, nearest, ties, codes))
        if element in (E2M1, INT4):
            for k in range(len(pairs)):
                out[r, k] = np.uint8(pairs[k] | np.uint16(pairs[k] >> np.uint16(4)))
        else:
            for k in range(columns):  # an assignment to the row takes longer than rounding does
                out[r, k] = codes[k]
    return most


@compiled
def rounded(values: np.ndarray, factors: np.ndarray, element: int, out: np.ndarray) -> np.uint32:
    """Write the nearest values, code times factor, all K fp32; return the largest magnitude, as
    bits."""
    bits, most = values.view(np.uint32), np.uint32(0)
    room = _room(min(PART, len(values)))
    for begin in range(0, len(values), PART):
        end = min(begin + PART, len(values))
        size = end - begin
        divisors, nearest, ties, codes = room
        if size < len(nearest):
            divisors, nearest, ties, codes = _room(size)
        exact = _spread(factors[begin:end], 1, divisors)
        part = bits[begin:end]
        most = max(most, _near(element, part, divisors, exact, nearest, ties, codes))
        for k in range(size):
            out[begin + k] = nearest[k] * factors[begin + k]
    return most


@compiled
def _missed(
    element: int,
    numbers: np.ndarray,
    divisors: np.ndarray,
    nearest: np.ndarray,
    width: int,
    importance: np.ndarray,
    squares: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write the squared errors of a row, K fp32, summed over each block: B fp64.

    divisors: K. nearest, squares: room for K fp32, and for K + RUN fp64.
    """
    columns = len(numbers)
    for k in range(columns):
        nearest[k] = numbers[k] / divisors[k]
    near_values(element, nearest)
    for k in range(columns):
        # What is divided by infinity has the factor 0.
        back = nearest[k] * divisors[k] if nearest[k] != np.float32(0) else np.float32(0)
        missed = np.float64(np.float32(back - numbers[k]))
        squares[k] = missed * missed * importance[k]
    each, lanes = width if width else columns, squares[columns:]
    for b in range(len(out)):
        begin, end = b * each, min((b + 1) * each, columns)
        runs = (end - begin) // RUN
        lanes[:] = 0.0
        for i in range(runs):
            for k in range(RUN):
                lanes[k] += squares[begin + i * RUN + k]
        out[b] = lanes.sum() + squares[begin + runs * RUN : end].sum()


@compiled
def errors(
    bits: np.ndarray,
    shift: int,
    factors: np.ndarray,
    high: int,
    width: int,
    element: int,
    importance: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write the squared quantization errors, summed over each row of each block: R,B fp64.

    importance: K fp64, multiplies the square of every column. Other arguments are as in `encode`.
    """
    columns = bits.shape[1]
    wide, squares = np.empty(columns, np.uint32), np.empty(columns + RUN)
    divisors, nearest, place = np.empty(columns, np.float32), np.empty(columns, np.float32), -1
    numbers = wide.view(np.float32)
    for r in range(len(bits)):
        now = r // high if high else 0
        if now != place:
            _spread(factors[now], width, divisors)
            place = now
        _widen(bits[r], shift, wide)
        _missed(element, numbers, divisors, nearest, width, importance, squares, out[r])


@compiled
def search(
    bits: np.ndarray,
    shift: int,
    factors: np.ndarray,
    width: int,
    element: int,
    importance: np.ndarray,
    best: np.ndarray,
) -> None:
    """Write which factors of C,R,B give the least squared error of each block, the first of
    equals: R,B int64. Blocks are of one row; arguments are as in `errors`."""
    columns = bits.shape[1]
    wide, squares = np.empty(columns, np.uint32), np.empty(columns + RUN)
    divisors, nearest = np.empty(columns, np.float32), np.empty(columns, np.float32)
    found, least = np.empty(best.shape[1]), np.empty(best.shape[1])
    numbers = wide.view(np.float32)
    for r in range(len(bits)):
        _widen(bits[r], shift, wide)
        for c in range(len(factors)):
            _spread(factors[c, r], width, divisors)
            _missed(element, numbers, divisors, nearest, width, importance, squares, found)
            for b in range(len(found)):
                if c == 0 or found[b] < least[b]:
                    least[b], best[r, b] = found[b], c
