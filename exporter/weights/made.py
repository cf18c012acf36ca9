"""Weights that no checkpoint has: machine code, and what passes have computed or joined.

They lie in safetensors files of the engine as others do, so that the graph stays small, and in one
of their own what is machine code: it is hashed whenever an engine is loaded.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from lmcast.exporter.dtypes import OF_ONNX
from lmcast.exporter.engine.names import GRAPH, KERNELS, ROOT
from lmcast.exporter.weights.place import Entry, WeightsError, aligned, write

LEAST = 1 << 16  # bytes of a weight that is not kept in the graph


def place_made(graph: ir.Model, directory: Path, files: str = "") -> dict[str, str]:
    """Write the large weights that are in no file into the engine, one after the other in memory.

    files: how the names of new files begin, where the graph is not the text's. Returns the sha256
    of each new file. Raises WeightsError where a linked file has its name.
    """
    values = list(graph.graph.initializers.values())
    stored = [v.const_value for v in values if isinstance(v.const_value, ir.ExternalTensor)]
    taken = {tensor.location for tensor in stored if str(tensor.base_dir) == ROOT}
    out = [value for value in values if _goes_out(value)]
    code = [value for value in out if value.name == KERNELS]
    rest = [value for value in out if value.name != KERNELS]
    hashes: dict[str, str] = {}
    for prefix, made in ((KERNELS, code), (GRAPH, rest)):
        if not made:
            continue
        entries = aligned(map(_entry, made))
        placed, more = write(entries, directory, prefix=files + prefix)
        if same := taken & more.keys():
            raise WeightsError(
                f"/{same.pop()}: an engine has a file of that name for itself, so this one cannot"
                " be linked; move the checkpoint, or use --weights copy"
            )
        for value in made:
            at, tensor = placed[str(value.name)], value.const_value
            assert tensor is not None
            value.const_value = ir.ExternalTensor(
                at.file, at.offset, at.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name), base_dir=str(directory),
            )  # fmt: skip
        hashes |= more
    return hashes


def _goes_out(value: ir.Value) -> bool:
    """Whether a weight is to lie in a file: machine code, what several are joined to, tables."""
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, ir.ExternalTensor):
        return False
    small = tensor.nbytes < LEAST and not isinstance(tensor, ir.LazyTensor)
    return value.name == KERNELS or not small


def _entry(value: ir.Value) -> Entry:
    tensor = value.const_value
    assert tensor is not None

    def blocks() -> Iterator[memoryview]:
        yield memoryview(tensor.tobytes())

    kind, shape = OF_ONNX[int(tensor.dtype)].safetensors, tuple(tensor.shape.numpy())
    if kind is None:  # numbers of 4 bits: bytes of two
        kind, shape = "U8", (tensor.nbytes,)
    return Entry(str(value.name), kind, shape, tensor.nbytes, blocks)
