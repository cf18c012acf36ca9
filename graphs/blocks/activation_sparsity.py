"""A feed-forward with sparse activations (Gemma 3n)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.decoder import rounded
from lmcast.graphs.blocks.ffn import ACTIVATIONS, ActivationName


class SparseMLP(nn.Module):
    """`down(act(relu(g - cutoff)) * up(x))` with `g = gate(x)`, `cutoff = mean(g) + z * std(g)`.

    z is the point that a normal variable stays below with probability `sparsity`, which is below 1;
    std is that of the population. Where sparsity is 0, plainly `down(act(g) * up(x))`.
    """

    def __init__(self, dim: int, inner: int, *, act: ActivationName, sparsity: float):
        super().__init__()
        self.gate = nn.Linear(dim, inner, bias=False)
        self.up = nn.Linear(dim, inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)
        self.act = act
        # In fp32 throughout, as Hugging Face computes it: 1.6448534 for 0.95.
        level = torch.tensor(sparsity, dtype=torch.float32, device="cpu")
        normal = torch.distributions.Normal(torch.zeros_like(level), torch.ones_like(level))
        self.points = rounded(normal.icdf(level).item()) if sparsity else None

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        if self.points is not None:
            spread = gate.std(-1, unbiased=False, keepdim=True)
            cutoff = gate.mean(-1, keepdim=True) + spread * self.points[x.dtype]
            gate = F.relu(gate - cutoff)
        return self.down(ACTIVATIONS[self.act](gate) * self.up(x))
