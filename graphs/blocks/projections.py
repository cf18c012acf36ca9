"""The projections of attention, for all blocks that attend to keys and values."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Projections:
    """The sizes of a layer's projections; each method makes a new one.

    dim: width of the model. head_dim: of a query and a key. value_dim: of a value, None for the
    same. Raises ValueError where query heads do not divide among key heads.
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} query heads are not a multiple of {self.kv_heads} key heads"
            )

    @property
    def value_width(self) -> int:
        return self.value_dim or self.head_dim

    def query(self, more: int = 0) -> nn.Linear:
        """more: further rows behind the query of each head."""
        return nn.Linear(self.dim, self.heads * (self.head_dim + more), bias=self.qkv_bias)

    def key(self) -> nn.Linear:
        return nn.Linear(self.dim, self.kv_heads * self.head_dim, bias=self.qkv_bias)

    def value(self) -> nn.Linear:
        return nn.Linear(self.dim, self.kv_heads * self.value_width, bias=self.qkv_bias)

    def output(self) -> nn.Linear:
        return nn.Linear(self.heads * self.value_width, self.dim, bias=self.out_bias)
