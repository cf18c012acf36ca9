"""linear_attention in Triton: a few tokens recurrently in one launch, more of them in chunks.

Letters as in linear_attention. The states `past_state` are updated in place and returned, as
engines bind one memory to a state before and after; where they are not fp32, new ones are made. The
host never waits for the GPU, which reads the number of valid tokens itself.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmcast.plugins.errors import InputError
from lmcast.plugins.launch.sizes import Count, usual
from lmcast.plugins.launch.step import Step, launcher
from lmcast.plugins.linear.channel_pairs import PART, look
from lmcast.plugins.linear.onnx_body import EPS
from lmcast.plugins.linear.token_chunks import carry, prepare, read


@triton.jit
def vector(row, inside, EPS: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr):
    """Return a query or key in fp32, WIDE,1, divided by its length unless EPS is None."""
    channel = tl.arange(0, WIDE)
    x = tl.load(row + channel, mask=channel < tl.where(inside, K, 0), other=0.0).to(tl.float32)
    if EPS is not None:
        x *= tl.rsqrt(tl.sum(x * x) + EPS)
    return x[:, None]


@triton.jit
def one_by_one(
    query,  # B,T,G,K
    key,  # B,T,G,K
    value,  # B,T,H,V
    past,  # B,H,K,V
    decay,  # B,T,H or B,T,H,K
    token_counts,  # B
    beta,  # B,T,H or None
    out,  # B,T,H,V
    state,  # B,H,K,V: may be past
    scale,
    T,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    CHANNELS: tl.constexpr,
    EPS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Recurrent form: BLOCK columns of the state of one head, which is read and written once."""
    program = tl.program_id(0)
    column = program % tl.cdiv(V, BLOCK) * BLOCK + tl.arange(0, BLOCK)
    row = (program // tl.cdiv(V, BLOCK)).to(tl.int64)  # b * H + h
    b, h = row // H, row % H
    count = tl.load(token_counts + b)
    channel = tl.arange(0, WIDE)
    factor = tl.arange(0, WIDE if CHANNELS > 1 else 1)
    own = (row * K + channel)[:, None] * V + column[None, :]
    real = (channel < K)[:, None] & (column < V)[None, :]
    matrix = tl.load(past + own, mask=real, other=0.0).to(tl.float32)
    for t in range(T):
        head = (b * T + t) * H + h
        group = (b * T + t) * G + h // (H // G)
        inside = t < count
        here = factor < tl.where(inside, CHANNELS, 0)
        left = tl.load(decay + head * CHANNELS + factor, mask=here, other=0.0).to(tl.float32)
        matrix *= tl.exp(left)[:, None]
        k = vector(key + group * K, inside, EPS, K, WIDE)
        here = column < tl.where(inside, V, 0)
        new = tl.load(value + head * V + column, mask=here, other=0.0).to(tl.float32)
        if beta is not None:
            strength = tl.load(beta + head, mask=inside, other=0.0).to(tl.float32)
            new = (new - tl.sum(matrix * k, 0)) * strength
        matrix += k * new[None, :]
        total = tl.sum(matrix * vector(query + group * K, True, EPS, K, WIDE), 0) * scale
        tl.store(out + head * V + column, total.to(out.dtype.element_ty), mask=column < V)
    tl.store(state + own, matrix, mask=real)


class Tiles(NamedTuple):
    """Tokens of a chunk, columns of a matrix in a program, and warps; stages of `carry`'s loads."""

    chunk: int
    block: int
    warps: int
    carry_warps: int
    stages: int


# A chunk of 64 multiplies as much within itself as with a matrix of 128 rows. `carry` goes through
# the chunks one after the other: of 32 columns, 32 heads of 128 make 128 programs, about one for
# each SM, and two chunks are in its shared memory.
SHORT = Tiles(64, 32, 8, 4, 2)
WIDE_SHORT = Tiles(32, 32, 8, 4, 2)  # more than 128 channels: a chunk of 64 exceeds 99 KB
FULL = Tiles(16, 16, 8, 8, 1)  # fp32 in full precision has no tensor cores, and twice the bytes
FEW = 8  # tokens, one by one: of a chunk of 16 or more, most would be empty
PROGRAMS = 256  # that are enough: about two for each SM


def step(kernel: Any, programs: Count, given: dict[str, Any], warps: int, stages: int = 3) -> Step:
    """Return a launch of a kernel with those of the given arguments that it takes."""
    arguments = {name: given[name] for name in kernel.arg_names}
    return Step(kernel, programs, arguments, warps, stages)


def by_chunks(given: dict[str, Any]) -> list[Step]:
    """Return the launches for more than a few tokens; given: arguments of kernels by name."""
    value: Tensor = given["value"]
    heads, width, columns, channels = (given[name] for name in ("H", "K", "V", "CHANNELS"))
    batch, tokens = value.shape[:2]
    short = value.dtype != torch.float32
    tiles = FULL if not short else SHORT if given["WIDE"] <= 128 else WIDE_SHORT
    chunks, part = -(-tokens // tiles.chunk), -(-columns // tiles.block)

    def empty(*shape: Any, dtype: torch.dtype = value.dtype) -> Tensor:
        return value.new_empty(shape, dtype=dtype)

    given |= {"C": tiles.chunk, "BLOCK": tiles.block}
    given |= {"behind": empty(batch, tokens, heads, width), "seen": None, "told": None}
    given["kept"] = empty(batch, heads, chunks, channels, dtype=torch.float32)
    given["states"] = empty(batch, heads, chunks, width, columns)
    given |= {"known": None, "news": value, "added": value}
    if given["beta"] is not None:
        given["known"] = empty(batch, tokens, heads, width)
        given |= {"news": empty(*value.shape), "added": empty(*value.shape)}
    todo = []
    if channels > 1:
        given["seen"] = empty(batch, tokens, heads, tiles.chunk)
        if given["beta"] is not None:
            given["told"] = empty(*given["seen"].shape, dtype=torch.float32)
        parts = -(-tokens // PART.value)
        todo.append(step(look, batch * heads * parts, given, tiles.warps, tiles.stages))
    todo.append(step(prepare, batch * heads * chunks, given, tiles.warps, tiles.stages))
    todo.append(step(carry, batch * heads * part, given, tiles.carry_warps, tiles.stages))
    return [*todo, step(read, batch * heads * chunks, given, tiles.warps, tiles.stages)]


def steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor,
    decay: Tensor,
    token_counts: Tensor,
    beta: Tensor | None,
    normalize: bool,
    channels: bool,
    scale: float,
) -> tuple[list[Step], tuple[Tensor, Tensor]]:
    """Return the launches for linear_attention's arguments, and the output and state they fill."""
    if not past_state.is_contiguous():
        raise InputError(f"a state has strides {past_state.stride()}; accepted: contiguous")
    batch, heads, width, columns = past_state.shape
    tokens = query.shape[1]
    own = past_state.dtype == torch.float32
    state = past_state if own else past_state.new_empty(past_state.shape, dtype=torch.float32)
    out = value.new_empty(value.shape)
    if not batch * heads * tokens:
        return [], (out, state.copy_(past_state))
    given: dict[str, Any] = {"query": query.contiguous(), "key": key.contiguous()}
    given |= {"value": value.contiguous(), "decay": decay.contiguous(), "past": past_state}
    given |= {"beta": None if beta is None else beta.contiguous(), "token_counts": token_counts}
    given |= {"out": out, "state": state, "scale": scale, "T": tokens, "H": heads}
    given |= {"G": query.shape[2] // width, "K": width, "V": columns}
    given |= {"CHANNELS": width if channels else 1, "EPS": EPS if normalize else None}
    given["WIDE"] = max(16, triton.next_power_of_2(width))
    if usual(tokens) > FEW:
        return by_chunks(given), (out, state)
    # 8 columns of fp32 are the least that memory gives at once.
    given["BLOCK"] = 32 if usual(batch * heads * columns) >= 32 * PROGRAMS else 8
    programs = batch * heads * -(-columns // given["BLOCK"])
    return [step(one_by_one, programs, given, 4)], (out, state)


launch = launcher(steps)
