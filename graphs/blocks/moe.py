"""Mixture of experts: a router chooses gated feed-forwards for every token.

Letters: B batch, T tokens in this call, E experts, R routes of a token, D width, I inner width.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.norm import widen
from lmcast.graphs.weights.bind import Wide
from lmcast.plugins.experts.moe_experts import moe_experts
from lmcast.plugins.experts.moe_route import moe_route

# Hugging Face's names -> those of moe_experts. Its other activations appear in no released model.
EXPERT_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
ExpertActivation = Literal[
    "silu", "swish", "gelu", "gelu_python", "gelu_accurate", "gelu_fast", "gelu_new",
    "gelu_python_tanh", "gelu_pytorch_tanh", "relu",
]  # fmt: skip


class Router(Wide):
    """x B,T,D -> weights B,T,R fp32 and experts B,T,R int64, by the rules of moe_route.

    epsilon: weights are divided by their sum plus this; None: they are not.
    correction: has a bias on the scores that selects and never weighs.
    softcap: of the logits.
    in_fp32: the product with the matrix is in fp32.
    """

    wide = ("correction",)

    def __init__(
        self,
        dim: int,
        experts: int,
        top_k: int,
        *,
        score: Literal["softmax", "sigmoid"] = "softmax",
        bias: bool = False,
        correction: bool = False,
        groups: int = 1,
        kept_groups: int = 1,
        epsilon: float | None = None,
        scale: float = 1.0,
        softcap: nn.Module | None = None,
        in_fp32: bool = False,
    ):
        super().__init__()
        if experts % groups:
            raise ValueError(f"n_group is {groups}; accepted: a divisor of the {experts} experts")
        if experts == groups > 1:
            raise ValueError(
                f"n_group is {groups}, of as many experts; accepted: groups of two or more, as a"
                " group is worth what its best two are"
            )
        if kept_groups > groups:
            raise ValueError(f"topk_group is {kept_groups}; accepted: at most n_group, {groups}")
        if top_k > experts // groups * kept_groups:
            among = experts // groups * kept_groups
            raise ValueError(
                f"num_experts_per_tok is {top_k}; accepted: at most the {among} experts that a"
                " token selects from"
            )
        self.weight = nn.Parameter(torch.empty(experts, dim))
        self.bias = nn.Parameter(torch.empty(experts)) if bias else None
        self.correction = nn.Parameter(torch.empty(experts)) if correction else None
        self.top_k, self.score, self.groups, self.kept_groups = top_k, score, groups, kept_groups
        self.epsilon = -1.0 if epsilon is None else epsilon
        self.scale, self.in_fp32 = scale, in_fp32
        self.softcap = softcap or nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.in_fp32:
            logits = F.linear(widen(x), widen(self.weight), self.bias)
        else:
            logits = F.linear(x, self.weight, self.bias)
        return moe_route(
            self.softcap(logits), self.correction, self.top_k, self.score, self.groups,
            self.kept_groups, self.epsilon, self.scale,
        )  # fmt: skip


def sigmoid_router(
    dim: int,
    experts: int,
    top_k: int,
    *,
    groups: int,
    kept_groups: int,
    renormalize: bool,
    scale: float | None,
) -> Router:
    """Return DeepSeek V3's router (arXiv 2412.19437): sigmoid scores, a bias that only selects.

    renormalize: weights are divided by their sum. scale: multiplies them, None for not at all.
    groups, kept_groups: as in plugins.experts.moe_route.
    """
    return Router(
        dim,
        experts,
        top_k,
        score="sigmoid",
        correction=True,
        groups=groups,
        kept_groups=kept_groups,
        epsilon=1e-20 if renormalize else None,
        scale=1.0 if scale is None else scale,
        in_fp32=True,
    )


class Experts(nn.Module):
    """The feed-forwards of a layer in three stacks, gate and up E,I,D and down E,D,I.

    activation: a name of moe_experts; alpha and limit are those of 'clipped_swish'. scale_input:
    weights multiply what goes into an expert instead of what comes out. gated: else there is no
    gate, and up is its own.
    """

    def __init__(
        self,
        dim: int,
        inner: int,
        experts: int,
        *,
        activation: str = "silu",
        alpha: float = 1.0,
        limit: float = 1.0,
        bias: bool = False,
        scale_input: bool = False,
        gated: bool = True,
    ):
        super().__init__()
        self.gate = nn.Parameter(torch.empty(experts, inner, dim)) if gated else None
        self.up = nn.Parameter(torch.empty(experts, inner, dim))
        self.down = nn.Parameter(torch.empty(experts, dim, inner))
        self.gate_bias = nn.Parameter(torch.empty(experts, inner)) if bias else None
        self.up_bias = nn.Parameter(torch.empty(experts, inner)) if bias else None
        self.down_bias = nn.Parameter(torch.empty(experts, dim)) if bias else None
        self.activation, self.alpha, self.limit = activation, alpha, limit
        self.scale_input = scale_input

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        return moe_experts(
            x, weights, chosen, self.gate, self.up, self.down,
            self.gate_bias, self.up_bias, self.down_bias,
            self.activation, self.alpha, self.limit, self.scale_input,
        )  # fmt: skip


class GatedShared(nn.Module):
    """The output of `inner`, times a sigmoid gate of one number per token (Qwen)."""

    def __init__(self, dim: int, inner: nn.Module):
        super().__init__()
        self.gate, self.inner = nn.Linear(dim, 1, bias=False), inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(x)) * self.inner(x)


class MoE(nn.Module):
    """The routed experts of each token, plus the output of `shared` for all tokens.

    enter: applied to a token before its experts; leave: applied to their sum.
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        shared: nn.Module | None = None,
        *,
        enter: nn.Module | None = None,
        leave: nn.Module | None = None,
    ):
        super().__init__()
        self.router, self.experts, self.shared = router, experts, shared
        self.enter, self.leave = enter or nn.Identity(), leave or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        routed = self.leave(self.experts(self.enter(x), *self.router(x)))
        return routed if self.shared is None else routed + self.shared(x)
