"""Formats of packed weights against exact arithmetic, other libraries, and one another."""

import dataclasses
import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmcast.calib.formats import WEIGHTS, FormatError
from lmcast.graphs.weights.elements import E2M1, E4M3, ELEMENTS, INT4
from lmcast.graphs.weights.quantized import Quantized
from lmcast.plugins.rounding import round_e2m1, round_e4m3

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A format of every element whose blocks are of one row: its scales are the test's to choose.
OF_ELEMENT = {"e2m1": "nvfp4", "e4m3": "fp8-channel", "int4": "int4", "int8": "int8"}
COLUMNS = 128  # whole blocks of every format
LARGEST = torch.finfo(torch.float32).max


def exact_codes(element: str) -> dict[int, Fraction]:
    """Return the codes that packing may give, but for negative zeros, and their numbers."""
    found = {c: Fraction(x) for c, x in enumerate(ELEMENTS[element].values) if x == x}
    # -0 of both floats; -128, which is not used.
    out = {"e2m1": 0x8, "e4m3": 0x80, "int8": 0x80}.get(element)
    return {code: x for code, x in found.items() if code != out}


EXACT = {element: exact_codes(element) for element in ELEMENTS}


def nearest(element: str, number: float, factor: float) -> int:
    """Return the code nearest to number / factor, of two the even one; by fractions alone."""
    at = Fraction(number) / Fraction(factor)
    code = min(EXACT[element], key=lambda c: (abs(EXACT[element][c] - at), c & 1))
    negative = math.copysign(1.0, number) < 0
    if EXACT[element][code] == 0 and negative and element in ("e2m1", "e4m3"):
        return 1 << (ELEMENTS[element].bits - 1)  # -0 keeps its sign
    return code


def unpacked(packed: Quantized) -> Tensor:
    """Return one code an entry."""
    if packed.scheme.bits == 8:
        return packed.codes
    return torch.stack([packed.codes & 15, packed.codes >> 4], -1).flatten(-2)


def halves(element: str) -> list[Fraction]:
    """Return the codes' numbers and what lies half way between them."""
    numbers = sorted(set(EXACT[element].values()))
    return numbers + [(a + b) / 2 for a, b in itertools.pairwise(numbers)]


@st.composite
def hard_rows(draw: st.DrawFn, element: str) -> tuple[Tensor, float]:
    """A factor, and numbers at, just below and just above what rounding decides on."""
    factor = draw(st.floats(2.0**-14, 60000.0, width=16))
    if element != "int4":  # scales of fp32
        factor = draw(st.floats(2.0**-100, 2.0**100, width=32))
    points = draw(st.lists(st.sampled_from(halves(element)), min_size=8, max_size=8))
    some = st.floats(-600, 600, width=32) | st.floats(-(2.0**20), 2.0**20, width=32)
    ratios = draw(st.lists(some, min_size=8, max_size=8))
    numbers = np.array([float(p * Fraction(factor)) for p in points], np.float32)
    near = [np.nextafter(numbers, np.float32(side)) for side in (-np.inf, np.inf)]
    row = np.concatenate([numbers, *near, np.array(ratios, np.float32) * np.float32(factor)])
    return torch.from_numpy(row[np.isfinite(row)]), factor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("element", ELEMENTS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_codes_are_the_nearest(element: str, dtype: torch.dtype, data: st.DataObject):
    numbers, factor = data.draw(hard_rows(element))
    weight = numbers.to(dtype)
    weight = weight[weight.isfinite()]
    values = torch.zeros(1, COLUMNS, dtype=dtype)
    values[0, : len(weight)] = weight
    format = WEIGHTS[OF_ELEMENT[element]]
    scales = torch.ones(format.scheme.scales_shape((1, COLUMNS)))
    shared = torch.tensor(factor) if format.scheme.shared else None
    if shared is None:
        scales = scales * factor
    packed = format.pack(values, scales.to(format.scheme.scale), shared)
    expected = [nearest(element, x, factor) for x in weight.tolist()]
    assert unpacked(packed)[0, : len(weight)].tolist() == expected
    again = format.round(weight, torch.tensor(factor))
    assert torch.equal(again, packed.dequantize()[0, : len(weight)])


@pytest.mark.parametrize("element", ELEMENTS)
def test_all_codes_come_back(element: str):
    codes = sorted(EXACT[element])
    values = ELEMENTS[element].table()[codes]
    format = WEIGHTS[OF_ELEMENT[element]]
    row = torch.zeros(1, 256)
    row[0, : len(codes)] = values
    scales = torch.ones(format.scheme.scales_shape((1, 256)), dtype=format.scheme.scale)
    packed = format.pack(row, scales, torch.ones(()) if format.scheme.shared else None)
    assert unpacked(packed)[0, : len(codes)].tolist() == codes
    assert torch.equal(packed.dequantize(), row)


def test_codes_are_what_others_say():
    codes = np.arange(256, dtype=np.uint8)
    e4m3 = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(E4M3.table().numpy(), e4m3, equal_nan=True)
    e2m1 = codes[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(E2M1.table().numpy(), e2m1)
    e8m0 = torch.from_numpy(codes.copy()).view(torch.float8_e8m0fnu).float().numpy()
    assert np.array_equal(
        e8m0, codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32), equal_nan=True
    )
    nibbles = codes[:16].view(ml_dtypes.int4).astype(np.float32)
    assert np.array_equal(INT4.table().numpy(), nibbles)


def all_bf16() -> Tensor:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return every[every.isfinite()]


@pytest.mark.parametrize("factor", [1.0, 2.0**-7, 2.0**100])
def test_all_numbers_of_16_bits_round_as_operators_and_ml_dtypes_do(factor: float):
    numbers, by = all_bf16(), torch.tensor(factor)
    wide = numbers.float() / factor  # exact, or saturates
    for name, rounded, kind, most in (
        ("mxfp4", round_e2m1, ml_dtypes.float4_e2m1fn, 6.0),
        ("mxfp8", round_e4m3, ml_dtypes.float8_e4m3fn, 448.0),
    ):
        found = WEIGHTS[name].round(numbers, by)
        assert torch.equal(found.view(torch.int32), (rounded(wide) * by).view(torch.int32))
        other = wide.clamp(-most, most).numpy().astype(kind).astype(np.float32)
        assert np.array_equal(found.numpy(), other * np.float32(factor))
    found = WEIGHTS["int8"].round(numbers, by)
    assert torch.equal(found, wide.round().clamp(-127, 127) * by)


def edges(dtype: torch.dtype) -> Tensor:
    """Blocks of zeros, of the smallest and the largest numbers, of one number, of both signs."""
    torch.manual_seed(0)
    numbers = torch.finfo(dtype)
    weight = torch.randn(12, 2 * COLUMNS).to(dtype)
    weight[0] = 0
    weight[1] = -0.0
    weight[2] = numbers.smallest_normal * weight[2]
    weight[3] = numbers.smallest_normal * numbers.eps  # the smallest subnormal
    weight[4, 1:] = 0
    weight[5] = 7.0
    weight[6] = -7.0
    weight[7] *= 0.01
    weight[7, ::32] = 100
    weight[8] = torch.linspace(-8, 8, 2 * COLUMNS).to(dtype)
    return weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_odd_blocks(name: str, dtype: torch.dtype):
    format, weight = WEIGHTS[name], edges(dtype)
    packed = format.pack(weight)
    values = packed.dequantize()
    assert values.isfinite().all() and (packed.scales.float() > 0).all()
    assert not values[:2].any()
    assert torch.equal(values, format.round(weight, packed.spread(packed.factors())))
    numbers = weight.double()
    assert format.error(weight, packed) == pytest.approx(  # sums in another order
        float((values.double() - numbers).square().mean()), rel=1e-12
    )
    squares = format.squares(weight, packed.scales, packed.shared)
    # squares has products of fp64, dequantize rounds them to fp32.
    assert float(squares.sum()) == pytest.approx(
        float((values.double() - numbers).square().sum()), rel=1e-5
    )
    # No number is further away than saturation and half the widest step explain.
    factors = packed.spread(packed.factors()).expand_as(weight).double()
    element = format.scheme.element.name
    steps = sorted(set(map(float, EXACT[element].values())))
    half = max(b - a for a, b in itertools.pairwise(steps)) / 2
    cut = (numbers.abs() - min(-steps[0], steps[-1]) * factors).clamp(min=0)
    # 2^-149: products with the smallest scales are multiples of it.
    bound = cut.maximum(half * factors) * (1 + 1e-6) + 2.0**-149
    assert ((values.double() - numbers).abs() <= bound).all()


def test_the_largest_numbers_stay_finite():
    weight = torch.full((2, COLUMNS), torch.finfo(torch.float32).max)
    for name, format in WEIGHTS.items():
        if format.scheme.scale != torch.float16:
            values = format.pack(weight).dequantize()
            # MXFP4 has at most 3/4 of 2^128: a larger scale would have infinite products.
            assert values.isfinite().all() and (values >= weight * 0.74).all(), name
            found = format.search(weight)
            assert format.pack(weight, found).dequantize().isfinite().all(), name


def log2_floor(number: float) -> int:
    """Return the exponent of a positive number, by fractions alone."""
    at, exponent = Fraction(number), 0
    while at >= 2:
        at, exponent = at / 2, exponent + 1
    while at < 1:
        at, exponent = at * 2, exponent - 1
    return exponent


@settings(max_examples=200, deadline=None)
@given(largest=st.floats(2.0**-149, LARGEST, width=32))
@example(largest=LARGEST)  # whose power would be above the largest
def test_powers_follow_their_rules(largest: float):
    weight = torch.zeros(1, 32)
    weight[0, 5] = -largest
    exponent = log2_floor(largest)
    mantissa = Fraction(largest) / Fraction(2) ** exponent
    up = {"mxfp4": mantissa >= Fraction(7, 4), "mxfp8": mantissa > Fraction(7, 4)}
    for name, least in (("mxfp4", 2), ("mxfp8", 8)):
        code = exponent + up[name] - least + 127
        found = WEIGHTS[name].scales(weight)[0].view(torch.uint8).item()
        assert found == min(max(code, 0), 254 - least)


@settings(max_examples=200, deadline=None)
@given(
    largest=st.floats(2.0**-60, 2.0**20, width=32),
    others=st.floats(0, 1, width=32),
)
def test_other_scales_follow_their_rules(largest: float, others: float):
    weight = torch.zeros(2, COLUMNS)
    weight[0, 3], weight[1, 20] = largest, largest * others
    second = float(weight[1].max())
    for name, span in (("fp8-channel", 448), ("int8", 127)):
        scales = WEIGHTS[name].scales(weight)[0].flatten().numpy()
        assert scales[0] == np.float32(largest) / np.float32(span)
        small = np.float32(second) / np.float32(span)
        assert scales[1] == (max(small, np.float32(2.0**-126)) if second else 1.0)
    assert WEIGHTS["fp8"].scales(weight)[0].item() == np.float32(largest) / np.float32(448)
    if largest < 400000:
        half = WEIGHTS["int4"].scales(weight)[0][0, 0].item()
        ratio = np.float16(np.float32(largest) / np.float32(7.5))
        assert half == max(ratio, np.float16(2.0**-14))
    scales, shared = WEIGHTS["nvfp4"].scales(weight)
    assert shared is not None and shared.item() == np.float32(largest) / np.float32(2688)
    ratio = np.float32(second) / (np.float32(6) * np.float32(shared.item()))
    code = max(nearest("e4m3", float(ratio), 1.0), 1) if second else 0x38  # 1.0
    assert scales.view(torch.uint8)[1, 1].item() == code


def test_nan_of_a_scale_makes_a_block_nan():
    format = WEIGHTS["mxfp4"]
    packed = format.pack(torch.ones(1, 64))
    scales = packed.scales.view(torch.uint8).clone()
    scales[0, 1] = 255
    values = dataclasses.replace(packed, scales=scales.view(torch.float8_e8m0fnu)).dequantize()
    assert values[0, :32].isfinite().all() and values[0, 32:].isnan().all()
    with pytest.raises(FormatError, match="NaN, Inf or negative"):
        format.pack(torch.ones(1, 64), scales.view(torch.float8_e8m0fnu))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_without_codes_are_refused(value: float, dtype: torch.dtype):
    weight = torch.zeros(3, COLUMNS, dtype=dtype)
    weight[2, COLUMNS - 1] = value
    for format in WEIGHTS.values():
        good = format.pack(torch.zeros_like(weight))
        for attempt in (
            lambda format=format: format.scales(weight),
            lambda format=format: format.pack(weight),
            lambda format=format, good=good: format.pack(weight, good.scales, good.shared),
            lambda format=format: format.round(weight, torch.ones(())),
        ):
            with pytest.raises(FormatError, match="Inf or NaN"):
                attempt()
