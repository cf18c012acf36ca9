"""What a config.json says of experts that are routed in groups, in many families."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmcast.graphs.blocks import moe
from lmcast.graphs.config.reading import Experts, Positive, Size


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The keys under DeepSeek V3's names, for a Config to take over."""

    n_routed_experts: Experts
    moe_intermediate_size: Size
    num_experts_per_tok: Experts = 8
    n_group: Experts = 1
    topk_group: Experts = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive | None = 1.0
    hidden_act: moe.ExpertActivation = "silu"

    def router(
        self,
        dim: int,
        score: Literal["softmax", "sigmoid"] = "softmax",
        correction: bool = False,
        in_fp32: bool = False,
    ) -> moe.Router:
        return moe.Router(
            dim,
            self.n_routed_experts,
            self.num_experts_per_tok,
            score=score,
            correction=correction,
            groups=self.n_group,
            kept_groups=self.topk_group,
            epsilon=1e-20 if self.norm_topk_prob else None,
            scale=1.0 if self.routed_scaling_factor is None else self.routed_scaling_factor,
            in_fp32=in_fp32,
        )

    def experts(self, dim: int, shared: nn.Module | None = None) -> moe.MoE:
        """Return the experts of one layer of width `dim` and their router (Mistral 4's)."""
        act = moe.EXPERT_ACTIVATIONS[self.hidden_act]
        inner, count = self.moe_intermediate_size, self.n_routed_experts
        return moe.MoE(self.router(dim), moe.Experts(dim, inner, count, activation=act), shared)


@dataclass(frozen=True, kw_only=True)
class GroupedRouting(Routing):
    """Scores are sigmoids, and a correction selects (DeepSeek V3, arXiv 2412.19437)."""

    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"

    def router(
        self,
        dim: int,
        score: Literal["softmax", "sigmoid"] = "sigmoid",
        correction: bool = True,
        in_fp32: bool = True,
    ) -> moe.Router:
        return super().router(dim, score, correction, in_fp32)
