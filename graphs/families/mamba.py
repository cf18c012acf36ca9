"""What architectures with Mamba-2 share: config keys, time steps, a weight table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lmcast.graphs.config.inert import Inert
from lmcast.graphs.config.layer_types import head_width
from lmcast.graphs.config.reading import Layers, OrAbsent, Positive, Size
from lmcast.graphs.weights.bind import Entry


@dataclass(frozen=True, kw_only=True)
class HybridKeys:
    """Config keys under Bamba's names; a Config inherits these fields."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: OrAbsent[Size] = None
    max_position_embeddings: Size = 262144
    attention_bias: bool = False
    mamba_n_heads: Size = 128
    mamba_d_head: Size | Literal["auto"] = "auto"
    mamba_n_groups: Size = 1
    mamba_d_state: Size = 256
    mamba_d_conv: Size = 4
    mamba_expand: Size = 2
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: OrAbsent[tuple[float, ...]] = None
    rms_norm_eps: Positive = 1e-5
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        inner, heads = self.mamba_expand * self.hidden_size, self.mamba_n_heads
        width = inner // heads if self.mamba_d_head == "auto" else self.mamba_d_head
        if heads * width != inner:
            raise ValueError(
                f"mamba_n_heads is {heads} and mamba_d_head {self.mamba_d_head!r}; accepted: heads"
                f" that fill mamba_expand * hidden_size, {inner}"
            )
        if heads % self.mamba_n_groups:
            raise ValueError(
                f"mamba_n_groups is {self.mamba_n_groups}; accepted: a divisor of mamba_n_heads,"
                f" {heads}"
            )
        time_steps(self.time_step_limit)

    def head_width(self) -> int:
        """Return the width of a head of attention."""
        heads = self.num_attention_heads
        return head_width(self.hidden_size, heads, self.num_key_value_heads or heads, self.head_dim)


HYBRID_INERT: Inert = {"mamba_chunk_size": int, "use_mamba_kernels": bool}


def time_steps(limit: tuple[float, ...] | None) -> tuple[float | None, float | None]:
    """Return both bounds of time_step_limit, None for none.

    A least below 0 is none, as no step is, and a greatest from LARGEST on. Raises ValueError unless
    they are two numbers in ascending order, the least finite in fp32.
    """
    if limit is None:
        return None, None
    if len(limit) != 2 or limit[0] > min(limit[1], LARGEST):
        raise ValueError(f"time_step_limit is {list(limit)}; accepted: the least and the greatest")
    low, high = limit
    return low if low > 0 else None, high if high < LARGEST else None


LARGEST = torch.finfo(torch.float32).max  # steps are fp32, and clamped at it they are as they were


def unlimited(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Replace an upper bound in time_step_limit of a raw config that bounds nothing by LARGEST."""
    limit = raw.get("time_step_limit")
    if not isinstance(limit, list | tuple) or len(limit) != 2 or not _unbounded(limit[1]):
        return dict(raw)
    return {**raw, "time_step_limit": [limit[0], LARGEST]}


def _unbounded(high: object) -> bool:
    """Tell whether a bound is infinite, as json has it or as Hugging Face 5 writes it, or is so in
    fp32."""
    if isinstance(high, int | float):
        return high >= LARGEST
    return high == {"__float__": "Infinity"}


def mamba_weights(theirs: str) -> dict[str, Entry]:
    """Return the weight table of a Mamba mixer, by the checkpoint's module that holds it."""
    modules = {"input": "in_proj", "conv": "conv1d", "norm": "norm", "output": "out_proj"}
    plain = {name: name for name in ("A_log", "dt_bias", "D")}
    return {f"layers.{{i}}.mixer.{x}": f"{theirs}.{y}" for x, y in (modules | plain).items()}
