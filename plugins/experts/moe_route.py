"""Pick the experts of each token, and what each pick weighs. Letters: E experts, R routes of a
token, M groups of experts; `...` stands for any leading axes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.plugin import Close, Plugin, triton


def eager(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    score: str,
    groups: int,
    kept_groups: int,
    epsilon: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Score all experts, select by score plus bias, weigh by score alone (arXiv 2412.19437).

    logits ...,E; bias E or None. score: 'softmax' over all experts, or 'sigmoid'. Of `groups` equal
    runs of experts, the `kept_groups` with the largest sum of their two best are selected from.
    epsilon: weights are divided by their sum plus this; negative: they are left as they are. Last,
    they are multiplied by `scale`. -> weights ...,R in fp32, experts ...,R int64, best first.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = wide.softmax(-1) if score == "softmax" else wide.sigmoid()
    # Scores go by the logits, but round to equal ones where those still differ.
    plain = wide if groups == 1 else scores
    wanted = plain if bias is None else scores + bias
    if groups > 1:
        grouped = wanted.unflatten(-1, (groups, -1))  # ...,M,E/M
        worth = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)  # ...,M
        kept = torch.zeros_like(worth, dtype=torch.bool)
        kept.scatter_(-1, worth.topk(kept_groups, -1).indices, True)
        wanted = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
    chosen = wanted.topk(top_k, -1).indices
    weights = scores.gather(-1, chosen)
    if epsilon >= 0:
        weights = weights / (weights.sum(-1, keepdim=True) + epsilon)
    return weights * scale, chosen


def shapes(logits: Tensor, bias: Tensor | None, top_k: int, *_: object) -> tuple[Tensor, Tensor]:
    out = (*logits.shape[:-1], top_k)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(out, dtype=wide), logits.new_empty(out, dtype=torch.int64)


def body(given: Mapping[str, Any]) -> str:
    score = {"softmax": "Softmax <axis = 1> (wide)", "sigmoid": "Sigmoid (wide)"}[given["score"]]
    lines = [PLACES, f"scores = {score}"]
    if given["bias"] is None:
        lines.append(f"wanted = Identity ({'wide' if given['groups'] == 1 else 'scores'})")
    else:
        lines += ["wide_bias = Cast <to = 1> (bias)", "wanted = Add (scores, wide_bias)"]
    lines.append(GROUPS if given["groups"] > 1 else "allowed = Identity (wanted)")
    lines.append(PICK)
    lines.append("shares = Identity (picked)" if given["epsilon"] < 0 else SHARE)
    lines.append(SCALE)
    inputs = "logits" if given["bias"] is None else "logits, bias"
    attributes = "top_k, score, groups, kept_groups, epsilon, scale"
    text = "\n    ".join(lines)
    return f"moe_route <{attributes}> ({inputs}) => (weights, chosen) {{\n    {text}\n}}"


PLACES = """rest = Constant <value_ints = [-1]> ()
    experts = Shape <start = -1> (logits)
    flat_shape = Concat <axis = 0> (rest, experts)
    flat = Reshape (logits, flat_shape)
    wide = Cast <to = 1> (flat)"""

GROUPS = """second = Constant <value_ints = [1]> ()
    third = Constant <value_ints = [2]> ()
    zero = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    two = Constant <value_ints = [2]> ()
    group_number = Constant <value_int: int = @groups> ()
    group_count = Reshape (group_number, rest)
    places = Shape <start = 0, end = 1> (flat)
    grouped_shape = Concat <axis = 0> (places, group_count, rest)
    grouped = Reshape (wanted, grouped_shape)
    group_width = Shape <start = 2> (grouped)
    most = Min (group_width, two)
    pair, pair_at = TopK <axis = 2> (grouped, most)
    worth = ReduceSum <keepdims = 0> (pair, third)
    kept_number = Constant <value_int: int = @kept_groups> ()
    kept_count = Reshape (kept_number, rest)
    kept_worth, kept_at = TopK <axis = 1> (worth, kept_count)
    group_ids = Range (zero, group_number, step)
    kept_column = Unsqueeze (kept_at, third)
    is_kept = Equal (kept_column, group_ids)
    as_number = Cast <to = 6> (is_kept)
    kept_any = ReduceMax <keepdims = 0> (as_number, second)
    kept_row = Cast <to = 9> (kept_any)
    kept_mask = Unsqueeze (kept_row, third)
    never = Constant <value_float = -inf> ()
    limited = Where (kept_mask, grouped, never)
    allowed = Reshape (limited, flat_shape)"""

PICK = """route_number = Constant <value_int: int = @top_k> ()
    route_count = Reshape (route_number, rest)
    best, best_at = TopK <axis = 1> (allowed, route_count)
    picked = GatherElements <axis = 1> (scores, best_at)"""

SHARE = """across = Constant <value_ints = [1]> ()
    sum = ReduceSum <keepdims = 1> (picked, across)
    little = Constant <value_float: float = @epsilon> ()
    total = Add (sum, little)
    shares = Div (picked, total)"""

SCALE = """factor = Constant <value_float: float = @scale> ()
    scaled = Mul (shares, factor)
    lead = Shape <end = -1> (logits)
    shape = Concat <axis = 0> (lead, route_count)
    weights = Reshape (scaled, shape)
    chosen = Reshape (best_at, shape)"""


def case(places: tuple[int, ...], experts: int, biased: bool, *rest: object) -> tuple:
    bias = 0.3 * torch.randn(experts) if biased else None
    return (2 * torch.randn(*places, experts), bias, *rest)


def saturated(*arguments: Any) -> tuple:
    """Return a case with logits so large that most scores round to 1."""
    logits, *rest = case(*arguments)
    return (logits.abs() * 10 + 10, *rest)


def cases() -> list[tuple]:
    torch.manual_seed(0)
    return [
        case((2, 5), 8, False, 2, "softmax", 1, 1, 0.0, 1.0),  # Qwen3, gpt-oss: renormalized
        case((1, 1), 60, False, 8, "softmax", 1, 1, -1.0, 1.0),  # decode; left as they are
        case((3, 2), 6, True, 3, "sigmoid", 1, 1, 1e-20, 2.5),  # a bias that selects, no groups
        case((2, 3), 12, True, 4, "sigmoid", 4, 2, 1e-20, 2.5),  # DeepSeek V3: groups
        case((2, 3), 12, False, 2, "softmax", 6, 3, 0.0, 1.0),  # Mistral Large 3
        case((2, 3), 4, True, 2, "sigmoid", 4, 3, -1.0, 1.0),  # groups of one expert
        case((1, 4), 5, False, 1, "sigmoid", 1, 1, -1.0, 1.0),  # Llama 4
        saturated((2, 4), 16, False, 2, "sigmoid", 1, 1, -1.0, 1.0),
    ]


moe_route = Plugin(
    name="moe_route",
    eager=eager,
    shapes=shapes,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # 10 fp32 epsilons of weights up to 2.5: an exponential, a sum and a division, each rounded.
    # A shorter dtype of the logits is widened first.
    close=dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), Close(3e-6)),
)
