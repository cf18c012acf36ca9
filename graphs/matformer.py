"""Slices of a MatFormer (arXiv 2310.07707): smaller models within a larger one (Gemma 3n).

A slice has the first inner values of every feed-forward, and some of the layers.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from lmcast.graphs import Definition
from lmcast.graphs.config.layer_types import one_each, owners
from lmcast.graphs.config.reading import ConfigError, Count, Size, parse
from lmcast.graphs.weights.sources import Joined, Packed, Source, View

# Keys in the config of an architecture that can be sliced.
NEEDED = {"intermediate_size", "layer_types", "num_kv_shared_layers", "activation_sparsity_pattern"}
# Parameters that hold the parts of all layers side by side, and along which axis.
BY_LAYER = {"side.tokens.weight": 1, "side.project.weight": 0}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The description of a slice; layers are numbered as in the whole model.

    intermediate_size: of every layer that is kept, or one for all; None: unchanged. layers: those
    kept; skip: those left out; neither: all are kept.
    """

    intermediate_size: Size | tuple[Size, ...] | None = None
    layers: tuple[Count, ...] | None = None
    skip: tuple[Count, ...] | None = None


def sliced(found: Definition, given: Mapping[str, Any], shown: str = "slice") -> Definition:
    """Return the slice of a whole model that `given` describes; messages name it `shown`.

    Raises ConfigError for what does not fit the model.
    """
    at, known = f"{shown}: ", [field.name for field in fields(Asked)]
    if not given or given.keys() - set(known):
        what = ", ".join(sorted(given.keys() - set(known))) or "it says nothing"
        raise ConfigError(f"{at}{what}; accepted: {', '.join(known)}")
    if NEEDED - {field.name for field in fields(found.config)}:
        raise ConfigError(f"{at}{found.arch.name} is no MatFormer; accepted: gemma3n, gemma3n_text")
    asked = parse(Asked, given, at)
    try:
        kept = _kept(asked, found.config.num_hidden_layers)
        config = _config(found.config, asked, kept)
    except ValueError as error:
        raise ConfigError(f"{at}{error}") from None
    with torch.device("meta"):
        model = found.arch.build(config)
    sources = {name: _source(name, p, found, kept) for name, p in model.named_parameters()}
    whole = replace(found.binding, sources=sources)
    lost = {*found.binding.ignored, *found.binding.tensors()} - set(whole.tensors())
    binding = replace(whole, ignored=tuple(sorted(lost)))
    return replace(found, config=config, model=model.eval(), binding=binding)


def _kept(asked: Asked, layers: int) -> tuple[int, ...]:
    """Return the layers that are kept."""
    if asked.layers is not None and asked.skip is not None:
        raise ValueError("layers and skip are both there; keep one")
    name, listed = ("layers", asked.layers) if asked.layers is not None else ("skip", asked.skip)
    listed = listed or ()
    if listed and (sorted(set(listed)) != list(listed) or listed[-1] >= layers):
        raise ValueError(f"{name} is {list(listed)}; accepted: rising numbers below {layers}")
    kept = listed if asked.layers is not None else sorted(set(range(layers)) - set(listed))
    if not kept:
        raise ValueError("no layer is left")
    return tuple(kept)


def _config(config: Any, asked: Asked, kept: tuple[int, ...]) -> Any:
    """Return the config of the slice; raises ValueError where it does not fit the whole model."""
    layers = config.num_hidden_layers
    windowed = [kind == "sliding_attention" for kind in config.types()]
    types = tuple("sliding_attention" if w else "full_attention" for w in windowed)
    stored = one_each("intermediate_size", config.intermediate_size, layers)
    widths = tuple(stored[i] for i in kept)
    if asked.intermediate_size is not None:
        given = asked.intermediate_size
        if isinstance(given, tuple) and len(given) != len(kept):
            raise ValueError(f"intermediate_size has {len(given)} entries for {len(kept)} layers")
        widths = one_each("intermediate_size", given, len(kept))
    for i, width in zip(kept, widths, strict=True):
        if width > stored[i]:
            raise ValueError(f"intermediate_size of layer {i} is {width}; it has {stored[i]}")
    left = tuple(types[i] for i in kept)
    if left != types[: len(kept)]:
        wrong = next(i for i, a, b in zip(kept, left, types, strict=False) if a != b)
        raise ValueError(
            f"without the layers before it, layer {wrong} breaks the pattern of layer_types;"
            " accepted: slices whose types are those that the model begins with"
        )
    first = layers - config.num_kv_shared_layers
    shared = sum(i >= first for i in kept)
    before = owners(types, config.num_kv_shared_layers)
    for i in kept:
        if before[i] not in kept:
            raise ValueError(f"layer {before[i]} is left out, whose keys and values layer {i} uses")
    return replace(
        config,
        num_hidden_layers=len(kept),
        intermediate_size=widths,
        layer_types=left,
        num_kv_shared_layers=shared,
        activation_sparsity_pattern=tuple(config.sparsity()[i] for i in kept),
    )


def _source(name: str, parameter: nn.Parameter, found: Definition, kept: tuple[int, ...]) -> Source:
    """Return where a parameter of the slice lies in the tensors of the whole model."""
    before = re.sub(r"^layers\.(\d+)", lambda match: f"layers.{kept[int(match[1])]}", name)
    source, stored = found.binding.sources[before], found.model.get_parameter(before).shape
    if stored == parameter.shape:
        return source
    view = source.values if isinstance(source, Packed) else source
    assert isinstance(view, View)
    assert view.whole

    def part(index: tuple[slice, ...]) -> Source:
        taken = replace(view, index=index)
        return replace(source, values=taken) if isinstance(source, Packed) else taken

    if name not in BY_LAYER:
        return part(_leading(parameter.shape, stored))
    axis = BY_LAYER[name]
    width = parameter.shape[axis] // len(kept)
    # Runs of neighbours, in parts of one size, as Joined wants them.
    runs = [list(run) for _, run in groupby(kept, lambda i: i - kept.index(i))]
    size = math.gcd(*(len(run) for run in runs))
    starts = [run[0] + n for run in runs for n in range(0, len(run), size)]
    places = [slice(i * width, (i + size) * width) for i in starts]
    parts = tuple(part((slice(None),) * axis + (place,)) for place in places)
    return Joined(parts, axis) if len(parts) > 1 else parts[0]


def _leading(wanted: torch.Size, stored: torch.Size) -> tuple[slice, ...]:
    """Return the index of the first places along every axis."""
    index = [slice(None if n == m else n) for n, m in zip(wanted, stored, strict=True)]
    while index[-1] == slice(None):
        index.pop()
    return tuple(index)
