"""Rules for the scales of blocks, from their largest magnitudes, and candidates for a search.

Rules run for every strip of a weight, in numpy: torch would start threads in each. A block of zeros
has the scale 1: that is exact, and safe to divide by.
"""

import numpy as np
import torch
from torch import Tensor

from lmcast.calib.formats.strips import FormatError, Rule, nearest_e4m3
from lmcast.plugins.rounding import E2M1_MOST

# What search tries of fp32 and fp16 scales, times the rule's. On weights of Gemma 3 270M and
# SmolLM2-135M all but a thousandth of the best were from 0.65 to 1.25.
TIMES = (0.5, 0.6, 0.65, 0.7, *(step / 40 for step in range(30, 51) if step != 40))
E8M0_BIAS = 127
E4M3_EXPONENT = 8
# Codes of E4M3: a scale of 0 would lose a block that its values do not round to 0.
E4M3_LEAST, E4M3_ONE, E4M3_LAST = 0x01, 0x38, 0x7E
# Codes of E4M3 beside the rule's. Best were those at most 2 below, or 4 to 6 above, where the
# largest magnitude becomes 4 instead of 6.
E4M3_STEPS = (-4, -3, -2, -1, 1, 2, 3, 4, 5, 6)


def quotients(span: float, dtype: torch.dtype) -> Rule:
    """Return the rule that maps the largest magnitude to `span`: rounded to fp32, then to dtype.

    Scales are at least the smallest normal number of dtype. Raises FormatError above the largest.
    """
    numbers, stored = torch.finfo(dtype), torch.empty(0, dtype=dtype).numpy().dtype
    # Next to the largest of fp32, a quotient that was rounded up would make an infinite product.
    finite = torch.finfo(torch.float32).max / span * (1 - 2.0**-23)

    def rule(largest: Tensor, shared: Tensor) -> Tensor:
        sizes = largest.numpy()
        scales = np.clip(sizes / np.float32(span), np.float32(numbers.tiny), np.float32(finite))
        scales = np.where(sizes > 0, scales, np.float32(1))
        if float(scales.max()) > numbers.max:
            raise FormatError(
                f"a weight has a magnitude of {float(largest.max()):.3g}; accepted with scales in"
                f" {dtype}: up to {numbers.max * span:.3g}"
            )
        return torch.from_numpy(scales.astype(stored, copy=False))

    return rule


def powers(exponent: int, carry: int) -> Rule:
    """Return the rule of MX: floor(log2(largest)) - exponent, as E8M0 (OCP MX 1.0, section 6.3).

    exponent: that of the largest element. carry: of 2^23 parts of the mantissa, how many below the
    next power the floor is that power already; 0 is OCP's rule.
    """

    def rule(largest: Tensor, shared: Tensor) -> Tensor:
        bits = largest.numpy().view(np.int32)
        codes = ((bits + carry) >> 23) - exponent
        # Above, the largest element would be more than fp32 has.
        codes = np.clip(codes, 0, 2 * E8M0_BIAS - exponent)
        codes = np.where(bits > 0, codes, E8M0_BIAS)
        return torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e8m0fnu)

    return rule


def shared_quotients(largest: Tensor, shared: Tensor) -> Tensor:
    """The rule of NVFP4: the nearest E4M3 scale that maps the largest magnitude to 6."""
    ratios = largest / (E2M1_MOST * shared)
    codes = np.maximum(nearest_e4m3(ratios).numpy(), np.uint8(E4M3_LEAST))
    codes = np.where(largest.numpy() > 0, codes, np.uint8(E4M3_ONE))
    return torch.from_numpy(codes).view(torch.float8_e4m3fn)


def times(scales: Tensor) -> Tensor:
    """Return the given scales times 0.5 to 1.25: with more or less saturation, and other steps."""
    numbers = torch.finfo(scales.dtype)
    tried = scales.float() * torch.tensor(TIMES).reshape(-1, *(1,) * scales.dim())
    return tried.clamp_(numbers.tiny, numbers.max).to(scales.dtype)


def next_powers(scales: Tensor) -> Tensor:
    """Return half and twice of E8M0 scales."""
    # The largest element is then still one of fp32.
    return _near_codes(scales, (-1, 1), 0, 2 * E8M0_BIAS - E4M3_EXPONENT)


def next_codes(scales: Tensor) -> Tensor:
    """Return E4M3 scales near those given."""
    return _near_codes(scales, E4M3_STEPS, E4M3_LEAST, E4M3_LAST)


def _near_codes(scales: Tensor, steps: tuple[int, ...], least: int, most: int) -> Tensor:
    """Return scales of 8 bits whose codes are some steps from those given."""
    near = scales.view(torch.uint8).int() + torch.tensor(steps).reshape(-1, *(1,) * scales.dim())
    return near.clamp_(least, most).to(torch.uint8).view(scales.dtype)
