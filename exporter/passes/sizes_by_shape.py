"""Say sizes without computing any: what joins sizes of unknown value runs on the CPU.

before: Reshape(x, Concat(Shape(x)[0], [4], Shape(q)[2], Shape(x)[3]))
after:  Reshape(x, [0, 4, -1, 0])
before: Expand(x, Concat(Shape(q)[0], [4], Shape(q)[2], [1])), of x [1, 4, 1, 1]
after:  Expand(x, Shape(Unsqueeze(input_ids, [1, 3])))
"""

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lmcast.exporter.passes.rewrite import constant, insert, nodes_of

INT64 = ir.DataType.INT64
ROWS, TOKENS = "B", "T"  # axes as inputs of graphs name them
HAVE = {(ROWS, TOKENS): "input_ids", (ROWS,): "cache_lengths"}
Sizes = list[int | str]


def sizes_by_shape(model: ir.Model) -> int:
    found = [n for n in nodes_of(model, "Reshape", "Expand") if _joined(n.inputs[1]) is not None]
    if any(node.inputs[0] is not None and node.inputs[0].shape is None for node in found):
        ShapeInferencePass()(model)  # bodies have no shapes
    return sum((_reshape if n.op_type == "Reshape" else _expand)(model, n) for n in found)


def _joined(value: ir.Value | None) -> ir.Node | None:
    """Return the node that joins sizes to a shape, where there is one of unknown value."""
    node = value.producer() if value is not None else None
    makers = [v.producer() if v is not None else None for v in node.inputs] if node else []
    sized = any(maker is not None and maker.op_type == "Shape" for maker in makers)
    return node if node is not None and node.op_type == "Concat" and sized else None


def _sizes(value: ir.Value | None) -> Sizes | None:
    """Return the sizes of a shape: numbers, and the names of axes; None where one has neither."""
    joined = _joined(value)
    assert joined is not None
    found: Sizes = []
    for part in joined.inputs:
        maker = part.producer() if part is not None else None
        if maker is not None and maker.op_type == "Shape":
            (x,) = maker.inputs
            if x is None or x.shape is None:
                return None
            bounds = (maker.attributes.get(name) for name in ("start", "end"))
            first, last = (None if bound is None else bound.as_int() for bound in bounds)
            named = list(x.shape)[first:last]
            names = [size if isinstance(size, int) else size.value for size in named]
            if None in names:
                return None
            found += [name for name in names if name is not None]
            continue
        tensor = ir.convenience.get_const_tensor(part) if part is not None else None
        if tensor is None:
            return None
        found += [int(number) for number in tensor.numpy().reshape(-1)]
    return found


def _reshape(model: ir.Model, node: ir.Node) -> bool:
    x, shape = node.inputs
    sizes = _sizes(shape)
    if sizes is None or x is None or x.shape is None:
        return False
    own = [size if isinstance(size, int) else size.value for size in x.shape]
    plain: list[int] = []
    for axis, size in enumerate(sizes):
        same = axis < len(own) and own[axis] == size
        plain.append(size if isinstance(size, int) else 0 if same else -1)
    if plain.count(-1) > 1:
        return False
    made = constant(model, node, plain, INT64, f"{node.name}.sizes")
    node.replace_input_with(1, made)
    return True


def _expand(model: ir.Model, node: ir.Node) -> bool:
    x, shape = node.inputs
    sizes = _sizes(shape)
    if sizes is None or x is None or x.shape is None or len(x.shape) > len(sizes):
        return False
    own = [1] * (len(sizes) - len(x.shape)) + list(x.shape)
    names = tuple(size for size in sizes if isinstance(size, str))
    other = [i for i, size in enumerate(sizes) if isinstance(size, int)]
    if names not in HAVE or any(sizes[i] not in (1, own[i]) for i in other):
        return False
    given = next(value for value in model.graph.inputs if value.name == HAVE[names])
    axes = constant(model, node, other, INT64, f"{node.name}.axes")
    (like,) = insert(model, node, "Unsqueeze", [given, axes], name=f"{node.name}.like")
    (made,) = insert(model, node, "Shape", [like], name=f"{node.name}.sizes")
    node.replace_input_with(1, made)
    return True
