"""Grouped-query attention.

Letters: B batch, T tokens in this call, H query heads, G key heads, K head width, V value width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.keeps import All, Chunks, Keeps, Lend, Scores
from lmcast.graphs.blocks.kv_cache_format import Cache, Fp8Cache
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import LogTemperature, Rope, Rotation, Temperature, rotate
from lmcast.graphs.blocks.step import Handoff, Mixer, Step


class Positions(nn.Module):
    """How positions enter queries and keys.

    rope: the rotation, None for none (NoPE). norm: of both, after the rotation. temperature:
    multiplies queries after that.
    """

    def __init__(
        self,
        rope: Rope | None,
        rotation: Rotation = rotate,
        norm: nn.Module | None = None,
        temperature: Temperature | None = None,
    ):
        super().__init__()
        self.rope, self.rotation = rope, rotation
        self.norm, self.temperature = norm or nn.Identity(), temperature

    def turn(
        self, q: Tensor, k: Tensor, heads: tuple[int, int], step: Step
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys B,T,heads*K after the rotation; heads: of queries, of keys."""
        if self.rope is not None:
            cos, sin = step.table(self.rope)
            q, k = (self.rotation(x, cos, sin, n) for x, n in zip((q, k), heads, strict=True))
        q, k = self.norm(q), self.norm(k)
        if self.temperature is not None:
            q = q * step.table(self.temperature)[0].to(q.dtype)
        return q, k


class Attention(Mixer):
    """Causal grouped-query attention: H query heads, G key and value heads.

    rope: the rotation of queries and keys, None for none (NoPE).
    keeps: what is cached, and which of it a token attends to: All, Ring, Chunks, Lend.
    q_norm, k_norm: of B,T,heads*K, before the rotation.
    v_norm: of B,T,G*V.
    gate: x -> B,T,H*V, whose sigmoid multiplies the output of the heads; "query": its rows are in
        the query projection, after the query of each head.
    scale: of the scores; None: 1/sqrt(K).
    softcap: of the scores, None for none.
    sinks: whether each head has a learned score that takes a share of the softmax and gives
        nothing.
    temperature: multiplies the capped scores.
    """

    cache: Cache | Fp8Cache

    def __init__(
        self,
        projections: Projections,
        *,
        rope: Rope | Positions | None,
        keeps: Keeps | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        v_norm: nn.Module | None = None,
        gate: nn.Module | Literal["query"] | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        temperature: LogTemperature | None = None,
    ):
        super().__init__()
        p = self.projections = projections
        self.scale = p.head_dim**-0.5 if scale is None else scale
        self.softcap = softcap or 0.0
        self.q = p.query(p.value_width if gate == "query" else 0)
        self.k, self.v, self.o = p.key(), p.value(), p.output()
        self.sink = nn.Parameter(torch.empty(p.heads)) if sinks else None
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()
        self.v_norm, self.gate = v_norm or nn.Identity(), gate
        self.positions = rope if isinstance(rope, Positions) else Positions(rope)
        self.temperature = temperature
        self.keeps, self.cache = keeps or All(), Cache()
        self.states = self.keeps.states(p)
        self.visible: Handoff | None = None  # what says how far tokens see, where that may be ahead

    def see(self, ends: Handoff) -> None:
        if isinstance(self.keeps, Lend | Chunks):
            raise ValueError("layers with chunks, and those that lend keys, see no token ahead")
        self.visible = ends

    def hold(self, cache: Cache | Fp8Cache) -> None:
        """Cache keys and values in `cache` from now on; raises ValueError where they are lent."""
        self.states = self.keeps.states(self.projections, cache.dtype)
        self.cache = cache

    def limit(self, context: int) -> None:
        self.keeps = self.keeps.within(context)
        self.hold(self.cache)

    def forward(
        self, x: Tensor, step: Step, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        p = self.projections
        q, gate = self.queries(x)
        q, k, v = self.q_norm(q), self.k_norm(self.k(x)), self.v_norm(self.v(x))
        q, k = self.positions.turn(q, k, (p.heads, p.kv_heads), step)
        q = q.unflatten(-1, (p.heads, p.head_dim))  # B,T,H,K
        k = k.unflatten(-1, (p.kv_heads, p.head_dim))  # B,T,G,K
        v = v.unflatten(-1, (p.kv_heads, p.value_width))  # B,T,G,V
        factor = None if self.temperature is None else step.table(self.temperature)[0]  # B,T
        key_scale, value_scale = self.cache(k, v)
        ends = None if self.visible is None else step.find(self.visible)  # B,T
        more = factor, ends, self.scale, self.softcap
        scores = Scores(self.sink, key_scale, value_scale, *more)
        y, present = self.keeps.attend(q, k, v, past, step, scores)
        y = y.flatten(-2)  # B,T,H*V
        if gate is not None:
            y = y * torch.sigmoid(gate)
        return self.o(y), present

    def queries(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the queries B,T,H*K, and the gate of the output before the sigmoid, B,T,H*V or
        None."""
        q = self.q(x)
        if self.gate is None:
            return q, None
        if isinstance(self.gate, nn.Module):
            return q, self.gate(x)
        p = self.projections
        q, gate = q.unflatten(-1, (p.heads, -1)).split((p.head_dim, p.value_width), -1)
        return q.flatten(-2), gate.flatten(-2)
