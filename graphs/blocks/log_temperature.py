"""Attention whose capped scores grow with the logarithm of the position (Grok 2).

Letters: B batch, T tokens in this call, H query heads, G key heads, K head width.
"""

import math

from torch import Tensor, nn

from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.rope import Rope, rotate
from lmcast.graphs.blocks.step import Mixer, State, Step, Table
from lmcast.plugins.attention.cached_attention import cached_attention


class LogTemperature(Table):
    """`ln(position) / ln(length)` behind position `length`, 1 up to it; B,T in fp32."""

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


class TemperedAttention(Mixer):
    """Causal attention of H query heads to G shared key and value heads, scores tempered."""

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: Rope,
        softcap: float | None,
        temperature: LogTemperature,
    ):
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads are not a multiple of {kv_heads} key heads")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.scale, self.softcap = head_dim**-0.5, softcap or 0.0
        self.q = nn.Linear(dim, heads * head_dim, bias=False)
        self.k = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, dim, bias=False)
        self.rope, self.temperature = rope, temperature
        shape = ("B", kv_heads, "C", head_dim)
        self.states = (State("key", shape), State("value", shape))

    def forward(
        self, x: Tensor, step: Step, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        cos, sin = step.table(self.rope)
        q = rotate(self.q(x), cos, sin, self.heads).unflatten(-1, (self.heads, self.head_dim))
        k = rotate(self.k(x), cos, sin, self.kv_heads).unflatten(-1, (self.kv_heads, self.head_dim))
        v = self.v(x).unflatten(-1, (self.kv_heads, self.head_dim))  # B,T,G,K
        y, *present = cached_attention(
            q, k, v, *past, step.cache_lengths, step.token_counts, None, None, None,
            step.table(self.temperature)[0], self.scale, self.softcap,
        )  # fmt: skip
        return self.o(y.flatten(-2)), tuple(present)


def capped_attention(
    *,
    dim: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rope: Rope,
    softcap: float | None,
    temperature: LogTemperature | None,
) -> Mixer:
    """Return attention with or without a temperature; the latter has fused kernels."""
    if temperature is None:
        return Attention(
            dim=dim, heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=rope, softcap=softcap
        )
    return TemperedAttention(
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope,
        softcap=softcap,
        temperature=temperature,
    )
