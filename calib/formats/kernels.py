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
PART = 4096  # of many numbers what is done at a time, in the nearest cache
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
        out[b * width : (b + 1) * width] = factor if factor > 0.0 else np.inf


@compiled
def _near_e2m1(ratios):
    for k in range(len(ratios)):
        size = min(abs(ratios[k]), 6.0)
        # Steps of 1/2 below 2, of 1 below 4, then of 2; rint and codes are even together.
        step = 0.5 if size < 2.0 else (1.0 if size < 4.0 else 2.0)
        times = 2.0 if size < 2.0 else (1.0 if size < 4.0 else 0.5)
        ratios[k] = np.copysign(np.rint(size * times) * step, ratios[k])


@compiled
def _near_e4m3(ratios, large):
    bits, steps = ratios.view(np.uint64), large.view(np.uint64)
    for k in range(len(ratios)):
        # 1.5 * 2^49 times the power of two of a number, from 2^-6 to 2^8: their sum has 3 bits of
        # the number's mantissa, rounded as sums are.
        power = max(bits[k] & np.uint64(0x7FF << 52), np.uint64((1023 - 6) << 52))
        power = min(power, np.uint64((1023 + 8) << 52))
        steps[k] = power + np.uint64((49 << 52) | (1 << 51))
    for k in range(len(ratios)):
        size = min(abs(ratios[k]), 448.0)
        ratios[k] = np.copysign((size + large[k]) - large[k], ratios[k])


@compiled
def _near(element, ratios, spare):
    """Replace every ratio by the nearest value that a code has, ties to the even code; saturate."""
    if element == E2M1:
        _near_e2m1(ratios)
    elif element == E4M3:
        _near_e4m3(ratios, spare)
    else:
        least, most = (-8.0, 7.0) if element == INT4 else (-127.0, 127.0)
        for k in range(len(ratios)):
            ratios[k] = min(max(np.rint(ratios[k]), least), most)


@compiled
def _code(element, values, codes):
    """Write the codes of values that have one."""
    bits = values.view(np.uint64)
    if element == E2M1:
        for k in range(len(values)):
            size, sign = abs(values[k]), np.int32(bits[k] >> np.uint64(60)) & 8
            place = size * 2.0 if size < 2.0 else (size + 2.0 if size < 4.0 else size * 0.5 + 4.0)
            codes[k] = np.uint8(np.int32(place) | sign)
    elif element == E4M3:
        for k in range(len(values)):
            size, sign = abs(values[k]), np.int32(bits[k] >> np.uint64(56)) & 0x80
            # 3 of 52 bits of mantissa, and the exponent with bias 7 instead of 1023.
            normal = np.int32(bits[k] >> np.uint64(49)) & 0x3FFF
            code = np.int32(size * 512.0) if size < 0.015625 else normal - (1016 << 3)
            codes[k] = np.uint8(code | sign)
    else:
        mask = 0xF if element == INT4 else 0xFF
        for k in range(len(values)):
            codes[k] = np.uint8(np.int32(values[k]) & mask)


@compiled
def _ratios(wide, divisors, ratios):
    """Write quotients; return the largest magnitude, as bits."""
    numbers = wide.view(np.float32)
    for k in range(len(wide)):
        ratios[k] = np.float64(numbers[k]) / divisors[k]
    most = np.uint32(0)
    for k in range(len(wide)):
        most = max(most, wide[k] & MAGNITUDE)
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
def encode(bits, shift, factors, high, width, element, out):
    """Write codes R,K or R,K/2 uint8; return the largest magnitude, as bits of fp32.

    factors: what blocks of high x width (0: all) are multiplied with when they are read, fp32.
    """
    columns = bits.shape[1]
    wide, codes = np.empty(columns, np.uint32), np.empty(columns, np.uint8)
    divisors, ratios, spare = np.empty(columns), np.empty(columns), np.empty(columns)
    place, most = -1, np.uint32(0)
    for r in range(len(bits)):
        now = r // high if high else 0
        if now != place:
            _spread(factors[now], width, divisors)
            place = now
        _widen(bits[r], shift, wide)
        most = max(most, _ratios(wide, divisors, ratios))
        _near(element, ratios, spare)
        _code(element, ratios, codes)
        if element in (E2M1, INT4):
            for k in range(columns // 2):
                out[r, k] = codes[2 * k] | (codes[2 * k + 1] << 4)
        else:
            out[r] = codes
    return most


@compiled
def rounded(values, factors, element, out):
    """Write the nearest values that a format has, times their factors: all K fp32; return the
    largest magnitude, as bits."""
    bits, most = values.view(np.uint32), np.uint32(0)
    divisors, ratios, spare = np.empty(PART), np.empty(PART), np.empty(PART)
    for begin in range(0, len(values), PART):
        end = min(begin + PART, len(values))
        size = end - begin
        _spread(factors[begin:end], 1, divisors[:size])
        most = max(most, _ratios(bits[begin:end], divisors[:size], ratios[:size]))
        _near(element, ratios[:size], spare[:size])
        for k in range(size):
            out[begin + k] = np.float32(ratios[k]) * factors[begin + k]
    return most


@compiled
def errors(bits, shift, factors, high, width, element, importance, out):
    """Write squared errors of codes R,B fp64: the sum over a row's part of a block.

    importance K fp32: what the square of every column is multiplied with. Others as in encode.
    """
    columns = bits.shape[1]
    wide = np.empty(columns, np.uint32)
    divisors, ratios, spare = np.empty(columns), np.empty(columns), np.empty(columns)
    lanes = np.empty(RUN, np.float64)
    numbers = wide.view(np.float32)
    each = width if width else columns
    place = -1
    for r in range(len(bits)):
        now = r // high if high else 0
        if now != place:
            _spread(factors[now], width, divisors)
            place = now
        _widen(bits[r], shift, wide)
        _ratios(wide, divisors, ratios)
        _near(element, ratios, spare)
        for k in range(columns):
            # What is divided by infinity has the factor 0.
            back = ratios[k] * divisors[k] if ratios[k] != 0.0 else 0.0
            missed = back - np.float64(numbers[k])
            ratios[k] = missed * missed * importance[k]
        for b in range(out.shape[1]):
            begin, end = b * each, min((b + 1) * each, columns)
            runs = (end - begin) // RUN
            lanes[:] = 0.0
            for i in range(runs):  # sums side by side, which vectors add
                for k in range(RUN):
                    lanes[k] += ratios[begin + i * RUN + k]
            out[r, b] = lanes.sum() + ratios[begin + runs * RUN : end].sum()
