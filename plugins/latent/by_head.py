"""Batched matmul, one matrix per head, in Triton.

Letters: N rows, H heads, D width of the input, M width of the output.
"""

import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.experts.by_expert import tile_for, weight_at
from lmcast.plugins.launch.step import Step


@triton.jit
def each_head(
    x,  # N,H,D
    matrix,  # H,M,D in steps of STEPS
    out,  # N,H,M
    N,
    H: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """`out[n, h] = matrix[h] @ x[n, h]`; each program computes a tile of ROWS,COLUMNS."""
    # Neighbouring programs read the same columns of a matrix.
    program = tl.program_id(0)
    rows, columns = tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS)
    head = program // rows // columns
    place = program % rows * ROWS + tl.arange(0, ROWS)
    column = program // rows % columns * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    row = place.to(tl.int64)[:, None] * H + head
    x_at = x + row * D + depth[None, :]
    matrix_at = weight_at(matrix, head, column, depth, STEPS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, D, DEPTH):
        here = start + depth < D
        own = tl.load(x_at, mask=(place < N)[:, None] & here[None, :], other=0.0)
        weight = tl.load(matrix_at, mask=here[:, None] & (column < M)[None, :], other=0.0)
        total = tl.dot(own, weight, total, input_precision="ieee")
        x_at += DEPTH
        matrix_at += DEPTH * STEPS[2]
    inside = (place < N)[:, None] & (column < M)[None, :]
    tl.store(out + row * M + column[None, :], total.to(out.dtype.element_ty), mask=inside)


def by_head(x: Tensor, matrix: Tensor) -> tuple[Step, Tensor]:
    """Return the launch for x ...,H,D and matrix H,M,D, and the output that it writes, ...,H,M.

    matrix may be a transposed view: it is read by its strides, without a copy.
    """
    heads, columns, depth = matrix.shape
    places = x.numel() // (heads * depth)
    out = x.new_empty(*x.shape[:-1], columns)
    tile = tile_for(x.dtype, places)
    arguments = {"x": x.contiguous(), "matrix": matrix, "out": out, "N": places, "H": heads}
    arguments |= {"D": depth, "M": columns, "STEPS": matrix.stride(), "ROWS": tile.rows}
    arguments |= {"COLUMNS": tile.columns, "DEPTH": tile.depth}
    programs = heads * -(-places // tile.rows) * -(-columns // tile.columns)
    return Step(each_head, programs, arguments, tile.warps, tile.stages), out
