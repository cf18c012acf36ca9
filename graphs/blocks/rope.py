"""Rotary position embedding: frequencies of every scaling, and the rotation (arXiv 2104.09864).

Letters: B batch, T tokens, R rotated dims of a head.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lmcast.graphs.blocks.norm import widen
from lmcast.graphs.blocks.step import Step, Table
from lmcast.graphs.config.rope_parameters import MRope, RopeParameters, TemperedRope


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim


def _llama3(p: RopeParameters, frequency: Tensor, original: int) -> Tensor:
    """Llama 3.1: long waves are stretched by `factor`, short ones kept, those between blended."""
    assert p.factor
    assert p.low_freq_factor
    assert p.high_freq_factor
    low, high = p.low_freq_factor, p.high_freq_factor
    wave = 2 * math.pi / frequency
    stretched = torch.where(wave > original / low, frequency / p.factor, frequency)
    # low == high (Llama 4 Scout) divides by zero in a branch that the selection never takes.
    blend = (original / wave - low) / (high - low) if high != low else torch.ones_like(wave)
    blended = (1 - blend) * stretched / p.factor + blend * stretched
    between = ~(wave < original / high) & ~(wave > original / low)
    return torch.where(between, blended, stretched)


def _yarn(p: RopeParameters, dim: int, original: int, stretch: float) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): interpolate slow dims, keep fast ones, ramp between."""

    def magnitude(scale: float, by: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * by * math.log(scale) + 1.0

    def dim_at(rotations: float) -> float:
        turns = original / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(p.rope_theta))

    factor = p.attention_factor
    if factor is None and p.mscale and p.mscale_all_dim:
        factor = magnitude(stretch, p.mscale) / magnitude(stretch, p.mscale_all_dim)
    elif factor is None:
        factor = magnitude(stretch)
    low, high = dim_at(p.beta_fast or 32), dim_at(p.beta_slow or 1)
    if p.truncate is None or p.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # as Hugging Face does, against a division by zero
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(
        0, 1
    )
    wave = p.rope_theta ** _exponents(dim)
    keep = 1 - ramp
    return (1.0 / (stretch * wave)) * (1 - keep) + (1.0 / wave) * keep, factor


class Rope(Table):
    """cos and sin of the angle of every position: two tensors B,T,R/2 in fp32.

    Frequencies are computed in fp32 in Hugging Face's order of operations, because that is what
    the checkpoints were trained and evaluated with.
    """

    outputs = ("cos", "sin")

    def __init__(self, head_dim: int, p: RopeParameters, max_position_embeddings: int):
        super().__init__()
        proportional = p.rope_type == "proportional"
        self.dim = head_dim if proportional else int(head_dim * p.partial_rotary_factor)
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"rotary width is {self.dim} (head_dim {head_dim}); it must be even")
        original = p.original_max_position_embeddings or max_position_embeddings
        self.exponents = _exponents(self.dim)
        frequency = 1.0 / (p.rope_theta**self.exponents)
        self.magnitude = 1.0
        self.switch: int | None = None  # total length above which `long` frequencies hold
        self.long = frequency
        self.dynamic: tuple[float, float, int] | None = None  # theta, factor, maximum
        if proportional:  # the first pairs turn as always, the rest stand still
            turning = int(head_dim * p.partial_rotary_factor // 2)
            frequency = torch.cat(
                [frequency[:turning], torch.zeros(self.dim // 2 - turning, device="cpu")]
            )
            frequency = frequency / (p.factor or 1.0)
        elif p.rope_type == "linear":
            assert p.factor
            frequency = frequency / p.factor
        elif p.rope_type == "dynamic":
            if self.dim == 2:
                raise ValueError("rope_type 'dynamic' needs a rotary width above 2")
            self.dynamic = (p.rope_theta, p.factor or 1.0, max_position_embeddings)
        elif p.rope_type == "llama3":
            frequency = _llama3(p, frequency, original)
        elif p.rope_type == "yarn":
            assert p.factor
            frequency, self.magnitude = _yarn(p, self.dim, original, p.factor)
        elif p.rope_type == "longrope":
            self.magnitude = _longrope_magnitude(p, original, max_position_embeddings)
            frequency, self.long = (
                1.0 / (self._factors(name, f) * p.rope_theta ** _exponents(self.dim))
                for name, f in (("short_factor", p.short_factor), ("long_factor", p.long_factor))
            )
            self.switch = None if torch.equal(frequency, self.long) else original
        self.frequency = frequency
        self._sections = p if isinstance(p, MRope) else None
        self.turned: tuple[Tensor, Tensor] | None = None  # pairs that turn by row, by column

    def see(self) -> None:
        """Turn pairs by `rope_positions` from now on; raises ValueError where they have no axes."""
        if self._sections is None:
            raise ValueError("rope_parameters have no mrope_section; pictures need one")
        axes = torch.tensor(self._sections.axes(self.dim // 2), device="cpu")
        self.turned = axes == 1, axes == 2

    def _factors(self, name: str, factors: tuple[float, ...] | None) -> Tensor:
        if factors is None or len(factors) != self.dim // 2:
            raise ValueError(f"{name} must have {self.dim // 2} numbers, one per rotated pair")
        return torch.tensor(factors, dtype=torch.float32, device="cpu")

    def _frequency(self, step: Step) -> Tensor:
        device = step.positions.device
        if self.switch is None and self.dynamic is None:
            return self.frequency.to(device)
        # Per row, so that a row does not depend on its neighbours: in Hugging Face the longest
        # row of a batch decides for all of them.
        length = (step.cache_lengths + step.token_counts)[:, None, None]  # B,1,1
        if self.switch is not None:
            long, short = self.long.to(device), self.frequency.to(device)
            return torch.where(length > self.switch, long, short)
        assert self.dynamic is not None
        theta, factor, maximum = self.dynamic
        stretch = factor * length.clamp(min=maximum).float() / maximum - (factor - 1)
        base = theta * stretch ** (self.dim / (self.dim - 2))
        return 1.0 / base ** self.exponents.to(device)

    def _places(self, step: Step) -> Tensor:
        """Return the positions to turn by, in fp32: B,T,1, or B,T,R/2 where pairs differ."""
        if step.rope_positions is None:
            return step.positions[..., None].float()
        assert self.turned is not None, "see() makes a rotation take rope_positions"
        by_row, by_column = (pairs.to(step.positions.device) for pairs in self.turned)
        time, row, column = step.rope_positions.float().split(1, -1)  # B,T,1 each
        return torch.where(by_row, row, torch.where(by_column, column, time))

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        angle = self._places(step) * self._frequency(step)  # B,T,R/2
        cos, sin = angle.cos(), angle.sin()
        return (cos * self.magnitude, sin * self.magnitude) if self.magnitude != 1 else (cos, sin)


def _longrope_magnitude(p: RopeParameters, original: int, maximum: int) -> float:
    if p.attention_factor is not None:
        return p.attention_factor
    factor = p.factor or maximum / original
    if original == 1 and factor > 1:
        raise ValueError("rope_type 'longrope' needs original_max_position_embeddings above 1")
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate the first R dims of every head of x B,T,heads*K in the half layout."""
    width = x.shape[-1] // heads
    part = 0 if 2 * cos.shape[-1] == width else 2 * cos.shape[-1]
    return torch.onnx.ops.rotary_embedding(
        x, cos.to(x.dtype), sin.to(x.dtype), num_heads=heads, rotary_embedding_dim=part
    )


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate the first R dims of every head of x in the interleaved layout, dim 2j with 2j + 1."""
    width = x.shape[-1] // heads
    part = 0 if 2 * cos.shape[-1] == width else 2 * cos.shape[-1]
    return torch.onnx.ops.rotary_embedding(
        x, cos.to(x.dtype), sin.to(x.dtype),
        interleaved=True, num_heads=heads, rotary_embedding_dim=part,
    )  # fmt: skip


def rotate_wide(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate in fp32 and cast afterwards (OLMo 2 and 3)."""
    return rotate(widen(x), cos, sin, heads).to(x.dtype)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate all dims of every head in the interleaved layout, dim 2j with 2j + 1, in fp32, and
    cast afterwards (Llama 4)."""
    return rotate_interleaved(widen(x), cos, sin, heads).to(x.dtype)


Rotation = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class Temperature(Table):
    """`1 + beta * ln(1 + floor((position + offset) / length))`, B,T,1: what queries are scaled by,
    in Ministral 3 and Mistral 4 the rotated ones, in Llama 4 (offset 1) those without positions."""

    outputs = ("factor",)

    def __init__(self, beta: float, length: int, offset: int = 0):
        super().__init__()
        self.beta, self.length, self.offset = beta, length, offset

    def forward(self, step: Step) -> tuple[Tensor]:
        position = step.positions + self.offset if self.offset else step.positions
        turns = torch.div(position, self.length, rounding_mode="floor").float()
        return ((1 + self.beta * torch.log(1 + turns))[..., None],)


def temperature(p: TemperedRope, max_position_embeddings: int) -> Temperature:
    """Return the table that such rope_parameters ask for; raises ValueError where they cannot."""
    length = p.original_max_position_embeddings
    if length is None and p.rope_type in ("llama3", "yarn", "longrope"):
        length = max_position_embeddings
    if length is None:
        raise ValueError(
            "rope_parameters.original_max_position_embeddings is missing;"
            " llama_4_scaling_beta counts in multiples of it"
        )
    return Temperature(p.llama_4_scaling_beta, length)


class LogTemperature(Table):
    """`ln(position) / ln(length)` behind position `length`, 1 up to it, B,T in fp32: what capped
    scores are multiplied by (Grok 2)."""

    outputs = ("factor",)

    def __init__(self, length: int):
        super().__init__()
        if length < 2:
            raise ValueError(
                f"the length of a temperature is {length}; its logarithm is divided by"
            )
        self.length = length

    def forward(self, step: Step) -> tuple[Tensor]:
        position = step.positions.clamp(min=1).float()  # the logarithm of 0 is infinite
        return ((position.log() / math.log(self.length)).clamp(min=1.0),)
