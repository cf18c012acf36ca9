"""Values that a graph computes from constants, small weights and given numbers alone, in numpy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

# Numbers of a weight that is read: a table of a head or a vector of a layer has fewer.
MOST = 1 << 16


def _slice(x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    index = [slice(None)] * x.ndim
    count = len(starts)
    axes = range(count) if axes is None else axes
    steps = [1] * count if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise NotImplementedError("a slice that runs backwards")
        index[axis] = slice(int(start), int(end), int(step))
    return x[tuple(index)]


def _reshape(x: Any, shape: Any) -> Any:
    return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)])


def _divide(a: Any, b: Any) -> Any:
    if a.dtype.kind in "iu":
        raise NotImplementedError("a division of integers")
    return a / b


# Those that positions and vectors of weights are computed with.
OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Floor": np.floor,
    "Neg": np.negative,
    "Exp": np.exp,
    "Cos": np.cos,
    "Sin": np.sin,
    "Sqrt": np.sqrt,
    "Expand": lambda x, shape: x * np.ones([int(n) for n in shape], x.dtype),
    "Identity": lambda x: x,
    "Range": np.arange,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": lambda x, axes=None: np.squeeze(x, None if axes is None else tuple(map(int, axes))),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(map(int, axes))),
}


def evaluate(value: ir.Value | None, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    """Return what a value is, given those that are known; None where it depends on others, or on an
    operator that is not one of these.

    known: also gets what was found on the way.
    """
    if value is None:
        return None
    if value in known:
        return known[value]
    node = value.producer()
    found = _weight(value) if node is None else _computed(node, known)
    if found is not None:
        known[value] = found
    return found


def _weight(value: ir.Value) -> np.ndarray | None:
    tensor = value.const_value
    return tensor.numpy() if tensor is not None and tensor.size <= MOST else None


def _computed(node: ir.Node, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    if node.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(node.outputs[0])
        return None if tensor is None else tensor.numpy()
    if node.domain or node.op_type not in {*OPERATORS, "Cast", "Concat", "Shape"}:
        return None
    inputs = [evaluate(value, known) for value in node.inputs if value is not None]
    if any(array is None for array in inputs):
        return None
    arrays = [array for array in inputs if array is not None]
    if node.op_type == "Cast":
        return arrays[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    if node.op_type == "Concat":
        return np.concatenate(arrays, node.attributes["axis"].as_int())
    if node.op_type == "Shape":
        bounds = (node.attributes.get(name) for name in ("start", "end"))
        first, last = (None if bound is None else bound.as_int() for bound in bounds)
        return np.array(arrays[0].shape[first:last], np.int64)
    try:
        found: np.ndarray = np.asarray(OPERATORS[node.op_type](*arrays))
    except NotImplementedError:
        return None
    return found
