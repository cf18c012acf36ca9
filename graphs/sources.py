"""Where the values of a parameter come from: expressions over the tensors of a checkpoint."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmcast.graphs.fp8 import NUMBERS, RUN_VALUES, SCALE, SCALES, Block, dequantize, scale_shapes
from lmcast.graphs.mxfp4 import BLOCK_BYTES, unpack
from lmcast.graphs.quantized import Layout, ReadRows, Shapes, WeightError


@dataclass(frozen=True)
class View:
    """One tensor, or the part of it that `index` selects (slices of its leading axes); `turned`:
    with the last two axes exchanged; `runs`: with the first axis divided into so many equal runs,
    which are then the first of two axes, before anything is selected."""

    tensor: str
    index: tuple[slice, ...] = ()
    turned: bool = False
    runs: int | None = None

    @property
    def whole(self) -> bool:
        return not self.index and not self.turned and self.runs is None


@dataclass(frozen=True)
class Mxfp4:
    """Numbers of 4 bits in blocks of 32 that share a scale (gpt-oss): bytes ...,G,16 and scales
    ...,G give values ...,32 G. `index` selects from both, by their leading axes."""

    blocks: str
    scales: str
    index: tuple[slice, ...] = ()


@dataclass(frozen=True)
class Scaled:
    """FP8: what `values` takes of a tensor, once all of it is multiplied with its scales; `block`:
    how many rows and columns share one (None: all of them)."""

    values: View
    scales: str
    block: Block | None


@dataclass(frozen=True)
class Packed:
    """What `values` takes of a quantized weight, whose layout says how it is stored; the view's
    tensor is the weight's name, which need not be the name of anything stored."""

    values: View
    layout: Layout


@dataclass(frozen=True)
class Stack:
    """Parts of one shape along a new first axis."""

    parts: "tuple[Source, ...]"


@dataclass(frozen=True)
class Joined:
    """Parts of one shape, one behind the other along an axis they have."""

    parts: "tuple[Source, ...]"
    axis: int


Leaf = View | Mxfp4 | Scaled | Packed
Source = Leaf | Stack | Joined


def leaves(source: Source) -> Iterator[Leaf]:
    """Yield what a source is put together from, in the order of its values."""
    if isinstance(source, Stack | Joined):
        for part in source.parts:
            yield from leaves(part)
    else:
        yield source


def tensors_of(source: Source) -> list[str]:
    """Return the names of the tensors that a source reads, in the order of its values."""
    if isinstance(source, View):
        return [source.tensor]
    if isinstance(source, Mxfp4):
        return [source.blocks, source.scales]
    if isinstance(source, Scaled):
        return [source.values.tensor, source.scales]
    if isinstance(source, Packed):
        return list(source.layout.tensors)
    return [tensor for part in source.parts for tensor in tensors_of(part)]


def scaled(source: Source, shapes: Shapes, block: Block | None) -> Source:
    """Return a source in which every tensor that has scales beside it is multiplied with them."""
    if isinstance(source, View):
        scales = f"{source.tensor}{SCALE}"
        return Scaled(source, scales, block) if scales in shapes else source
    if isinstance(source, Stack | Joined):
        return replace(source, parts=tuple(scaled(part, shapes, block) for part in source.parts))
    return source


def shape_of(source: Source, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape that a source gives; raises WeightError where its tensors do not fit."""
    if isinstance(source, View):
        shape = _selected(source.tensor, source.index, shapes, source.runs)
        if source.turned:
            if len(shape) < 2:
                raise WeightError(f"tensor {source.tensor} has shape {list(shape)}: too few axes")
            return (*shape[:-2], shape[-1], shape[-2])
        return shape
    if isinstance(source, Mxfp4):
        blocks = _selected(source.blocks, source.index, shapes)
        scales = _selected(source.scales, source.index, shapes)
        if blocks != (*scales, BLOCK_BYTES):
            raise WeightError(
                f"tensor {source.blocks} has shape {list(shapes[source.blocks])}, which does not"
                f" fit {source.scales} {list(shapes[source.scales])}: accepted are {BLOCK_BYTES}"
                " bytes for each scale"
            )
        return (*scales[:-1], scales[-1] * 2 * BLOCK_BYTES)
    if isinstance(source, Scaled):
        _require_scales(source, shapes)
        return shape_of(source.values, shapes)
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


def _require_scales(source: Scaled, shapes: Shapes) -> None:
    tensor = source.values.tensor
    accepted = scale_shapes(shapes[tensor], source.block)
    if shapes[source.scales] in accepted:
        return
    rule = "one number, as config.json gives no weight_block_size"
    if source.block is not None:
        rule = f"blocks of {source.block[0]} x {source.block[1]}"
    shown = " or ".join(str(list(shape)) for shape in accepted) or "a matrix or a stack of them"
    raise WeightError(
        f"tensor {source.scales} has shape {list(shapes[source.scales])}, which does not fit"
        f" {tensor} {list(shapes[tensor])} in {rule}; accepted: {shown}"
    )


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
    """Divide a tensor of this shape: yield (begin, end) of axis 0, and what takes from those rows
    the part of a view, `step` entries of its first axis at a time, none of them turned."""
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

    Besides `out`, one stored tensor is in memory at a time (of Mxfp4 and Scaled the two that belong
    together, and a few rows of what they give).
    """
    if isinstance(source, View):
        value = plain(source.tensor, read)
        if source.runs is not None:
            value = value.unflatten(0, (source.runs, -1))
        value = value[source.index]
        out.copy_(value.mT if source.turned else value)
    elif isinstance(source, Mxfp4):
        blocks, scales = read(source.blocks)[source.index], read(source.scales)[source.index]
        for row, block, scale in zip(out, blocks, scales, strict=True):  # whole, it is 8x the bytes
            row.copy_(unpack(block, scale))
    elif isinstance(source, Scaled):
        _load_scaled(out, source, read)
    elif isinstance(source, Packed):
        _load_packed(out, source, read)
    elif isinstance(source, Stack):
        for row, part in zip(out, source.parts, strict=True):
            load_into(row, part, read)
    else:
        for rows, part in zip(out.chunk(len(source.parts), source.axis), source.parts, strict=True):
            load_into(rows, part, read)


def _load_scaled(out: Tensor, source: Scaled, read: Callable[[str], Tensor]) -> None:
    tensor = source.values.tensor
    values, scales = read(tensor), read(source.scales)
    for name, dtype, accepted in (
        (tensor, values.dtype, NUMBERS),
        (source.scales, scales.dtype, SCALES),
    ):
        if dtype not in accepted:
            shown = ", ".join(sorted(map(str, accepted)))
            raise WeightError(f"tensor {name} is {dtype}; accepted in FP8: {shown}")
    shape = tuple(values.shape)
    step = _entries_at_once(source.values, shape)
    rest = out.mT if source.values.turned else out
    for begin, end, take in pieces(source.values, shape, step):
        block = take(dequantize(values[begin:end], scales, source.block, begin))
        rest[: len(block)] = block
        rest = rest[len(block) :]


def _load_packed(out: Tensor, source: Packed, read: Callable[[str], Tensor]) -> None:
    whole = {name: read(name) for name in source.layout.tensors}

    def rows(name: str, begin: int, end: int | None) -> Tensor:
        return whole[name][begin:end] if whole[name].dim() else whole[name]

    shape = source.layout.shape({name: tuple(value.shape) for name, value in whole.items()})
    rest = out.mT if source.values.turned else out
    for block in packed_values(source, shape, rows, _entries_at_once(source.values, shape)):
        rest[: len(block)] = block
        rest = rest[len(block) :]


def packed_values(
    source: Packed, shape: tuple[int, ...], read: ReadRows, step: int
) -> Iterator[Tensor]:
    """Yield what a source gives in fp32, `step` entries of axis 0 at a time, none of them turned;
    `shape` is that of the whole weight."""
    for begin, end, take in pieces(source.values, shape, step):
        yield take(source.layout.values(read, begin, end))


def _entries_at_once(view: View, shape: tuple[int, ...]) -> int:
    """Return how many entries of a view's first axis are dequantized at a time."""
    entries = shape[0] if view.runs is None else view.runs
    return max(1, RUN_VALUES // (math.prod(shape) // entries))


def alike(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors hold the same numbers, also in different dtypes."""
    # torch compares 8 bits with nothing else.
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.double(), b.double())


def plain(tensor: str, read: Callable[[str], Tensor]) -> Tensor:
    """Return a stored tensor; raises WeightError where its bytes need a scale to be numbers."""
    value = read(tensor)
    if value.dtype in NUMBERS:
        raise WeightError(f"tensor {tensor} is {value.dtype}, without {tensor}{SCALE}")
    return value
