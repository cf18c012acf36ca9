"""Mixture of experts: gated feed-forwards of the chosen experts, weighted and summed.

Letters: E experts, R routes of a token, D width, I inner width; `...` stands for any leading axes,
N for all places in them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Input, Value
from lmcast.plugins.plugin import Close, Plugin, triton


def clipped_swish(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    """`(up + 1) * gate * sigmoid(alpha * gate)`, gate up to limit, up within it (gpt-oss)."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(alpha * gate))


def clipped_swish_body(op: Builder, gate: Value, up: Value, alpha: Input, limit: Input) -> Value:
    one, alpha, limit = (op.CastLike(number, gate) for number in (1.0, alpha, limit))
    gate, up = op.Min(gate, limit), op.Max(op.Min(up, limit), op.Neg(limit))
    return (up + one) * (gate * op.Sigmoid(gate * alpha))


# Name -> what it does with gate, up, alpha and limit, and the same in standard operators.
ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Value]]] = {
    "silu": (
        lambda gate, up, *_: F.silu(gate) * up,
        lambda op, gate, up, *_: gate * op.Sigmoid(gate) * up,
    ),
    "gelu": (
        lambda gate, up, *_: F.gelu(gate) * up,
        lambda op, gate, up, *_: op.Gelu(gate) * up,
    ),
    "gelu_tanh": (
        lambda gate, up, *_: F.gelu(gate, approximate="tanh") * up,
        lambda op, gate, up, *_: op.Gelu(gate, approximate="tanh") * up,
    ),
    "relu": (
        lambda gate, up, *_: F.relu(gate) * up,
        lambda op, gate, up, *_: op.Relu(gate) * up,
    ),
    "clipped_swish": (clipped_swish, clipped_swish_body),
}


def eager(
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
) -> Tensor:
    """Return for each place the weighted sum over its experts of `down(act(gate(x), up(x)))`.

    x: ...,D.
    weights: ...,R fp32.
    chosen: ...,R int64, expert ids, none twice for a place.
    gate, up, down: E,I,D, E,I,D and E,D,I; without a gate, up is its own ('relu' is then squared
        relu, Nemotron 3), and there are no biases.
    gate_bias, up_bias, down_bias: E,I, E,I and E,D; all or none.
    activation: a name in ACTIVATIONS; alpha and limit are for 'clipped_swish'.
    scale_input: weights multiply x before the expert instead of its output (Llama 4).

    Experts compute in x's dtype, the sum is in fp32. Returns ...,D in x's dtype.
    """
    flat, picks = x.flatten(0, -2), chosen.flatten(0, -2)  # N,D and N,R
    shares = weights.flatten(0, -2)
    total = torch.zeros_like(flat, dtype=torch.promote_types(x.dtype, torch.float32))
    for e in picks.unique().tolist():
        row, route = (picks == e).nonzero(as_tuple=True)
        share = shares[row, route][:, None]
        own = flat[row] * share.to(x.dtype) if scale_input else flat[row]
        ups = F.linear(own, up[e], None if up_bias is None else up_bias[e])
        gates = ups
        if gate is not None:
            gates = F.linear(own, gate[e], None if gate_bias is None else gate_bias[e])
        inner = ACTIVATIONS[activation][0](gates, ups, alpha, limit)
        out = F.linear(inner, down[e], None if down_bias is None else down_bias[e])
        total.index_add_(0, row, out.to(total.dtype) if scale_input else out * share)
    return total.to(x.dtype).reshape(x.shape)


def shapes(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def body(
    op: Builder,
    x: Value,
    weights: Value,
    chosen: Value,
    gate: Value | None,
    up: Value,
    down: Value,
    gate_bias: Value | None,
    up_bias: Value | None,
    down_bias: Value | None,
    activation: Attribute,
    alpha: Attribute,
    limit: Attribute,
    scale_input: Attribute,
) -> Value:
    flat = op.reshape(x, -1, op.size(x, -1))  # N,D
    by_route = op.dims(-1, op.size(chosen, -1))
    picks, shares = op.Reshape(chosen, by_route), op.Reshape(weights, by_route)  # N,R
    active = op.Unique(op.reshape(chosen, -1), sorted=1)

    def add_expert(number: Value, total: Value) -> Value:
        e = op.Gather(active, number, axis=0)
        at = op.NonZero(op.Equal(picks, e))  # 2 and places
        row = op.Gather(at, 0, axis=0)
        share = op.Unsqueeze(op.GatherND(shares, op.Transpose(at, perm=[1, 0])), [1])
        own = op.Gather(flat, row, axis=0)
        if scale_input.value:
            own = own * op.CastLike(share, x)

        def linear(of: Value, stack: Value, bias: Value | None) -> Value:
            product = of @ op.Transpose(op.Gather(stack, e, axis=0), perm=[1, 0])
            return product if bias is None else product + op.Gather(bias, e, axis=0)

        ups = linear(own, up, up_bias)
        gates = ups if gate is None else linear(own, gate, gate_bias)
        inner = ACTIVATIONS[activation.value][1](op, gates, ups, alpha, limit)
        out = op.Cast(linear(inner, down, down_bias), to=DataType.FLOAT)
        part = out if scale_input.value else out * share
        return op.ScatterND(total, op.Unsqueeze(row, [1]), part, reduction="add")

    nothing = op.Expand(0.0, op.Shape(flat))
    total = op.loop(add_expert, op.Size(active), nothing, "ND")
    return op.Reshape(op.CastLike(total, x), op.Shape(x))


def case(
    places: tuple[int, int],
    experts: int,
    routes: int,
    widths: tuple[int, int],
    activation: str = "silu",
    biased: bool = False,
    scale_input: bool = False,
    gated: bool = True,
) -> tuple[Any, ...]:
    """Return arguments for B,T places; weights are scaled so that all values stay near 1."""
    (batch, tokens), (width, inner) = places, widths
    order = torch.rand(batch, tokens, experts).argsort(-1)[..., :routes]
    biases = [0.5 * torch.randn(experts, n) if biased else None for n in (inner, inner, width)]
    return (
        torch.randn(batch, tokens, width),
        torch.rand(batch, tokens, routes),
        order,
        torch.randn(experts, inner, width) / width**0.5 if gated else None,
        torch.randn(experts, inner, width) / width**0.5,
        torch.randn(experts, width, inner) / inner**0.5,
        *biases,
        activation,
        1.702,
        1.5,
        scale_input,
    )


def cases() -> list[tuple[Any, ...]]:
    torch.manual_seed(0)
    return [
        case((2, 7), 8, 2, (24, 40)),  # prefill
        case((1, 1), 16, 4, (32, 24)),  # decode: most experts rest
        case((3, 1), 6, 3, (20, 12), "clipped_swish", biased=True),  # gpt-oss; E no power of two
        case((2, 5), 4, 1, (16, 24), scale_input=True),  # Llama 4
        case((1, 33), 3, 3, (16, 8), "gelu_tanh"),  # every token to every expert (Grok 2: 2 of 8)
        case((2, 3), 5, 2, (16, 8), "gelu"),
        case((2, 3), 5, 2, (16, 8), "relu"),
        case((2, 5), 6, 3, (16, 24), "relu", gated=False),  # Nemotron 3
    ]


moe_experts = Plugin(
    name="moe_experts",
    eager=eager,
    shapes=shapes,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # 40 fp32 epsilons: two sums of up to 40 products of values near 1, and a sum over the routes.
    # Shorter: inner values, results and the sum are rounded once each, towards zero in Triton's
    # interpreter: 4 epsilons of values near 1 and one of the sum itself.
    close={
        torch.float32: Close(5e-6),
        torch.bfloat16: Close(4 * 2**-7, 2**-7),
        torch.float16: Close(4 * 2**-10, 2**-10),
    },
)
