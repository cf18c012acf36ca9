"""Top-k routing: the experts of each token, and their weights.

Letters: E experts, R routes of a token, M groups of experts; `...` stands for any leading axes.
"""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Value
from lmcast.plugins.plugin import Close, Plugin, Selection, triton


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

    logits: ...,E.
    bias: E or None; it selects and never weighs.
    top_k: R.
    score: 'softmax' over all experts, or 'sigmoid'.
    groups, kept_groups: of `groups` equal runs of experts, those `kept_groups` with the largest sum
        of their two best are selected from.
    epsilon: weights are divided by their sum plus this; negative: they are not.
    scale: multiplies the weights last.

    Returns weights ...,R in fp32 and experts ...,R int64, best first.
    """
    scores, (*_, (wanted, _)) = scored(logits, bias, top_k, score, groups, kept_groups)
    chosen = wanted.topk(top_k, -1).indices
    weights = scores.gather(-1, chosen)
    if epsilon >= 0:
        weights = weights / (weights.sum(-1, keepdim=True) + epsilon)
    return weights * scale, chosen


def scored(
    logits: Tensor, bias: Tensor | None, top_k: int, score: str, groups: int, kept_groups: int
) -> tuple[Tensor, list[Selection]]:
    """Return the scores ...,E, and what is selected by: of groups, then of experts."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = wide.softmax(-1) if score == "softmax" else wide.sigmoid()
    # Scores go by the logits, but round to equal ones where those still differ.
    plain = wide if groups == 1 else scores
    wanted = plain if bias is None else scores + bias
    if groups == 1:
        return scores, [(wanted, top_k)]
    grouped = wanted.unflatten(-1, (groups, -1))  # ...,M,E/M
    worth = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)  # ...,M
    kept = torch.zeros_like(worth, dtype=torch.bool)
    kept.scatter_(-1, worth.topk(kept_groups, -1).indices, True)
    wanted = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
    return scores, [(worth, kept_groups), (wanted, top_k)]


def selections(*arguments: Any) -> list[Selection]:
    return scored(*arguments[:6])[1]


def shapes(logits: Tensor, bias: Tensor | None, top_k: int, *_: object) -> tuple[Tensor, Tensor]:
    out = (*logits.shape[:-1], top_k)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(out, dtype=wide), logits.new_empty(out, dtype=torch.int64)


def body(
    op: Builder,
    logits: Value,
    bias: Value | None,
    top_k: Attribute,
    score: Attribute,
    groups: Attribute,
    kept_groups: Attribute,
    epsilon: Attribute,
    scale: Attribute,
) -> tuple[Value, Value]:
    wide = op.Cast(op.reshape(logits, -1, op.size(logits, -1)), to=DataType.FLOAT)  # N,E
    scores = op.Softmax(wide, axis=1) if score.value == "softmax" else op.Sigmoid(wide)
    wanted = wide if groups.value == 1 else scores
    if bias is not None:
        wanted = scores + op.Cast(bias, to=DataType.FLOAT)
    if groups.value > 1:
        wanted = of_best_groups(op, wanted, groups, kept_groups)
    _, chosen = op.TopK(wanted, op.dims(top_k), axis=1)
    weights = op.GatherElements(scores, chosen, axis=1)
    if epsilon.value >= 0:
        weights = weights / (op.ReduceSum(weights, [1], keepdims=1) + epsilon)
    shape = op.dims(op.Shape(logits, end=-1), top_k)
    return op.Reshape(weights * scale, shape), op.Reshape(chosen, shape)


def of_best_groups(op: Builder, wanted: Value, groups: Attribute, kept_groups: Attribute) -> Value:
    """Return scores N,E, -inf outside of the best groups."""
    grouped = op.reshape(wanted, op.size(wanted, 0), groups, -1)  # N,M,E/M
    pair, _ = op.TopK(grouped, op.Min(op.size(grouped, 2), [2]), axis=2)
    _, kept = op.TopK(op.ReduceSum(pair, [2], keepdims=0), op.dims(kept_groups), axis=1)
    is_kept = op.Equal(op.Unsqueeze(kept, [2]), op.Range(0, groups, 1))
    any_kept = op.ReduceMax(op.Cast(is_kept, to=DataType.INT32), [1], keepdims=0)  # N,M
    mask = op.Unsqueeze(op.Cast(any_kept, to=DataType.BOOL), [2])
    return op.Reshape(op.Where(mask, grouped, float("-inf")), op.Shape(wanted))


def case(places: tuple[int, ...], experts: int, biased: bool, *rest: object) -> tuple[Any, ...]:
    bias = 0.3 * torch.randn(experts) if biased else None
    return (2 * torch.randn(*places, experts), bias, *rest)


def saturated(*arguments: Any) -> tuple[Any, ...]:
    """Return a case with logits so large that most scores round to 1."""
    logits, *rest = case(*arguments)
    return (logits.abs() * 10 + 10, *rest)


def cases() -> list[tuple[Any, ...]]:
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
    selections=selections,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # 10 fp32 epsilons of weights up to 2.5: an exponential, a sum and a division, each rounded.
    # A shorter dtype of the logits is widened first.
    close=dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), Close(3e-6)),
)
