"""Compiled loops over the rows of a weight: largest values, codes, rounding, squared errors.

Nothing else in the project says what the nearest code of a number is. Quotients are fp64: of two
fp32 numbers, whether a quotient is above, at or below half way between two codes is then exact.
Letters: R rows, K columns, B blocks of a row.
"""

from typing import Any

import numpy as np
from numba import njit

E2M1, E4M3, INT4, INT8 = range(4)  # the elements, as loops tell them apart
MAGNITUDE = np.uint32(0x7FFFFFFF)
RUN = 16  # values that one vector instruction compares; every block of 4 bits is some of these
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def compiled(function: Any) -> Any:
    """Compile a loop on its first use, and keep the result where numba finds a place for it."""
    try:
        return njit(function, cache=True, **OPTIONS)
    except RuntimeError:  # neither beside this file nor below the user's home may be written
        return njit(function, **OPTIONS)


@compiled
def _widen(bits, shift, wide):
    """Write a row as bits of fp32: bf16 is the upper half of it (shift 16)."""
    for k in range(len(wide)):
        wide[k] = np.uint32(bits[k]) << np.uint32(shift)


@compiled
def _spread(factors, wide, out):
    """Write what every column is divided by; a factor of 0 makes every number 0."""
    width = wide if wide else len(out)
    for b in range(len(factors)):
        factor = np.float64(factors[b])
        if factor == 0.0:
            factor = np.inf
        out[b * width : (b + 1) * width] = factor


@compiled
def _encode_e2m1(ratios, wide, codes):
    for k in range(len(ratios)):
        size = min(abs(ratios[k]), 6.0)
        # Steps of 1/2 below 2, of 1 below 4, then of 2; rint and codes are even together.
        times = 2.0 if size < 2.0 else (1.0 if size < 4.0 else 0.5)
        first = 0 if size < 2.0 else (2 if size < 4.0 else 4)
        code = np.int32(np.rint(size * times)) + first
        codes[k] = np.uint8(code | ((wide[k] >> np.uint32(28)) & np.uint32(8)))


@compiled
def _encode_e4m3(ratios, wide, codes):
    bits = ratios.view(np.uint64)
    for k in range(len(ratios)):
        size = min(abs(ratios[k]), 448.0)
        small = np.int64(np.rint(size * 512.0))  # subnormal: multiples of 2^-9
        # Of 52 bits of mantissa 3 are kept; the exponent moves from bias 1023 to 7.
        kept = bits[k] & np.uint64(0x7FFFFFFFFFFFFFFF)
        odd = (kept >> np.uint64(49)) & np.uint64(1)
        rounded = (kept + np.uint64((1 << 48) - 1) + odd) >> np.uint64(49)
        normal = min(np.int64(rounded) - np.int64(1016 << 3), np.int64(0x7E))
        code = small if size < 0.015625 else normal
        codes[k] = np.uint8(code | np.int64((wide[k] >> np.uint32(24)) & np.uint32(0x80)))


@compiled
def _encode_integers(ratios, least, most, mask, codes):
    for k in range(len(ratios)):
        near = min(max(np.rint(ratios[k]), least), most)
        codes[k] = np.uint8(np.int32(near) & mask)


@compiled
def _encode(element, ratios, wide, codes):
    """Write the nearest code of every ratio, ties to the even one, saturating."""
    if element == E2M1:
        _encode_e2m1(ratios, wide, codes)
    elif element == E4M3:
        _encode_e4m3(ratios, wide, codes)
    elif element == INT4:
        _encode_integers(ratios, -8.0, 7.0, 0xF, codes)
    else:
        _encode_integers(ratios, -127.0, 127.0, 0xFF, codes)


@compiled
def _row(bits, shift, element, divisors, wide, ratios, codes):
    """Write a row's bits of fp32, ratios and codes; return the largest magnitude, as bits."""
    _widen(bits, shift, wide)
    numbers = wide.view(np.float32)
    most = np.uint32(0)
    for k in range(len(wide)):
        most = max(most, wide[k] & MAGNITUDE)
        ratios[k] = np.float64(numbers[k]) / divisors[k]
    _encode(element, ratios, wide, codes)
    return most


@compiled
def largest(bits, shift, width, out):
    """bits R,K uint16 of bf16 (shift 16) or uint32 of fp32 (0) -> out R,B: bits of fp32."""
    columns = bits.shape[1]
    wide = np.empty(columns, np.uint32)
    runs = np.empty(columns // RUN, np.uint32)
    each = (width if width else columns) // RUN
    for r in range(len(bits)):
        _widen(bits[r], shift, wide)
        for i in range(len(runs)):
            most = np.uint32(0)
            for k in range(RUN):
                most = max(most, wide[i * RUN + k] & MAGNITUDE)
            runs[i] = most
        out[r] = 0
        for i in range(len(runs)):
            b = i // each if width else 0
            out[r, b] = max(out[r, b], runs[i])
        for k in range(len(runs) * RUN, columns):
            out[r, -1] = max(out[r, -1], wide[k] & MAGNITUDE)


@compiled
def encode(bits, shift, factors, high, width, first, element, out):
    """Write codes R,K or R,K/2 uint8; return the largest magnitude, as bits of fp32.

    factors: what blocks of high x width (0: all) are multiplied with when they are read, fp32;
    bits begin with row `first` of them.
    """
    columns = bits.shape[1]
    wide, codes = np.empty(columns, np.uint32), np.empty(columns, np.uint8)
    divisors, ratios = np.empty(columns, np.float64), np.empty(columns, np.float64)
    place, most = -1, np.uint32(0)
    for r in range(len(bits)):
        now = (first + r) // high if high else 0
        if now != place:
            _spread(factors[now], width, divisors)
            place = now
        most = max(most, _row(bits[r], shift, element, divisors, wide, ratios, codes))
        if element in (E2M1, INT4):
            for k in range(columns // 2):
                out[r, k] = codes[2 * k] | (codes[2 * k + 1] << 4)
        else:
            out[r] = codes
    return most


@compiled
def rounded(values, factors, element, table, out):
    """Write the nearest values that a format has, times their factors: all K fp32."""
    wide = values.view(np.uint32)
    divisors, ratios = np.empty(len(values), np.float64), np.empty(len(values), np.float64)
    codes = np.empty(len(values), np.uint8)
    _spread(factors, 1, divisors)
    for k in range(len(values)):
        ratios[k] = np.float64(values[k]) / divisors[k]
    _encode(element, ratios, wide, codes)
    for k in range(len(values)):
        out[k] = table[codes[k]] * factors[k]


@compiled
def errors(bits, shift, factors, high, width, first, element, table, importance, out):
    """Write squared errors of codes R,B fp64: the sum over a row's part of a block.

    importance K fp32: what the square of every column is multiplied with. Others as in encode.
    """
    columns = bits.shape[1]
    wide, codes = np.empty(columns, np.uint32), np.empty(columns, np.uint8)
    divisors, ratios = np.empty(columns, np.float64), np.empty(columns, np.float64)
    squares = np.empty(columns, np.float64)
    numbers = wide.view(np.float32)
    each = width if width else columns
    place = -1
    for r in range(len(bits)):
        now = (first + r) // high if high else 0
        if now != place:
            _spread(factors[now], width, divisors)
            place = now
        _row(bits[r], shift, element, divisors, wide, ratios, codes)
        for k in range(columns):
            # What is divided by infinity has the factor 0.
            back = table[codes[k]] * divisors[k] if table[codes[k]] != 0.0 else 0.0
            missed = back - np.float64(numbers[k])
            squares[k] = missed * missed * importance[k]
        for b in range(out.shape[1]):
            out[r, b] = squares[b * each : (b + 1) * each].sum()
