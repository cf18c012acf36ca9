"""Grouped-query attention.

Letters: B batch, T tokens in this call, H query heads, G key heads, K head width.
"""

from torch import Tensor, nn

from lmcast.graphs.blocks.rope import Rope, Rotation, Temperature, rotate
from lmcast.graphs.blocks.step import Mixer, State, Step
from lmcast.plugins.cached_attention import cached_attention
from lmcast.plugins.window_attention import window_attention


class Attention(Mixer):
    """Causal attention of H query heads to G shared key and value heads.

    window: how many positions a token sees, itself included; None: all. q_norm and k_norm act on
    B,T,heads*K before the rotation; rope None: no positions at all (NoPE).
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: Rope | None,
        window: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        temperature: Temperature | None = None,
        rotation: Rotation = rotate,
    ):
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads are not a multiple of {kv_heads} key heads")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.window, self.softcap = window, softcap or 0.0
        self.scale = head_dim**-0.5 if scale is None else scale
        self.q = nn.Linear(dim, heads * head_dim, bias=qkv_bias)
        self.k = nn.Linear(dim, kv_heads * head_dim, bias=qkv_bias)
        self.v = nn.Linear(dim, kv_heads * head_dim, bias=qkv_bias)
        self.o = nn.Linear(heads * head_dim, dim, bias=out_bias)
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()
        self.rope, self.temperature, self.rotation = rope, temperature, rotation
        shape = ("B", kv_heads, window or "C", head_dim)  # a ring of the window, or all tokens
        self.states = (State("key", shape), State("value", shape))

    def forward(self, x: Tensor, step: Step, past: tuple[Tensor, ...]):
        q, k, v = self.q_norm(self.q(x)), self.k_norm(self.k(x)), self.v(x)
        if self.rope is not None:
            cos, sin = step.table(self.rope)
            q = self.rotation(q, cos, sin, self.heads)
            k = self.rotation(k, cos, sin, self.kv_heads)
        if self.temperature is not None:
            q = q * step.table(self.temperature)[0].to(q.dtype)
        q = q.unflatten(-1, (self.heads, self.head_dim))  # B,T,H,K
        k = k.unflatten(-1, (self.kv_heads, self.head_dim))  # B,T,G,K
        v = v.unflatten(-1, (self.kv_heads, self.head_dim))
        attend = window_attention if self.window else cached_attention
        y, *present = attend(
            q, k, v, *past, step.cache_lengths, step.token_counts, self.scale, self.softcap
        )
        return self.o(y.flatten(-2)), tuple(present)
