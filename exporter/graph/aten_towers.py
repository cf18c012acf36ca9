"""Entries of ATEN for the words of towers: attention without a mask, convolutions and the like."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from lmcast.exporter.graph.aten import ATEN, aten, entry, operand_of, tensor_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from lmcast.exporter.graph.lowering import Lowering

__all__ = ["ATEN"]


@entry(aten.softmax.int)
def softmax(
    g: Lowering, node: fx.Node, x: fx.Node, axis: int, dtype: torch.dtype | None = None
) -> ir.Value:
    return g.op("Softmax", [operand_of(g, x, tensor_of(node).dtype)], {"axis": axis})


@entry(aten.conv1d.default, aten.conv2d.default)
def convolution(
    g: Lowering,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    strides: Sequence[int] = (),
    padding: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
) -> ir.Value:
    axes = tensor_of(weight).dim() - 2
    inputs = [g.value(x), g.value(weight), *([] if bias is None else [g.value(bias)])]
    attributes = {
        "strides": _each(strides, axes, 1),
        "pads": 2 * _each(padding, axes, 0),
        "dilations": _each(dilation, axes, 1),
        "group": groups,
    }
    return g.op("Conv", inputs, attributes, main=True)


def _each(given: Sequence[int], axes: int, usual: int) -> list[int]:
    """Return one number for each axis; torch gives one alone where all are the same."""
    return list(given) if len(given) == axes else [*given, usual][:1] * axes


@entry(aten.avg_pool2d.default)
def avg_pool2d(
    g: Lowering,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    strides: Sequence[int] = (),
    padding: Sequence[int] = (),
    *rounding: Any,
) -> ir.Value:
    if any(padding) or any(rounding):
        raise g.refused("it pads")
    sizes = _each(kernel, 2, 1)
    attributes = {"kernel_shape": sizes, "strides": list(strides) or sizes}
    return g.op("AveragePool", [g.value(x)], attributes)


@entry(aten.upsample_nearest2d.vec)
def upsample_nearest2d(g: Lowering, node: fx.Node, x: fx.Node, *sizes: Any) -> ir.Value:
    before, after = list(tensor_of(x).shape[2:]), list(tensor_of(node).shape[2:])
    pairs = list(zip(before, after, strict=True))
    if not all(isinstance(n, int) for n in (*before, *after)) or any(b % a for a, b in pairs):
        raise g.refused(f"it makes {before} places to {after}, which is no whole multiple")
    scales = [1.0, 1.0, *(b / a for a, b in pairs)]
    attributes = {
        "mode": "nearest",
        "nearest_mode": "floor",
        "coordinate_transformation_mode": "asymmetric",
    }
    return g.op("Resize", [g.value(x), None, g.constant(scales, torch.float32)], attributes)


@entry(aten.pad.default)
def pad(
    g: Lowering,
    node: fx.Node,
    x: fx.Node,
    sizes: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> ir.Value:
    if mode != "constant":
        raise g.refused(f"mode is {mode!r}")
    axes = [-1 - i for i in range(len(sizes) // 2)]  # torch counts from the last axis
    pads = g.constant([*sizes[::2], *sizes[1::2]])
    filled = g.constant(value or 0, tensor_of(node).dtype)
    return g.op("Pad", [g.value(x), pads, filled, g.constant(axes)], {"mode": mode})


@entry(aten.scaled_dot_product_attention.default)
def attention(
    g: Lowering,
    node: fx.Node,
    q: fx.Node,
    k: fx.Node,
    v: fx.Node,
    mask: None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
) -> ir.Value:
    if mask is not None or causal:
        raise g.refused("it has a mask")
    attributes = {"scale": tensor_of(q).shape[-1] ** -0.5 if scale is None else scale}
    # In fp32, as torch takes the softmax of fewer bits.
    attributes["softmax_precision"] = 1
    return g.op("Attention", [g.value(q), g.value(k), g.value(v)], attributes, main=True)


@entry(aten.cumsum.default)
def cumsum(g: Lowering, node: fx.Node, x: fx.Node, axis: int) -> ir.Value:
    dtype = tensor_of(node).dtype
    if dtype not in (torch.float32, torch.float64):  # torch adds up in more bits than these
        raise g.refused(f"it adds up {dtype}")
    return g.op("CumSum", [operand_of(g, x, dtype), g.constant(axis)])


OF_SIZES: dict[Any, str] = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.floordiv: "Div",  # the same of what is not negative
}


@entry(*OF_SIZES)
def of_sizes(g: Lowering, node: fx.Node, a: Any, b: Any) -> ir.Value:
    """A size that follows from sizes of axes."""
    inputs = [g.value(n) if isinstance(n, fx.Node) else g.constant([n]) for n in (a, b)]
    return g.op(OF_SIZES[node.target], inputs)
