"""What launch plans take of a node, and say of its outputs: for every runtime that has plugins."""

from typing import Any

import onnx_ir as ir

from lmcast.exporter.dtypes import OF_ONNX
from lmcast.plugins.plugin import REGISTRY


def given(node: ir.Node) -> list[Any]:
    """Return the arguments of a custom operator as launch plans take them."""
    from lmcast.plugins.launch.launch_plan import Given

    tensors = iter(node.inputs)
    found: list[Any] = []
    for argument in REGISTRY[node.op_type].schema.arguments:
        if argument.name in node.attributes:
            found.append(node.attributes[argument.name].value)
            continue
        value = next(tensors, None)
        if value is None:
            found.append(None)
            continue
        assert value.dtype is not None and value.shape is not None, f"{node.name}: {value}"
        found.append(Given(OF_ONNX[value.dtype].torch, tuple(map(_known, value.shape))))
    return found


def describe(node: ir.Node, text: str) -> list[str]:
    """Set the shapes of outputs from a launch plan, where a trace left sizes open.

    Returns the states that it updates in place.
    """
    tokens = iter(text.split("outputs ", 1)[1].split())
    present = [value for value in node.inputs if value is not None]
    updated = []
    for value, _ in zip(node.outputs, range(int(next(tokens))), strict=True):
        _kind, alias, rank = next(tokens), int(next(tokens)), int(next(tokens))
        value.shape = ir.Shape([_size(next(tokens), present) for _ in range(rank)])
        past = str(present[alias].name) if alias >= 0 else ""
        if past.endswith(".past") and value.name == f"{past.removesuffix('past')}present":
            updated.append(past.removesuffix(".past"))
    return updated


def _size(axis: str, inputs: list[ir.Value]) -> int | str:
    """Return a size of a launch plan: a number, or I.A, axis A of input I."""
    source, _, at = axis.partition(".")
    if not at:
        return int(axis)
    shape = inputs[int(source)].shape
    assert shape is not None
    return _known(shape[int(at)])


def _known(size: int | ir.SymbolicDim) -> int | str:
    if isinstance(size, int):
        return size
    assert size.value is not None, "a size that neither a trace nor a recipe says"
    return str(size.value)
