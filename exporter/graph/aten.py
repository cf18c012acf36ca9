"""The lowering table from ATen to ONNX: one entry an operator.

An entry takes the Lowering, the traced node and the node's arguments as traced; it returns the ONNX
value. An operator without an entry is refused, so an entry is added only with a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import fx

if TYPE_CHECKING:
    import onnx_ir as ir

    from lmcast.exporter.graph.lowering import Lowering

aten = torch.ops.aten
Entry = TypeVar("Entry", bound=Callable[..., Any])
ATEN: dict[Any, Callable[..., Any]] = {}


def entry(*targets: Any) -> Callable[[Entry], Entry]:
    def register(function: Entry) -> Entry:
        ATEN.update(dict.fromkeys(targets, function))
        return function

    return register


def tensor_of(node: fx.Node) -> torch.Tensor:
    traced: torch.Tensor = node.meta["val"]
    return traced


def operand_of(g: Lowering, arg: Any, dtype: torch.dtype) -> ir.Value:
    """Return a tensor or number as a value of `dtype`."""
    if not isinstance(arg, fx.Node):
        return g.constant(arg, dtype)
    value = g.value(arg)
    if isinstance(value, torch.Tensor):  # a constant of the definition
        return g.constant(value.to(dtype))
    return g.cast(value, tensor_of(arg).dtype, dtype)


def _binary(op_type: str) -> Callable[..., Any]:
    def lower(g: Lowering, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> ir.Value:
        if alpha != 1:
            raise g.refused(f"alpha is {alpha}")
        dtype = tensor_of(node).dtype
        # torch computes in fp32 with a number that 16 bits do not hold, and rounds once.
        kind = torch.float32 if any(_is_rounded(n, dtype) for n in (a, b)) else dtype
        return g.cast(g.op(op_type, [operand_of(g, a, kind), operand_of(g, b, kind)]), kind, dtype)

    return lower


def _is_rounded(arg: Any, dtype: torch.dtype) -> bool:
    """Whether an operand is a number that a float of 16 bits does not hold."""
    short = dtype in (torch.float16, torch.bfloat16)
    return short and isinstance(arg, float) and torch.tensor(arg, dtype=dtype).item() != arg


for target, name in (
    (aten.add.Tensor, "Add"),
    (aten.sub.Tensor, "Sub"),
    (aten.mul.Tensor, "Mul"),
    (aten.div.Tensor, "Div"),
    (aten.pow.Tensor_Tensor, "Pow"),
    (aten.pow.Tensor_Scalar, "Pow"),
):
    ATEN[target] = _binary(name)


def _unary(op_type: str) -> Callable[..., Any]:
    def lower(g: Lowering, node: fx.Node, x: fx.Node) -> ir.Value:
        return g.op(op_type, [operand_of(g, x, tensor_of(node).dtype)])

    return lower


for target, name in (
    (aten.cos.default, "Cos"),
    (aten.erf.default, "Erf"),
    (aten.exp.default, "Exp"),
    (aten.log.default, "Log"),
    (aten.mish.default, "Mish"),
    (aten.neg.default, "Neg"),
    (aten.reciprocal.default, "Reciprocal"),
    (aten.relu.default, "Relu"),
    (aten.sigmoid.default, "Sigmoid"),
    (aten.sin.default, "Sin"),
    (aten.softplus.default, "Softplus"),
    (aten.sqrt.default, "Sqrt"),
    (aten.tanh.default, "Tanh"),
):
    ATEN[target] = _unary(name)


@entry(aten.gt.Scalar)
def greater(g: Lowering, node: fx.Node, a: fx.Node, b: float) -> ir.Value:
    dtype = torch.result_type(tensor_of(a), b)
    return g.op("Greater", [operand_of(g, a, dtype), g.constant(b, dtype)])


@entry(aten.lt.Scalar)
def less(g: Lowering, node: fx.Node, a: fx.Node, b: float) -> ir.Value:
    dtype = torch.result_type(tensor_of(a), b)
    return g.op("Less", [operand_of(g, a, dtype), g.constant(b, dtype)])


@entry(aten.le.Tensor)
def not_above(g: Lowering, node: fx.Node, a: fx.Node, b: fx.Node) -> ir.Value:
    dtype = torch.result_type(tensor_of(a), tensor_of(b))
    return g.op("LessOrEqual", [operand_of(g, a, dtype), operand_of(g, b, dtype)])


@entry(aten.square.default)
def square(g: Lowering, node: fx.Node, x: fx.Node) -> ir.Value:
    return g.op("Mul", [g.value(x), g.value(x)])


@entry(aten.silu.default)
def silu(g: Lowering, node: fx.Node, x: fx.Node) -> ir.Value:
    return g.op("Mul", [g.value(x), g.op("Sigmoid", [g.value(x)])])


@entry(aten.gelu.default)
def gelu(g: Lowering, node: fx.Node, x: fx.Node, approximate: str = "none") -> ir.Value:
    return g.op("Gelu", [g.value(x)], {"approximate": approximate})


@entry(aten.leaky_relu.default)
def leaky_relu(g: Lowering, node: fx.Node, x: fx.Node, slope: float = 0.01) -> ir.Value:
    return g.op("LeakyRelu", [g.value(x)], {"alpha": slope})


@entry(aten.relu6.default)
def relu6(g: Lowering, node: fx.Node, x: fx.Node) -> ir.Value:
    return clamp(g, node, x, 0, 6)


@entry(aten.clamp.default)
def clamp(g: Lowering, node: fx.Node, x: fx.Node, low: Any = None, high: Any = None) -> ir.Value:
    dtype = tensor_of(node).dtype
    bounds = [None if b is None else g.constant(b, dtype) for b in (low, high)]
    return g.op("Clip", [operand_of(g, x, dtype), *bounds])


@entry(aten.div.Tensor_mode)
def div_mode(
    g: Lowering, node: fx.Node, a: fx.Node, b: Any, *, rounding_mode: str | None
) -> ir.Value:
    if rounding_mode != "floor":
        raise g.refused(f"rounding_mode is {rounding_mode!r}")
    dtype = tensor_of(node).dtype
    over, under = operand_of(g, a, dtype), operand_of(g, b, dtype)
    if dtype.is_floating_point:
        return g.op("Floor", [g.op("Div", [over, under])])
    # ONNX divides integers towards zero; what is left after Mod divides without a rest.
    whole = g.op("Sub", [over, g.op("Mod", [over, under])])
    return g.op("Div", [whole, under])


@entry(aten.linear.default)
def linear(
    g: Lowering, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None
) -> ir.Value:
    transposed = g.op("Transpose", [g.value(weight)], {"perm": [1, 0]})
    inputs = [operand_of(g, x, tensor_of(x).dtype), transposed]
    if bias is None:
        return g.op("MatMul", inputs, main=True)
    return g.op("Add", [g.op("MatMul", inputs), g.value(bias)], main=True)


@entry(aten.rms_norm.default)
def rms_norm(
    g: Lowering,
    node: fx.Node,
    x: fx.Node,
    shape: Sequence[int],
    weight: fx.Node | None = None,
    eps: float | None = None,
) -> ir.Value:
    traced = tensor_of(x)
    scale = g.constant(torch.ones(shape, dtype=traced.dtype)) if weight is None else g.value(weight)
    epsilon = torch.finfo(traced.dtype).eps if eps is None else eps
    attributes = {"axis": -len(shape), "epsilon": epsilon}
    return g.op("RMSNormalization", [g.value(x), scale], attributes, main=True)


@entry(aten.layer_norm.default)
def layer_norm(
    g: Lowering,
    node: fx.Node,
    x: fx.Node,
    shape: Sequence[int],
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    *backend: Any,
) -> ir.Value:
    if weight is None:
        raise g.refused("it has no weight")
    inputs = [g.value(x), g.value(weight), *([] if bias is None else [g.value(bias)])]
    attributes = {"axis": -len(shape), "epsilon": eps}
    return g.op("LayerNormalization", inputs, attributes, main=True)


@entry(aten.matmul.default)
def matmul(g: Lowering, node: fx.Node, a: fx.Node, b: fx.Node) -> ir.Value:
    return g.op("MatMul", [g.value(a), g.value(b)])


@entry(aten.mean.dim)
def mean(
    g: Lowering, node: fx.Node, x: fx.Node, axes: Sequence[int], keepdim: bool = False
) -> ir.Value:
    value, back = _widened(g, x)
    return back(_mean(g, value, axes, keepdim))


@entry(aten.std.dim)
def std(
    g: Lowering,
    node: fx.Node,
    x: fx.Node,
    axes: Sequence[int],
    unbiased: bool = True,
    keepdim: bool = False,
) -> ir.Value:
    if unbiased:
        raise g.refused("it is the unbiased estimate")
    value, back = _widened(g, x)
    away = g.op("Sub", [value, _mean(g, value, axes, True)])
    return back(g.op("Sqrt", [_mean(g, g.op("Mul", [away, away]), axes, keepdim)]))


def _widened(g: Lowering, x: fx.Node) -> tuple[ir.Value, Callable[[ir.Value], ir.Value]]:
    """Return a value in the dtype that torch accumulates in, fp32 or wider, and the cast back."""
    have = tensor_of(x).dtype
    wide = torch.promote_types(have, torch.float32)
    return g.cast(g.value(x), have, wide), lambda value: g.cast(value, wide, have)


def _mean(g: Lowering, value: ir.Value, axes: Sequence[int], keepdim: bool) -> ir.Value:
    return g.op("ReduceMean", [value, g.constant(list(axes))], {"keepdims": int(keepdim)})


@entry(aten.embedding.default)
def embedding(
    g: Lowering, node: fx.Node, weight: fx.Node, ids: fx.Node, *training: Any
) -> ir.Value:
    return g.op("Gather", [g.value(weight), g.value(ids)], {"axis": 0})


@entry(aten.unflatten.int, aten.flatten.using_ints)
def reshape(g: Lowering, node: fx.Node, x: fx.Node, axis: int = 0, to: Any = -1) -> ir.Value:
    before, after = tensor_of(x).shape, tensor_of(node).shape
    if isinstance(to, int) or not any(isinstance(size, fx.Node) for size in to):
        return g.reshape(g.value(x), before, after)
    # Sizes of another tensor come as values of shape [1]; ONNX: 0 copies the axis at its place.
    axis %= len(before)
    behind = after[axis + len(to) :]
    if not all(isinstance(size, int) for size in behind):
        raise g.refused("what follows the sizes of another tensor is dynamic, too")
    target = [*[0] * axis, *(g.value(size) for size in to), *behind]
    parts = [g.constant([part]) if isinstance(part, int) else part for part in target]
    return g.op("Reshape", [g.value(x), g.op("Concat", parts, {"axis": 0})])


@entry(aten.transpose.int)
def transpose(g: Lowering, node: fx.Node, x: fx.Node, a: int, b: int) -> ir.Value:
    axes = list(range(tensor_of(x).dim()))
    axes[a], axes[b] = axes[b], axes[a]
    return g.op("Transpose", [g.value(x)], {"perm": axes})


@entry(aten.unsqueeze.default)
def unsqueeze(g: Lowering, node: fx.Node, x: fx.Node, axis: int) -> ir.Value:
    return g.op("Unsqueeze", [g.value(x), g.constant([axis % tensor_of(node).dim()])])


@entry(aten.expand.default)
def expand(g: Lowering, node: fx.Node, x: fx.Node, sizes: Sequence[Any]) -> ir.Value:
    before, after = tensor_of(x).shape, tensor_of(node).shape
    lead = len(after) - len(before)
    target: list[Any] = []
    for i, size in enumerate(after):
        kept = i >= lead and str(before[i - lead]) == str(size)
        # ONNX: 1 keeps the axis as it is. A size of another tensor comes as a value of shape [1].
        target.append(1 if kept else size if isinstance(size, int) else g.value(sizes[i]))
    if all(isinstance(size, int) for size in target):
        return g.op("Expand", [g.value(x), g.constant(target)])
    parts = [g.constant([size]) if isinstance(size, int) else size for size in target]
    return g.op("Expand", [g.value(x), g.op("Concat", parts, {"axis": 0})])


@entry(aten.slice.Tensor)
def slice_(
    g: Lowering,
    node: fx.Node,
    x: fx.Node,
    axis: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> ir.Value:
    start = start or 0
    end = (1 << 63) - 1 if end is None else end
    whole: ir.Value = g.value(x)
    if (start, end, step) == (0, (1 << 63) - 1, 1):
        return whole
    bounds = [g.value(v) if isinstance(v, fx.Node) else g.constant([v]) for v in (start, end)]
    return g.op("Slice", [whole, *bounds, g.constant([axis]), g.constant([step])])


@entry(aten.alias.default)
def alias(g: Lowering, node: fx.Node, x: fx.Node) -> Any:
    return g.value(x)


@entry(aten.select.int)
def select(g: Lowering, node: fx.Node, x: fx.Node, axis: int, index: int) -> ir.Value:
    return g.op("Gather", [g.value(x), g.constant(index)], {"axis": axis})


@entry(aten.cat.default)
def cat(g: Lowering, node: fx.Node, parts: Sequence[fx.Node], axis: int = 0) -> ir.Value:
    dtype = tensor_of(node).dtype
    return g.op("Concat", [operand_of(g, part, dtype) for part in parts], {"axis": axis})


@entry(aten.split.Tensor, aten.split_with_sizes.default)
def split(g: Lowering, node: fx.Node, x: fx.Node, size: Any, axis: int = 0) -> tuple[ir.Value, ...]:
    sizes = [part.shape[axis] for part in node.meta["val"]]
    if not all(isinstance(n, int) for n in sizes):
        raise g.refused("it splits an axis whose size only a tensor knows")
    inputs = [g.value(x), g.constant(sizes)]
    return g.several("Split", inputs, {"axis": axis}, outputs=len(sizes))


@entry(aten.gather.default)
def gather(g: Lowering, node: fx.Node, x: fx.Node, axis: int, index: fx.Node) -> ir.Value:
    return g.op("GatherElements", [g.value(x), g.value(index)], {"axis": axis})


@entry(aten.where.self, aten.where.ScalarOther)
def where(g: Lowering, node: fx.Node, condition: fx.Node, a: Any, b: Any) -> ir.Value:
    dtype = tensor_of(node).dtype
    where = operand_of(g, condition, torch.bool)
    return g.op("Where", [where, operand_of(g, a, dtype), operand_of(g, b, dtype)])


@entry(aten.arange.default)
def arange(g: Lowering, node: fx.Node, end: Any, **placement: Any) -> ir.Value:
    dtype = tensor_of(node).dtype
    if isinstance(end, fx.Node):
        end = g.cast(g.op("Squeeze", [g.value(end)]), torch.int64, dtype)
    else:
        end = g.constant(end, dtype)
    return g.op("Range", [g.constant(0, dtype), end, g.constant(1, dtype)])


@entry(aten.sym_size.int)
def sym_size(g: Lowering, node: fx.Node, x: fx.Node, axis: int) -> ir.Value:
    return g.size(g.value(x), axis)


@entry(aten.to.dtype, aten.to.dtype_layout)
def to(g: Lowering, node: fx.Node, x: fx.Node, *args: Any, **kwargs: Any) -> Any:
    value = g.value(x)
    if isinstance(value, torch.Tensor):
        return value.to(tensor_of(node).dtype)
    return g.cast(value, tensor_of(x).dtype, tensor_of(node).dtype)
