"""Run each token through its experts, which are feed-forwards. Letters: E experts, R routes of a
token, D width, I inner width; `...` stands for any leading axes, N for all places in them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmcast.plugins.plugin import Close, Plugin, triton


def clipped_swish(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    """`(up + 1) * gate * sigmoid(alpha * gate)`, gate up to limit, up within it (gpt-oss)."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(alpha * gate))


Gated = Callable[[Tensor, Tensor, float, float], Tensor]
# Name -> what it does with gate and up, and the same as ONNX text from `gates`, `ups` to `inner`,
# into which {alpha} and {limit} go as numbers.
ACTIVATIONS: dict[str, tuple[Gated, str]] = {
    "silu": (
        lambda gate, up, *_: F.silu(gate) * up,
        """open = Sigmoid (gates)
        swish = Mul (gates, open)
        inner = Mul (swish, ups)""",
    ),
    "gelu": (
        lambda gate, up, *_: F.gelu(gate) * up,
        """bent = Gelu (gates)
        inner = Mul (bent, ups)""",
    ),
    "gelu_tanh": (
        lambda gate, up, *_: F.gelu(gate, approximate="tanh") * up,
        """bent = Gelu <approximate = "tanh"> (gates)
        inner = Mul (bent, ups)""",
    ),
    "relu": (
        lambda gate, up, *_: F.relu(gate) * up,
        """bent = Relu (gates)
        inner = Mul (bent, ups)""",
    ),
    "clipped_swish": (
        clipped_swish,
        """wide_limit = Constant <value_float = {limit}> ()
        limit_like = CastLike (wide_limit, gates)
        wide_alpha = Constant <value_float = {alpha}> ()
        alpha_like = CastLike (wide_alpha, gates)
        wide_one = Constant <value_float = 1.0> ()
        one_like = CastLike (wide_one, gates)
        floor = Neg (limit_like)
        low = Min (gates, limit_like)
        within = Min (ups, limit_like)
        kept = Max (within, floor)
        steep = Mul (low, alpha_like)
        open = Sigmoid (steep)
        swish = Mul (low, open)
        lifted = Add (kept, one_like)
        inner = Mul (lifted, swish)""",
    ),
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

    x ...,D; weights ...,R fp32; chosen ...,R int64, an expert at most once per place; gate and up
    E,I,D; down E,D,I; biases E,I, E,I and E,D, all or none. gate None: up is its own gate, and
    there are no biases ('relu' then makes the square of relu, Nemotron 3). activation: a name in
    ACTIVATIONS; alpha and limit are for 'clipped_swish'. scale_input: weights multiply x before the
    expert instead of the result (Llama 4). Experts compute in x's dtype, the sum is taken in fp32.
    -> ...,D in x's dtype.
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


def activation_text(given: Mapping[str, Any]) -> str:
    """Return the ONNX text of the activation that these arguments name."""
    text = ACTIVATIONS[given["activation"]][1]
    return text.format(alpha=float(given["alpha"]), limit=float(given["limit"]))


def linear(of: str, name: str, out: str, biased: bool) -> str:
    """Return ONNX text of `out`, the product of `of` with the matrix of expert e."""
    product = f"{name}_product" if biased else out
    lines = [
        f"{name}_own = Gather <axis = 0> ({name}, e)",
        f"{name}_turned = Transpose <perm = [1, 0]> ({name}_own)",
        f"{product} = MatMul ({of}, {name}_turned)",
    ]
    if biased:
        lines.append(f"{name}_shift = Gather <axis = 0> ({name}_bias, e)")
        lines.append(f"{out} = Add ({product}, {name}_shift)")
    return "\n        ".join(lines)


FLATTEN = """
    first = Constant <value_int = 0> ()
    second = Constant <value_ints = [1]> ()
    rest = Constant <value_ints = [-1]> ()
    yes = Constant <value = bool {1}> ()
    width = Shape <start = -1> (x)
    flat_shape = Concat <axis = 0> (rest, width)
    flat = Reshape (x, flat_shape)
    routes = Shape <start = -1> (chosen)
    route_shape = Concat <axis = 0> (rest, routes)
    picks = Reshape (chosen, route_shape)
    shares = Reshape (weights, route_shape)
    picked = Reshape (chosen, rest)
    active = Unique <sorted = 1> (picked)
    active_count = Size (active)
    sizes = Shape (flat)
    nothing = ConstantOfShape <value = float[1] {0}> (sizes)
"""
OWN = """
        on = Identity (go)
        e = Gather <axis = 0> (active, i)
        hit = Equal (picks, e)
        at = NonZero (hit)
        row = Gather <axis = 0> (at, first)
        place = Transpose <perm = [1, 0]> (at)
        share = GatherND (shares, place)
        column = Unsqueeze (share, second)
        taken = Gather <axis = 0> (flat, row)
"""
SCALED = "typed_share = CastLike (column, x)\n        own = Mul (taken, typed_share)"


def body(given: Mapping[str, Any]) -> str:
    biased, scale_input = given["gate_bias"] is not None, given["scale_input"]
    gates = "gates = Identity (ups)"
    if given["gate"] is not None:
        gates = linear("own", "gate", "gates", biased)
    inputs = "x, weights, chosen, gate, up, down"
    inputs += ", gate_bias, up_bias, down_bias" if biased else ""
    return f"""
moe_experts <activation, alpha, limit, scale_input> ({inputs}) => (out) {{
    {FLATTEN}
    total = Loop (active_count, yes, nothing) <body = one_expert
        (int64 i, bool go, float[N, D] before) => (bool on, float[N, D] after) {{
        {OWN}
        {SCALED if scale_input else "own = Identity (taken)"}
        {linear("own", "up", "ups", biased)}
        {gates}
        {activation_text(given)}
        {linear("inner", "down", "result", biased)}
        wide = Cast <to = 1> (result)
        {"part = Identity (wide)" if scale_input else "part = Mul (wide, column)"}
        row_column = Unsqueeze (row, second)
        after = ScatterND <reduction = "add"> (before, row_column, part)
    }}>
    typed = CastLike (total, x)
    shape = Shape (x)
    out = Reshape (typed, shape)
}}"""


def case(
    places: tuple[int, int],
    experts: int,
    routes: int,
    widths: tuple[int, int],
    activation: str = "silu",
    biased: bool = False,
    scale_input: bool = False,
    gated: bool = True,
) -> tuple:
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


def cases() -> list[tuple]:
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
