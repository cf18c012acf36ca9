"""Multi-head latent attention (MLA, arXiv 2405.04434), and the indexer that makes it sparse (DSA,
DeepSeek-V3.2, arXiv 2512.02556).

Letters: B batch, T tokens in this call, H query heads, N width of their part without positions, R
of that with positions, L rank of latents, V value width, I heads of the indexer, D their width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.norm import RMSNorm, widen
from lmcast.graphs.blocks.rope import Rope, Rotation, Temperature, rotate_interleaved
from lmcast.graphs.blocks.step import Handoff, Mixer, State, Step
from lmcast.graphs.weights.bind import Wide
from lmcast.plugins.latent.mla_attention import mla_attention
from lmcast.plugins.latent.sparse_attention import sparse_attention
from lmcast.plugins.latent.sparse_index import sparse_index

EPS = 1e-6  # of the norms of latents and of the indexer's keys, whatever rms_norm_eps is


def choice() -> Handoff:
    """Return the handoff of positions that an indexer chose, for later layers without one."""
    return Handoff(State("chosen", ("B", "T", "K"), torch.int64))


class Indexer(Wide):
    """Chooses the `top_k` positions that each token attends to.

    Scores are `sum_i w_i(x) * relu(q_i . k) / sqrt(I D)`, q of the latent of queries, k of x, which
    all heads share. The first dims of both rotate.
    """

    wide = ("weight",)

    def __init__(
        self,
        *,
        dim: int,
        query_rank: int,
        heads: int,
        width: int,
        top_k: int,
        rotation: Rotation,
    ):
        super().__init__()
        self.q = nn.Linear(query_rank, heads * width, bias=False)
        self.k = nn.Linear(dim, width, bias=False)
        self.k_norm = nn.LayerNorm(width, eps=EPS)
        self.weight = nn.Parameter(torch.empty(heads, dim))
        self.heads, self.width, self.top_k, self.rotation = heads, width, top_k, rotation

    def forward(
        self, x: Tensor, latent: Tensor, turn: tuple[Tensor, ...], step: Step, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x B,T,dim; latent of queries B,T,rank; turn: cos and sin of the positions; past B,C,D ->
        positions B,T,K and keys B,C,D."""
        cos, sin = turn
        q = self.rotation(self.q(latent), cos, sin, self.heads)
        k = self.rotation(self.k_norm(self.k(x)), cos, sin, 1)
        weights = F.linear(widen(x), widen(self.weight)) * (self.heads * self.width) ** -0.5
        return sparse_index(
            q.unflatten(-1, (self.heads, self.width)), weights, k, past,
            step.cache_lengths, step.token_counts, self.top_k,
        )  # fmt: skip


class HeadWidths(NamedTuple):
    """Widths of one head: of queries and keys without positions, with them, and of values."""

    plain: int
    rotated: int
    value: int


class LatentAttention(Mixer):
    """Causal multi-head latent attention (MLA); the cache has latents instead of keys and values.

    query_rank None: queries are projected from x itself. rope None: nothing is rotated, R is plain
    width. temperature multiplies queries.

    indexer: chooses the positions that a token attends to, and leaves them in `chosen` for later
    layers. chosen without an indexer: attend where an earlier layer does. Neither: attend to all.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        query_rank: int | None,
        rank: int,
        widths: HeadWidths,
        rope: Rope | None,
        bias: bool = False,
        scale: float | None = None,
        temperature: Temperature | None = None,
        rotation: Rotation = rotate_interleaved,
        indexer: Indexer | None = None,
        chosen: Handoff | None = None,
    ):
        super().__init__()
        plain, rotated, value = widths
        if indexer is not None and rotated > indexer.width:
            raise ValueError(
                f"index_head_dim is {indexer.width}; accepted: from qk_rope_head_dim, {rotated}"
            )
        whole = plain + rotated
        self.heads, self.widths, self.rank = heads, (plain, rotated), rank
        self.scale = whole**-0.5 if scale is None else scale
        self.q_a = None if query_rank is None else nn.Linear(dim, query_rank, bias=bias)
        self.q_norm = nn.Identity() if query_rank is None else RMSNorm(query_rank, EPS)
        self.q = nn.Linear(query_rank or dim, heads * whole, bias=False)
        self.kv_a = nn.Linear(dim, rank + rotated, bias=bias)
        self.kv_norm = RMSNorm(rank, EPS)
        self.key_up = nn.Parameter(torch.empty(heads, plain, rank))
        self.value_up = nn.Parameter(torch.empty(heads, value, rank))
        self.o = nn.Linear(heads * value, dim, bias=bias)
        self.rope, self.temperature, self.rotation = rope, temperature, rotation
        self.indexer, self.chosen = indexer, chosen
        latent = State("latent", ("B", "C", rank + rotated))
        index = [] if indexer is None else [State("index_key", ("B", "C", indexer.width))]
        self.states = (latent, *index)

    def forward(
        self, x: Tensor, step: Step, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        low = x if self.q_a is None else self.q_norm(self.q_a(x))  # B,T,rank
        q = self.q(low).unflatten(-1, (self.heads, -1))
        query, rotated = q.split(self.widths, -1)  # B,T,H,N and B,T,H,R
        latent, shared = self.kv_a(x).split((self.rank, self.widths[1]), -1)  # B,T,L and B,T,R
        turn: tuple[Tensor, ...] = ()
        if self.rope is not None:
            cos, sin = turn = step.table(self.rope)
            rotated = self.rotation(rotated.flatten(-2), cos, sin, self.heads)
            rotated = rotated.unflatten(-1, (self.heads, -1))
            shared = self.rotation(shared, cos, sin, 1)
        if self.temperature is not None:
            factor = step.table(self.temperature)[0][..., None].to(q.dtype)  # B,T,1,1
            query, rotated = query * factor, rotated * factor
        row = torch.cat([self.kv_norm(latent), shared], -1)  # B,T,L+R
        given = (query, rotated, row, past[0], step.cache_lengths, step.token_counts)
        ups = (self.key_up, self.value_up, self.scale)
        chosen, *index = self.choose(x, low, turn, step, past)
        if chosen is None:
            y, present = mla_attention(*given, *ups)
        else:
            y, present = sparse_attention(*given, chosen, *ups)
        return self.o(y.flatten(-2)), (present, *index)

    def choose(
        self,
        x: Tensor,
        low: Tensor,
        turn: tuple[Tensor, ...],
        step: Step,
        past: tuple[Tensor, ...],
    ) -> tuple[Tensor | None, *tuple[Tensor, ...]]:
        """Return the positions to attend to, None for all, and the state of the indexer."""
        if self.indexer is None:
            return (None if self.chosen is None else step.take(self.chosen)[0],)
        chosen, keys = self.indexer(x, low, turn, step, past[1])
        if self.chosen is not None:
            step.hand(self.chosen, (chosen,))
        return chosen, keys
