"""Gates and ups of experts as one stack, for a kernel that multiplies with both at once.

Letters: E experts, I inner width, K columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.weights.gpu_forms import gpu_weight
from lmcast.exporter.weights.quantized import PackedWeight
from lmcast.graphs.weights.sources import (
    Joined,
    Packed,
    Source,
    Stack,
    View,
    leaves,
    shape_of,
)

ALL = slice(None)
TURNS = slice(0, None, 2), slice(1, None, 2)  # rows of gates and ups that alternate
ENDS = {"gate": "up", "gate_bias": "up_bias"}


@dataclass(frozen=True)
class Together:
    """Two parameters that are stored as one: E,2I,K, or E,2I of biases.

    parts: each with what it is of the whole. stored: how the whole is, where it is quantized.
    """

    name: str
    parts: Mapping[str, tuple[slice, ...]]
    source: Source
    shape: tuple[int, ...]
    stored: PackedWeight | None


def together(
    sources: Mapping[str, Source], checkpoint: Checkpoint, dtype: torch.dtype
) -> list[Together]:
    """Return the quantized gates and ups of experts, of one scheme, and their biases."""
    found = []
    for name, gate in sources.items():
        before, _, end = name.rpartition(".")
        other = f"{before}.{ENDS.get(end, '')}"
        if other not in sources or not _quantized(sources, before):
            continue
        matrices = (sources[f"{before}.gate"], sources[f"{before}.up"])
        both, interleaved = _whole(checkpoint, *matrices)
        if both is None:
            continue
        if end == "gate_bias":
            both = _biases(gate, sources[other], interleaved)
        experts, inner, *rest = _shape(checkpoint, gate)
        shape = (experts, 2 * inner, *rest)
        packed = tuple(leaf for leaf in leaves(both) if isinstance(leaf, Packed))
        stored = None
        if packed:
            scheme = packed[0].layout.scheme
            assert scheme is not None
            stored = gpu_weight(checkpoint, packed, scheme, shape, dtype, one_each=False, parts=2)
        rows = (slice(0, inner), slice(inner, None))
        first, second = TURNS if interleaved else rows
        parts = {name: (ALL, first), other: (ALL, second)}
        found.append(Together(f"{name}+{ENDS[end]}", parts, both, shape, stored))
    return found


def _quantized(sources: Mapping[str, Source], experts: str) -> bool:
    """Whether the gates and ups of a layer's experts are of one scheme, which is known."""
    both = [sources.get(f"{experts}.{end}") for end in ("gate", "up")]
    found = [leaf for source in both if source is not None for leaf in leaves(source)]
    schemes = {leaf.layout.scheme if isinstance(leaf, Packed) else None for leaf in found}
    return None not in both and len(schemes) == 1 and None not in schemes


def _whole(checkpoint: Checkpoint, gate: Source, up: Source) -> tuple[Source | None, bool]:
    """Return what both are together, None where that cannot be told; and whether their rows
    alternate."""
    if isinstance(gate, Stack) and isinstance(up, Stack):
        pairs = zip(gate.parts, up.parts, strict=True)
        return Stack(tuple(Joined(pair, 0) for pair in pairs)), False
    if not isinstance(gate, Packed) or not isinstance(up, Packed):
        return None, False
    first, second = gate.values, up.values
    if first.transposed or second.transposed or first.runs or second.runs:
        return None, False
    if _alternate(first, second):
        return replace(gate, values=replace(first, index=())), True
    experts = range(_shape(checkpoint, gate)[0])
    each = (_one(part, e) for e in experts for part in (gate, up))
    return Joined(tuple(each), 0), False


def _biases(gate: Source, up: Source, interleaved: bool) -> Source:
    """Return the biases of matrices whose rows alternate, or do not."""
    if interleaved and isinstance(gate, View) and isinstance(up, View) and _alternate(gate, up):
        return replace(gate, index=())
    return Joined((gate, up), 1)


def _alternate(first: View, second: View) -> bool:
    alike = replace(first, index=()) == replace(second, index=())
    return alike and (first.index[1:], second.index[1:]) == tuple((rows,) for rows in TURNS)


def _one(stack: Packed, expert: int) -> Packed:
    """Return one entry of a stack, which keeps its axis."""
    first, *rest = stack.values.index or (ALL,)
    assert first == ALL
    index = (slice(expert, expert + 1), *rest)
    return replace(stack, values=replace(stack.values, index=index))


def _shape(checkpoint: Checkpoint, source: Source) -> tuple[int, ...]:
    return shape_of(source, {name: t.shape for name, t in checkpoint.tensors.items()})
