"""moe_experts in Triton: routes sorted by expert, then two grouped matrix products, then a sum.

Letters: N places, R routes of a place, S = N * R routes, E experts, D width of places, I inner
width. The host never waits for the GPU: how many tiles there are at most follows from S and E, and
a program that finds no tile left returns.
"""

import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.experts.by_expert import (
    by_expert,
    find,
    routes_at,
    tile_for,
    weight_at,
)
from lmcast.plugins.launch.sizes import least
from lmcast.plugins.launch.step import Step, launcher


@triton.jit
def activated(gates, ups, alpha, limit, ACTIVATION: tl.constexpr):
    """What ACTIVATIONS of the operator do, in fp32; comparisons are such that NaN stays NaN."""
    if ACTIVATION == "silu":
        return gates * tl.sigmoid(gates) * ups
    elif ACTIVATION == "gelu":
        return 0.5 * gates * (1 + tl.erf(gates * 0.7071067811865476)) * ups
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(z)) / 2 = sigmoid(2 z)
        z = 0.7978845608028654 * (gates + 0.044715 * gates * gates * gates)
        return gates * tl.sigmoid(2 * z) * ups
    elif ACTIVATION == "relu":
        return tl.where(gates < 0, 0.0, gates) * ups
    else:
        tl.static_assert(ACTIVATION == "clipped_swish")
        gates = tl.where(gates > limit, limit, gates)
        ups = tl.where(ups > limit, limit, ups)
        ups = tl.where(ups < -limit, -limit, ups)
        return (ups + 1) * gates * tl.sigmoid(alpha * gates)


@triton.jit
def products(
    x_at, gate_at, up_at, share, real, inside, D, GATE: tl.constexpr, UP: tl.constexpr, DEPTH
):
    """Return x times gate and x times up, of one tile; x is read once, and scaled by its share.

    gate_at None: both are x times up.
    """
    gates = tl.zeros([real.shape[0], inside.shape[0]], tl.float32)
    ups = tl.zeros([real.shape[0], inside.shape[0]], tl.float32)
    for start in range(0, D, DEPTH):
        here = start + tl.arange(0, DEPTH) < D
        own = tl.load(x_at, mask=real[:, None] & here[None, :], other=0.0)
        if share is not None:
            typed = share.to(own.dtype).to(tl.float32)[:, None]
            own = (own.to(tl.float32) * typed).to(own.dtype)
        mask = here[:, None] & inside[None, :]
        if gate_at is not None:
            weight = tl.load(gate_at, mask=mask, other=0.0)
            gates = tl.dot(own, weight, gates, input_precision="ieee")
            gate_at += DEPTH * GATE[2]
        weight = tl.load(up_at, mask=mask, other=0.0)
        ups = tl.dot(own, weight, ups, input_precision="ieee")
        x_at += DEPTH
        up_at += DEPTH * UP[2]
    return ups if gate_at is None else gates, ups


@triton.jit
def with_bias(total, bias, expert, column, SIZE: tl.constexpr):
    """Return total ROWS,COLUMNS with the expert's bias added; bias E,SIZE or None."""
    if bias is None:
        return total
    else:
        at = bias + expert * SIZE + column
        return total + tl.load(at, mask=column < SIZE, other=0.0).to(tl.float32)[None, :]


@triton.jit
def gate_up(
    x,  # N,D
    weights,  # N,R
    chosen,  # N,R
    order,  # S, or None with counts
    counts,  # E
    gate,  # E,I,D, in steps of GATE, or None
    up,  # E,I,D, in steps of UP
    gate_bias,  # E,I or None
    up_bias,  # E,I or None
    inner,  # S,I in sorted order
    alpha,
    limit,
    R: tl.constexpr,
    E: tl.constexpr,
    D: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    GATE: tl.constexpr,
    UP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """inner = act(gate(x), up(x)), a tile of ROWS,COLUMNS of both products in each program."""
    # Programs side by side share a tile's rows and, tile after tile, an expert's weights: both
    # stay in the L2 cache.
    program = tl.program_id(0)
    expert, first, end = find(chosen, counts, program // tl.cdiv(I, COLUMNS), E, ROWS)
    if expert >= E:
        return
    places = first + tl.arange(0, ROWS)
    real = places < end
    routes = routes_at(order, places, real)
    share = tl.load(weights + routes, mask=real, other=0.0) if SCALED else None
    column = program % tl.cdiv(I, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    x_at = x + (routes // R).to(tl.int64)[:, None] * D + depth[None, :]
    gate_at = None if gate is None else weight_at(gate, expert, column, depth, GATE)
    up_at = weight_at(up, expert, column, depth, UP)
    gates, ups = products(x_at, gate_at, up_at, share, real, column < I, D, GATE, UP, DEPTH)
    gates = with_bias(gates, gate_bias, expert, column, I)
    ups = with_bias(ups, up_bias, expert, column, I)
    out = activated(gates, ups, alpha, limit, ACTIVATION).to(inner.dtype.element_ty)
    at = inner + places.to(tl.int64)[:, None] * I + column[None, :]
    tl.store(at, out, mask=real[:, None] & (column < I)[None, :])


@triton.jit
def down_each(
    inner,  # S,I in sorted order
    chosen,  # N,R
    order,  # S, or None with counts
    counts,  # E
    down,  # E,D,I, in steps of DOWN
    down_bias,  # E,D or None
    out,  # S,D in the order of routes
    E: tl.constexpr,
    D: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    DOWN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """out = down(inner): the same walk over tiles as `gate_up`."""
    program = tl.program_id(0)
    expert, first, end = find(chosen, counts, program // tl.cdiv(D, COLUMNS), E, ROWS)
    if expert >= E:
        return
    places = first + tl.arange(0, ROWS)
    real = places < end
    column = program % tl.cdiv(D, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    inner_at = inner + places.to(tl.int64)[:, None] * I + depth[None, :]
    down_at = weight_at(down, expert, column, depth, DOWN)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, I, DEPTH):
        here = start + depth < I
        own = tl.load(inner_at, mask=real[:, None] & here[None, :], other=0.0)
        weight = tl.load(down_at, mask=here[:, None] & (column < D)[None, :], other=0.0)
        total = tl.dot(own, weight, total, input_precision="ieee")
        inner_at += DEPTH
        down_at += DEPTH * DOWN[2]
    total = with_bias(total, down_bias, expert, column, D)
    routes = routes_at(order, places, real)
    at = out + routes.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=real[:, None] & (column < D)[None, :])


@triton.jit
def combine(
    out,  # N,R,D
    weights,  # N,R
    total,  # N,D
    R: tl.constexpr,
    D: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """total = the sum over R of out times weights, in fp32, best route first."""
    program = tl.program_id(0)
    place = (program // tl.cdiv(D, BLOCK)).to(tl.int64)
    column = program % tl.cdiv(D, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    wide = tl.zeros([BLOCK], tl.float32)
    for r in range(R):
        one = tl.load(out + (place * R + r) * D + column, mask=column < D, other=0.0)
        share = 1.0 if SCALED else tl.load(weights + place * R + r).to(tl.float32)
        wide += one.to(tl.float32) * share
    tl.store(total + place * D + column, wide.to(total.dtype.element_ty), mask=column < D)


SUM_BLOCK = 1024  # columns of a program of `combine`, 8 a thread


def steps(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate: Tensor | None,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    alpha: float,
    limit: float,
    scale_input: bool,
) -> tuple[list[Step], Tensor]:
    """Return the launches for moe_experts' arguments, and the output that they fill.

    Weights may be views (transposed, or every second row of a stack): they are read by strides.
    """
    experts, D, I = down.shape  # noqa: E741
    S, R = chosen.numel(), chosen.shape[-1]
    total = x.new_empty(x.shape)
    if not S:
        return [], total.zero_()
    todo, shared = by_expert(chosen, experts)
    tile = tile_for(x.dtype, S // experts)
    # At most: every expert with routes wastes all but one row of a tile.
    tiles = (S + least(experts, S) * (tile.rows - 1)) // tile.rows if todo else S
    biases = [None if b is None else b.contiguous() for b in (gate_bias, up_bias, down_bias)]
    inner, out = x.new_empty(S, I), x.new_empty(S, D)
    routing = {"weights": weights.contiguous(), "R": R, "SCALED": scale_input, "D": D}
    shared |= {"inner": inner, "D": D, "I": I, "ROWS": tile.rows, "DEPTH": tile.depth}

    part = tile.columns if gate is None else tile.columns // 2  # two products side by side
    arguments = shared | routing | {"x": x.contiguous(), "COLUMNS": part, "ACTIVATION": activation}
    arguments |= {"gate": gate, "up": up, "UP": up.stride()}
    arguments |= {"GATE": None if gate is None else gate.stride()}
    arguments |= {"gate_bias": biases[0], "up_bias": biases[1], "alpha": alpha, "limit": limit}
    todo.append(Step(gate_up, tiles * -(-I // part), arguments, tile.warps, tile.stages))

    arguments = shared | {"down": down, "DOWN": down.stride(), "down_bias": biases[2], "out": out}
    arguments |= {"COLUMNS": tile.columns}
    blocks = tiles * -(-D // tile.columns)
    todo.append(Step(down_each, blocks, arguments, tile.warps, tile.stages))

    arguments = routing | {"out": out, "total": total, "BLOCK": SUM_BLOCK}
    todo.append(Step(combine, S // R * -(-D // SUM_BLOCK), arguments))
    return todo, total


launch = launcher(steps)
