"""Where the values of a parameter come from: expressions over the tensors of a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lmcast.graphs.mxfp4 import BLOCK_BYTES, unpack
from lmcast.plugins.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]


class WeightError(InputError):
    """Tensors that do not fit the definition."""


@dataclass(frozen=True)
class View:
    """One tensor, or the part of it that `index` selects (slices of its leading axes); `turned`:
    with the last two axes exchanged."""

    tensor: str
    index: tuple[slice, ...] = ()
    turned: bool = False

    @property
    def whole(self) -> bool:
        return not self.index and not self.turned


@dataclass(frozen=True)
class Mxfp4:
    """Numbers of 4 bits in blocks of 32 that share a scale (gpt-oss): bytes ...,G,16 and scales
    ...,G give values ...,32 G. `index` selects from both, by their leading axes."""

    blocks: str
    scales: str
    index: tuple[slice, ...] = ()


@dataclass(frozen=True)
class Stack:
    """Parts of one shape along a new first axis."""

    parts: "tuple[Source, ...]"


@dataclass(frozen=True)
class Joined:
    """Parts of one shape, one behind the other along an axis they have."""

    parts: "tuple[Source, ...]"
    axis: int


Source = View | Mxfp4 | Stack | Joined


def tensors_of(source: Source) -> list[str]:
    """Return the names of the tensors that a source reads, in the order of its values."""
    if isinstance(source, View):
        return [source.tensor]
    if isinstance(source, Mxfp4):
        return [source.blocks, source.scales]
    return [tensor for part in source.parts for tensor in tensors_of(part)]


def shape_of(source: Source, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape that a source gives; raises WeightError where its tensors do not fit."""
    if isinstance(source, View):
        shape = _selected(source.tensor, source.index, shapes)
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


def _selected(tensor: str, index: tuple[slice, ...], shapes: Shapes) -> tuple[int, ...]:
    shape = list(shapes[tensor])
    if len(index) > len(shape):
        raise WeightError(f"tensor {tensor} has shape {shape}: {len(index)} axes are needed")
    for axis, part in enumerate(index):
        shape[axis] = len(range(*part.indices(shape[axis])))
    return tuple(shape)


def load_into(out: Tensor, source: Source, read: Callable[[str], Tensor]) -> None:
    """Write the values of a source into `out`, converted to its dtype.

    Besides `out`, one stored tensor is in memory at a time (of Mxfp4 the two that belong together).
    """
    if isinstance(source, View):
        value = read(source.tensor)[source.index]
        out.copy_(value.mT if source.turned else value)
    elif isinstance(source, Mxfp4):
        blocks, scales = read(source.blocks)[source.index], read(source.scales)[source.index]
        for row, block, scale in zip(out, blocks, scales, strict=True):  # whole, it is 8x the bytes
            row.copy_(unpack(block, scale))
    elif isinstance(source, Stack):
        for row, part in zip(out, source.parts, strict=True):
            load_into(row, part, read)
    else:
        for rows, part in zip(out.chunk(len(source.parts), source.axis), source.parts, strict=True):
            load_into(rows, part, read)
