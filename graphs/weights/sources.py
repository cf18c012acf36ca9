"""Sources of parameters: expressions over the tensors of a checkpoint."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcast.graphs.weights.quantized import Layout, Shapes, WeightError

RUN_VALUES = 1 << 20  # numbers, 4 MiB in fp32: what is dequantized at a time


@dataclass(frozen=True)
class View:
    """One tensor, or a part of it.

    index: slices of its leading axes.
    transposed: with the last two axes exchanged.
    runs: with the first axis divided, before anything is selected, into this many equal runs, which
        become the first of two axes.
    """

    tensor: str
    index: tuple[slice, ...] = ()
    transposed: bool = False
    runs: int | None = None

    @property
    def whole(self) -> bool:
        return not self.index and not self.transposed and self.runs is None


@dataclass(frozen=True)
class Packed:
    """A view of a quantized weight, with its layout.

    The view's tensor is the weight's name, which need not be the name of a stored tensor.
    """

    values: View
    layout: Layout


@dataclass(frozen=True)
class Stack:
    """Parts of one shape along a new first axis."""

    parts: "tuple[Source, ...]"


@dataclass(frozen=True)
class Joined:
    """Parts of one shape, concatenated along an axis."""

    parts: "tuple[Source, ...]"
    axis: int


Leaf = View | Packed
Source = Leaf | Stack | Joined


def leaves(source: Source) -> Iterator[Leaf]:
    """Yield the views and quantized weights of a source, in the order of its values."""
    if isinstance(source, Stack | Joined):
        for part in source.parts:
            yield from leaves(part)
    else:
        yield source


def tensors_of(source: Source) -> list[str]:
    """Return the names of the tensors that a source reads, in the order of its values."""
    if isinstance(source, View):
        return [source.tensor]
    if isinstance(source, Packed):
        return list(source.layout.tensors)
    return [tensor for part in source.parts for tensor in tensors_of(part)]


def shape_of(source: Source, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of a source; raises WeightError where its tensors do not fit together."""
    if isinstance(source, View):
        shape = _selected(source.tensor, source.index, shapes, source.runs)
        if source.transposed:
            if len(shape) < 2:
                raise WeightError(f"tensor {source.tensor} has shape {list(shape)}: too few axes")
            return (*shape[:-2], shape[-1], shape[-2])
        return shape
    if isinstance(source, Packed):
        return shape_of(source.values, {source.values.tensor: source.layout.shape(shapes)})
    parts = [shape_of(part, shapes) for part in source.parts]
    for part, found in zip(source.parts, parts, strict=True):
        if found != parts[0]:
            raise WeightError(
                f"tensor {tensors_of(part)[0]} has shape {list(found)}, but the others like it,"
                f" {tensors_of(source)[0]} among them, have {list(parts[0])}"
            )
    if isinstance(source, Stack):
        return (len(parts), *parts[0])
    along = parts[0][source.axis] * len(parts)
    return (*parts[0][: source.axis], along, *parts[0][source.axis + 1 :])


def _selected(
    tensor: str, index: tuple[slice, ...], shapes: Shapes, runs: int | None = None
) -> tuple[int, ...]:
    shape = list(shapes[tensor])
    if runs is not None:
        shape = list(in_runs(tensor, shapes[tensor], runs))
    if len(index) > len(shape):
        raise WeightError(f"tensor {tensor} has shape {shape}: {len(index)} axes are needed")
    for axis, part in enumerate(index):
        shape[axis] = len(range(*part.indices(shape[axis])))
    return tuple(shape)


def in_runs(tensor: str, shape: tuple[int, ...], runs: int) -> tuple[int, ...]:
    """Return a shape with its first axis divided into `runs`; raises WeightError if it cannot."""
    if not shape or shape[0] % runs:
        raise WeightError(
            f"tensor {tensor} has shape {list(shape)}; accepted: a first axis of {runs} equal runs"
        )
    return (runs, shape[0] // runs, *shape[1:])


def pieces(
    view: View, shape: tuple[int, ...], step: int
) -> Iterator[tuple[int, int, Callable[[Tensor], Tensor]]]:
    """Divide a stored tensor of this shape: yield (begin, end) of its axis 0, and the function that
    takes a part of the view from those rows, `step` entries of its first axis at a time, not
    transposed."""
    whole = shape if view.runs is None else in_runs(view.tensor, shape, view.runs)
    each = shape[0] // whole[0]  # stored rows of an entry of the first axis
    first, *inner = view.index or (slice(None),)
    chosen = range(*first.indices(whole[0]))
    index = (slice(None, None, chosen.step), *inner)

    def take(rows: Tensor) -> Tensor:
        return rows.reshape(-1, *whole[1:])[index]

    for begin in range(0, len(chosen), step):
        taken = chosen[begin : begin + step]
        yield taken[0] * each, (taken[-1] + 1) * each, take


def load_into(out: Tensor, source: Source, read: Callable[[str], Tensor]) -> None:
    """Write the values of a source into `out`, converted to its dtype.

    Beside `out`, memory holds one stored tensor at a time; of a quantized weight, its tensors and a
    few dequantized rows.
    """
    if isinstance(source, View):
        value = plain(source.tensor, read)
        if source.runs is not None:
            value = value.unflatten(0, (source.runs, -1))
        value = value[source.index]
        out.copy_(value.mT if source.transposed else value)
    elif isinstance(source, Packed):
        _load_packed(out, source, read)
    elif isinstance(source, Stack):
        for row, part in zip(out, source.parts, strict=True):
            load_into(row, part, read)
    else:
        for rows, part in zip(out.chunk(len(source.parts), source.axis), source.parts, strict=True):
            load_into(rows, part, read)


def _load_packed(out: Tensor, source: Packed, read: Callable[[str], Tensor]) -> None:
    whole = {name: read(name) for name in source.layout.tensors}

    def rows(name: str, begin: int, end: int | None) -> Tensor:
        return whole[name][begin:end] if whole[name].dim() else whole[name]

    shape = source.layout.shape({name: tuple(value.shape) for name, value in whole.items()})
    rest = out.mT if source.values.transposed else out
    for begin, end, take in pieces(source.values, shape, _entries_at_once(source.values, shape)):
        block = take(source.layout.values(rows, begin, end))
        rest[: len(block)] = block
        rest = rest[len(block) :]


def _entries_at_once(view: View, shape: tuple[int, ...]) -> int:
    """Return how many entries of a view's first axis are dequantized at a time."""
    entries = shape[0] if view.runs is None else view.runs
    return max(1, RUN_VALUES // (math.prod(shape) // entries))


def alike(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors hold the same numbers, also in different dtypes."""
    # torch compares 8 bits with nothing else.
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.double(), b.double())


def plain(tensor: str, read: Callable[[str], Tensor]) -> Tensor:
    """Return a stored tensor; raises WeightError for a dtype that means nothing without a scale."""
    value = read(tensor)
    if value.dtype.itemsize == 1 or not value.is_floating_point():
        raise WeightError(f"tensor {tensor} is {value.dtype}, without a scale that is read")
    return value
