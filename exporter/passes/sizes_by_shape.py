"""Say sizes without computing any: what joins sizes of unknown value runs on the CPU.

before: Reshape(x, Concat(Shape(x)[0], [4], Shape(q)[2], Shape(x)[3]))
after:  Reshape(x, [0, 4, -1, 0])
before: Expand(x, Concat(Shape(q)[0], [4], Shape(q)[2], [1])), of x [1, 4, 1, 1]
after:  Expand(x, Shape(Unsqueeze(input_ids, [1, 3])))
before: Expand(x, Concat(Shape(patches)[0], [1], [1])), of a tower
after:  Expand(x, Shape(Squeeze(Slice(patches), [3])))
before: Reshape(x, Concat(Shape(patches)[:3], [32])), which splits an axis into two of unknown size
after:  Reshape(x, Shape(Expand(Slice(patches), [1, 1, 1, 32])))
"""

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lmcast.exporter.passes.rewrite import constant, insert, nodes_of

INT64 = ir.DataType.INT64
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
        named = [o if size == 0 else size for size, o in zip(sizes, [*own, *sizes], strict=False)]
        return _as_like(model, node, [size for size in named if size is not None])
    made = constant(model, node, plain, INT64, f"{node.name}.sizes")
    node.replace_input_with(1, made)
    return True


def _expand(model: ir.Model, node: ir.Node) -> bool:
    x, shape = node.inputs
    sizes = _sizes(shape)
    if sizes is None or x is None or x.shape is None or len(x.shape) > len(sizes):
        return False
    own = [1] * (len(sizes) - len(x.shape)) + list(x.shape)
    other = [i for i, size in enumerate(sizes) if isinstance(size, int)]
    if any(sizes[i] not in (1, own[i]) for i in other):
        return False
    return _as_like(model, node, [1 if isinstance(size, int) else size for size in sizes])


def _as_like(model: ir.Model, node: ir.Node, sizes: Sizes) -> bool:
    """Give a node the sizes of a value that is made of an input which has the named axes."""
    names = [size for size in sizes if isinstance(size, str)]
    able = [value for value in model.graph.inputs if _has(value, names)]
    if not able:
        return False
    value = min(able, key=lambda value: len(value.shape or ()))
    name = f"{node.name}.like"

    def numbers(what: str, given: list[int]) -> ir.Value:
        return constant(model, node, given, INT64, f"{name}.{what}")

    def write(op_type: str, x: ir.Value, *given: ir.Value) -> ir.Value:
        (out,) = insert(model, node, op_type, [x, *given], name=f"{name}.{op_type}")
        return out

    axes = [i for i, size in enumerate(value.shape or ()) if str(size) not in names]
    if axes:
        ends = numbers("first", [0] * len(axes)), numbers("end", [1] * len(axes))
        value = write("Slice", value, *ends, numbers("cut", axes))
        value = write("Squeeze", value, numbers("gone", axes))
    if added := [i for i, size in enumerate(sizes) if isinstance(size, int)]:
        value = write("Unsqueeze", value, numbers("axes", added))
    plain = [size if isinstance(size, int) else 1 for size in sizes]
    if any(size != 1 for size in plain):
        value = write("Expand", value, numbers("wide", plain))
    node.replace_input_with(1, write("Shape", value))
    return True


def _has(value: ir.Value, names: list[str]) -> bool:
    """Whether the axes of a value have these names, in this order, beside others."""
    own = [str(size) for size in value.shape or () if str(size) in names]
    return bool(names) and own == names
