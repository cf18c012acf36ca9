"""Keys of config.json with one value per layer, and grouped heads: reading and checking them."""

from collections.abc import Collection, Sequence
from typing import Literal, TypeVar

LayerType = Literal["sliding_attention", "full_attention"]
CHUNKED = "chunked_attention"
ChunkedType = Literal["chunked_attention", "full_attention"]
FFNType = Literal["dense", "sparse"]


# Kinds of layer with limited attention, and the key of its size.
SIZES = {"sliding_attention": "sliding_window", CHUNKED: "attention_chunk_size"}


def windows(
    layer_types: Sequence[str], layers: int, size: int | None, kind: str = "sliding_attention"
) -> tuple[int | None, ...]:
    """Return the window (or chunk) of each layer: `size` for those of this kind, else None.

    Raises ValueError where layer_types does not have one entry per layer, or has that kind without
    a size.
    """
    if len(layer_types) != layers:
        raise ValueError(
            f"layer_types has {len(layer_types)} entries; num_hidden_layers is {layers}"
        )
    if size is None and kind in layer_types:
        raise ValueError(
            f"layer_types[{layer_types.index(kind)}] is {kind!r}, but there is no {SIZES[kind]}"
        )
    return tuple(size if own == kind else None for own in layer_types)


def windows_from(
    first: int, layer_types: Sequence[str] | None, layers: int, size: int | None
) -> tuple[int | None, ...]:
    """Return `windows` of the list, or without one `size` for all layers from `first` on.

    Raises ValueError as `windows` does.
    """
    if layer_types is None:
        return tuple(size if i >= first else None for i in range(layers))
    return windows(layer_types, layers, size)


def full_every(number: int, layers: int) -> tuple[LayerType, ...]:
    """Return layer types: every `number`-th is full attention, all others are windowed."""
    return tuple(
        "sliding_attention" if i % number else "full_attention" for i in range(1, layers + 1)
    )


T = TypeVar("T")


def one_each(name: str, given: T | tuple[T, ...], layers: int) -> tuple[T, ...]:
    """Return the value of a config key for every layer, from one value for all or a list.

    Raises ValueError where the list does not have one entry per layer.
    """
    values = given if isinstance(given, tuple) else (given,) * layers
    if len(values) != layers:
        raise ValueError(f"{name} has {len(values)} entries; num_hidden_layers is {layers}")
    return values


def with_experts(
    mlp_layer_types: tuple[FFNType, ...] | None, layers: int, dense: int
) -> tuple[bool, ...]:
    """Return whether each layer has experts: as listed, or all but the first `dense`.

    Raises ValueError where the list does not have one entry per layer.
    """
    if mlp_layer_types is None:
        return tuple(i >= dense for i in range(layers))
    kinds: tuple[str, ...] = one_each("mlp_layer_types", mlp_layer_types, layers)
    return tuple(kind == "sparse" for kind in kinds)


def owners(kinds: Sequence[object], shared: int) -> tuple[int, ...]:
    """Return for each layer the index of the layer whose keys and values it attends to (KV
    sharing).

    The last `shared` layers use those of the last layer of their kind before them, all others their
    own. Raises ValueError unless the layers before are of every kind.
    """
    own = len(kinds) - shared
    last = {kind: i for i, kind in enumerate(kinds[: max(own, 0)])}
    if last.keys() != set(kinds):
        raise ValueError(
            f"num_kv_shared_layers is {shared} of {len(kinds)} layers; accepted: as many as leave"
            " every layer type among the layers before"
        )
    return tuple(i if i < own else last[kind] for i, kind in enumerate(kinds))


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


def check_rotated(rotary_dim: int | None, head_dim: int, share: float) -> None:
    """Raise ValueError where an older key, `rotary_dim`, and partial_rotary_factor differ."""
    width = int(head_dim * share)
    if rotary_dim not in (None, width):
        raise ValueError(
            f"rotary_dim is {rotary_dim}, but partial_rotary_factor makes it {width} of head_dim"
            f" {head_dim}; keep one of the two, at most head_dim"
        )


def further_predictors(layers: int, count: int, tensors: Collection[str]) -> tuple[str, ...]:
    """Return the modules, `count` at most, that predict further tokens (MTP).

    They are stored as layers behind the last; one of their parts tells them from real layers.
    """
    behind = (f"model.layers.{layers + n}" for n in range(min(count, len(tensors))))
    return tuple(module for module in behind if f"{module}.eh_proj.weight" in tensors)
