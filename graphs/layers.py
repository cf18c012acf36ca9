"""What families with a list of layer types, and grouped heads, agree on."""

from collections.abc import Sequence
from typing import Literal

# "attention" is an older name of full_attention.
LayerType = Literal["sliding_attention", "full_attention", "attention"]


def windows(
    layer_types: Sequence[str], layers: int, sliding_window: int | None
) -> tuple[int | None, ...]:
    """Return the window of each layer, None where it sees everything.

    Raises ValueError where the list and the other two do not fit together.
    """
    if len(layer_types) != layers:
        raise ValueError(
            f"layer_types has {len(layer_types)} entries; num_hidden_layers is {layers}"
        )
    if sliding_window is None and "sliding_attention" in layer_types:
        raise ValueError(
            f"layer_types[{layer_types.index('sliding_attention')}] is 'sliding_attention',"
            " but there is no sliding_window"
        )
    return tuple(sliding_window if kind == "sliding_attention" else None for kind in layer_types)


def head_width(hidden_size: int, heads: int, kv_heads: int, head_dim: int | None) -> int:
    """Return the width of a head: `head_dim`, or an equal share of hidden_size.

    Raises ValueError where the heads do not divide evenly.
    """
    if heads % kv_heads:
        raise ValueError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if head_dim is None and hidden_size % heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads},"
            " and head_dim is not given"
        )
    return head_dim or hidden_size // heads
