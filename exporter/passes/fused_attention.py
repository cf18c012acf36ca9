"""Rewrite Attention for TensorRT's fused kernels, or decompose it into plain operators.

TensorRT for RTX 1.7 has no softcap, takes one width for queries, keys and values, and chooses the
precision of the softmax itself. Its fused kernels take two bytes a number, widths of 16 to 256 in
steps of 8, and in decoding steps at least 4 heads of queries; a build with an Attention that none
of them takes fails.

before: Attention <softcap = 0, softmax_precision = 1> (q, k, v, mask), v narrower than k
after:  Slice(Attention(q, k, Pad(v), mask))
before: Attention <softcap = 50> (q, k, v, mask)
after:  MatMul, Mul, Tanh, Mul, Where or Add, Softmax, MatMul
"""

from functools import partial

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import constant, insert, nodes_of, replace, written
from lmcast.plugins.attention.onnx_body import plain
from lmcast.plugins.onnx_builder import Builder, Value

SHORT = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
LEAST, MOST, STEP = 16, 256, 8  # widths of heads
LEAST_HEADS = 4  # over any number of keys' heads that divides theirs
KEEPS_WIDTH = {  # in bodies of ours
    "Transpose", "TensorScatter", "ScatterElements", "Concat", "Pad", "Identity",
    "DequantizeLinear", "Cast", "CastLike", "Mul",
}  # fmt: skip


def fused_attention(model: ir.Model) -> int:
    return sum(_rewritten(model, node) for node in nodes_of(model, "Attention"))


def _rewritten(model: ir.Model, node: ir.Node) -> bool:
    query, key, value, *_ = node.inputs
    assert query is not None and key is not None and value is not None
    softcap = node.attributes.get("softcap")
    cap = softcap.as_float() if softcap else 0.0
    widest = max(_width(key), _width(value))
    # Towers, whose attention has no mask, take no single steps.
    few = len(node.inputs) > 3 and _heads(query) < LEAST_HEADS
    other = cap or widest > MOST or few
    if other or _described(query).dtype not in SHORT:
        _decompose(model, node, cap)
        return True
    wide = max(LEAST, -(-widest // STEP) * STEP)
    if "softmax_precision" not in node.attributes and _width(key) == _width(value) == wide:
        return False
    _pad(model, node, wide)
    return True


def _decompose(model: ir.Model, node: ir.Node, cap: float) -> None:
    slope, given = node.attributes["scale"].as_float() / (cap or 1.0), _with_mask(node)
    write = partial(plain, slope=slope, cap=cap or None, added=_is_added(given[3]))
    replace(model, node, written(model, node, write, *given, label="plain"))


def _with_mask(node: ir.Node) -> list[ir.Value | None]:
    """Return queries, keys, values and the mask, None where all may be seen, as in towers."""
    return [*node.inputs, None][:4]


def _added(op: Builder, mask: Value, key: Value) -> Value:
    """Return a mask of booleans as numbers to add."""
    return op.CastLike(op.Where(mask, 0.0, float("-inf")), key)


def _pad(model: ir.Model, node: ir.Node, wide: int) -> None:
    """Give queries, keys and values a width by zeros, which change no score, and take it back."""
    *parts, mask = _with_mask(node)
    query, key = parts[:2]
    assert query is not None and key is not None
    kind = _described(query).type  # of all three: keys and values may come of a cache in FP8
    if mask is not None and kind == ir.TensorType(ir.DataType.BFLOAT16) and not _is_added(mask):
        # With a mask of booleans and one row, TensorRT for RTX 1.7 gives two values one name.
        (mask,) = written(model, node, _added, mask, key)
    padded = [_padded(model, node, part, wide, kind) for part in parts if part is not None]
    scale = {"scale": node.attributes["scale"].as_float()}
    name, narrow = str(node.name), _width(parts[2])
    given = padded if mask is None else [*padded, mask]
    (out,) = insert(model, node, "Attention", given, scale, name=f"{name}.wide")
    if narrow < wide:
        bounds = [
            constant(model, node, [number], ir.DataType.INT64, f"{name}.{what}")
            for number, what in ((0, "first"), (narrow, "end"), (3, "axis"))
        ]
        (out,) = insert(model, node, "Slice", [out, *bounds], name=f"{name}.narrow")
    replace(model, node, [out])


def _is_added(mask: ir.Value | None) -> bool:
    """Whether a mask is a number to add, as that with sinks is."""
    producer = mask.producer() if mask is not None else None
    return producer is not None and producer.op_type == "Concat"


def _padded(
    model: ir.Model, node: ir.Node, value: ir.Value, wide: int, kind: ir.TypeProtocol | None
) -> ir.Value:
    missing = wide - _width(value)
    if not missing:
        return value
    name = f"{node.name}.{value.name}.padded"
    pads = constant(model, node, [0] * 7 + [missing], ir.DataType.INT64, f"{name}.by")
    (out,) = insert(model, node, "Pad", [value, pads], name=name)
    known = _described(value)
    assert known.shape is not None
    out.type, out.shape = kind, ir.Shape([*known.shape[:-1], wide])
    return out


def _width(value: ir.Value | None) -> int:
    assert value is not None
    shape = _described(value).shape
    assert shape is not None and isinstance(shape[-1], int)
    return shape[-1]


def _heads(query: ir.Value) -> int:
    """Return how many heads queries B,H,T,K have, which bodies turn from B,T,H,K."""
    shape, axis = query.shape, 1
    if shape is None:
        node = query.producer()
        assert node is not None and node.op_type == "Transpose", node
        (before,), axis = node.inputs, 2
        assert before is not None
        shape = before.shape
    heads = None if shape is None else shape[axis]
    assert isinstance(heads, int)
    return heads


def _described(value: ir.Value) -> ir.Value:
    """Return one of known shape, with this one's width and of queries also its dtype."""
    while value.shape is None:
        node = value.producer()
        assert node is not None and node.op_type in KEEPS_WIDTH, node
        (first, *_) = node.inputs
        assert first is not None
        value = first
    return value
