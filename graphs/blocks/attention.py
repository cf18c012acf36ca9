"""Grouped-query attention.

Letters: B batch, T tokens in this call, H query heads, G key heads, K head width, V value width.
"""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.kv_cache_format import Cache, Fp8Cache
from lmcast.graphs.blocks.lending import lend
from lmcast.graphs.blocks.rope import Rope, Rotation, Temperature, rotate
from lmcast.graphs.blocks.step import Handoff, Mixer, State, Step
from lmcast.plugins.attention.cached_attention import cached_attention
from lmcast.plugins.attention.window_attention import window_attention


class Attention(Mixer):
    """Causal attention of H query heads to G shared key and value heads.

    window: how many positions a token sees, itself included; chunk: it sees those of its own chunk
    of so many up to itself; neither: all. q_norm and k_norm act on B,T,heads*K before the rotation,
    rotated_norm on both after it, v_norm on B,T,G*V; rope None: no positions at all (NoPE). sinks:
    a learned score of each query head that takes its share of the attention and gives nothing.
    value_scale multiplies values before they are cached. gate makes B,T,H*V of the input, and its
    sigmoid multiplies what the heads give; "query": the matrix of queries makes it, of every head
    behind its query. loan: what later layers may read of keys and values.
    """

    cache: Cache | Fp8Cache

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: Rope | None,
        value_dim: int | None = None,
        window: int | None = None,
        chunk: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        sinks: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        v_norm: nn.Module | None = None,
        rotated_norm: nn.Module | None = None,
        gate: nn.Module | Literal["query"] | None = None,
        loan: Handoff | None = None,
        scale: float | None = None,
        value_scale: float = 1.0,
        softcap: float | None = None,
        temperature: Temperature | None = None,
        rotation: Rotation = rotate,
    ):
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads are not a multiple of {kv_heads} key heads")
        if window and chunk:
            raise ValueError(f"window is {window} and chunk is {chunk}; a layer has one of them")
        if loan is not None and (chunk or sinks):
            raise ValueError("a layer with chunks or sinks lends nothing")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.value_dim, self.value_scale = value_dim or head_dim, value_scale
        self.window, self.chunk, self.softcap = window, chunk, softcap or 0.0
        self.scale = head_dim**-0.5 if scale is None else scale
        gate_rows = self.value_dim if gate == "query" else 0
        self.q = nn.Linear(dim, heads * (head_dim + gate_rows), bias=qkv_bias)
        self.k = nn.Linear(dim, kv_heads * head_dim, bias=qkv_bias)
        self.v = nn.Linear(dim, kv_heads * self.value_dim, bias=qkv_bias)
        self.o = nn.Linear(heads * self.value_dim, dim, bias=out_bias)
        self.sink = nn.Parameter(torch.empty(heads)) if sinks else None
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()
        self.v_norm, self.rotated_norm = v_norm or nn.Identity(), rotated_norm or nn.Identity()
        self.gate, self.loan, self.cache = gate, loan, Cache()
        self.rope, self.temperature, self.rotation = rope, temperature, rotation
        ring = window or chunk  # or else room for all tokens
        key, value = (("B", kv_heads, ring or "C", n) for n in (head_dim, self.value_dim))
        self.states = (State("key", key, window=ring), State("value", value, window=ring))

    def hold(self, cache: Cache | Fp8Cache) -> None:
        """Hold keys and values in `cache` from now on; raises ValueError where they are lent."""
        if self.loan is not None and cache.dtype is not None:
            raise ValueError("a layer that lends keys and values holds them as they are computed")
        self.cache = cache
        self.states = tuple(dataclasses.replace(s, dtype=cache.dtype) for s in self.states)

    def forward(self, x: Tensor, step: Step, past: tuple[Tensor, ...]):
        q, gate = self.queries(x)
        q, k, v = self.q_norm(q), self.k_norm(self.k(x)), self.v_norm(self.v(x))
        if self.rope is not None:
            cos, sin = step.table(self.rope)
            q = self.rotation(q, cos, sin, self.heads)
            k = self.rotation(k, cos, sin, self.kv_heads)
        q, k = self.rotated_norm(q), self.rotated_norm(k)
        if self.temperature is not None:
            q = q * step.table(self.temperature)[0].to(q.dtype)
        if self.value_scale != 1:
            v = v * self.value_scale
        q = q.unflatten(-1, (self.heads, self.head_dim))  # B,T,H,K
        k = k.unflatten(-1, (self.kv_heads, self.head_dim))  # B,T,G,K
        v = v.unflatten(-1, (self.kv_heads, self.value_dim))  # B,T,G,V
        given = (
            q, k, v, *past, step.cache_lengths, step.token_counts, self.sink, *self.cache(k, v),
            None, self.scale, self.softcap,
        )  # fmt: skip
        if self.loan is not None:
            y, present = lend(self.loan, step, q, k, v, past, self.window, self.scale, self.softcap)
        elif self.window or self.chunk:
            y, *present = window_attention(*given, bool(self.chunk))
        else:
            y, *present = cached_attention(*given)
        y = y.flatten(-2)  # B,T,H*V
        if gate is not None:
            y = y * torch.sigmoid(gate)
        return self.o(y), tuple(present)

    def queries(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the queries B,T,H*K, and what gates the output, B,T,H*V or None."""
        q = self.q(x)
        if self.gate is None:
            return q, None
        if isinstance(self.gate, nn.Module):
            return q, self.gate(x)
        q, gate = q.unflatten(-1, (self.heads, -1)).split((self.head_dim, self.value_dim), -1)
        return q.flatten(-2), gate.flatten(-2)
