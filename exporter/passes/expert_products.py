"""Products of all experts, each of its matrix with its own run of columns.

Letters: E experts, N rows and K columns of a matrix.
"""

from dataclasses import replace

import onnx_ir as ir

from lmcast.exporter.passes.nbits import IntegerWeight, integer_weight
from lmcast.exporter.passes.nbits_inputs import cast, of_expert
from lmcast.exporter.passes.nbits_matmul import (
    ROUNDED,
    multiply,
    product_with_offsets,
    sums_of_blocks,
)
from lmcast.exporter.passes.nth import nth
from lmcast.exporter.passes.rewrite import MICROSOFT, insert


def products(
    model: ir.Model, at: ir.Node, columns: ir.Value, runs: ir.Value, stack: ir.Value, name: str
) -> ir.Value:
    """Return the products, concatenated: N,routes.

    columns: K,routes, sorted by expert; runs: the number of columns of each.
    stack: E,N,K, the matrices.
    name: of the output, and the prefix of the nodes' names.
    """
    integers = integer_weight(stack)
    if integers is not None and integers.has_kernel:
        return _of_integers(model, at, columns, runs, integers, name)
    assert stack.shape is not None
    parts = _split(model, at, columns, runs, int(stack.shape.numpy()[0]), 1, name)
    found = [_product(model, at, part, stack, i, name) for i, part in enumerate(parts)]
    return insert(model, at, "Concat", found, {"axis": 1}, name=name)[0]


def _of_integers(
    model: ir.Model,
    at: ir.Node,
    columns: ir.Value,
    runs: ir.Value,
    stack: IntegerWeight,
    name: str,
) -> ir.Value:
    """The same for quantized matrices, whose kernel takes rows."""
    turn = {"perm": [1, 0]}
    (rows,) = insert(model, at, "Transpose", [columns], turn, name=f"{name}.rows")
    count = stack.shape[0]
    each = [of_expert(model, stack, i) for i in range(count)]
    parts = _split(model, at, rows, runs, count, 0, name)
    found = [
        multiply(model, at, part, replace(one, offsets=None), ROUNDED, f"{name}.{i}")
        for i, (part, one) in enumerate(zip(parts, each, strict=True))
    ]
    (joined,) = insert(model, at, "Concat", found, {"axis": 0}, name=f"{name}.joined")
    if stack.offsets is not None:
        more = _of_offsets(model, at, rows, runs, each, name)
        (joined,) = insert(model, at, "Add", [joined, more], name=f"{name}.total")
    return insert(model, at, "Transpose", [joined], turn, name=name)[0]


def _of_offsets(
    model: ir.Model,
    at: ir.Node,
    rows: ir.Value,
    runs: ir.Value,
    each: list[IntegerWeight],
    name: str,
) -> ir.Value:
    """Return the products with what is added to the numbers of blocks of each matrix."""
    first = each[0]
    rows.shape = ir.Shape((None, first.shape[-1]))
    wide = cast(model, at, rows, first.dtype, first.computed, f"{name}.wide")
    wide.shape = rows.shape
    sums = sums_of_blocks(model, at, wide, first, name)
    parts = _split(model, at, sums, runs, len(each), 0, f"{name}.sums")
    found = [
        product_with_offsets(model, at, part, one, f"{name}.{i}")
        for i, (part, one) in enumerate(zip(parts, each, strict=True))
    ]
    (joined,) = insert(model, at, "Concat", found, {"axis": 0}, name=f"{name}.lifts")
    return cast(model, at, joined, first.computed, first.dtype, f"{name}.lift")


def _split(
    model: ir.Model, at: ir.Node, x: ir.Value, runs: ir.Value, experts: int, axis: int, name: str
) -> list[ir.Value]:
    given = {"axis": axis}
    return insert(model, at, "Split", [x, runs], given, name=f"{name}.runs", outputs=experts)


def _product(
    model: ir.Model, at: ir.Node, part: ir.Value, stack: ir.Value, index: int, name: str
) -> ir.Value:
    matrix = nth(model, at, stack, index)
    maker = matrix.producer()
    label = f"{name}.{index}"
    if maker is None or maker.op_type != "Transpose":
        return insert(model, at, "MatMul", [matrix, part], name=label)[0]
    return insert(
        model, at, "FusedMatMul", [maker.inputs[0], part], {"transA": 1},
        name=label, domain=MICROSOFT,
    )[0]  # fmt: skip
