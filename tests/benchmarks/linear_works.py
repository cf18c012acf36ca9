"""What triton_kernels.py measures of linear_attention, and that in plain torch; same letters."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from kernel_works import BATCHES, SPREAD, Work, copies
from torch import Tensor
from torch.nn import functional as F

LENGTHS = (4096, 16384)  # of a prompt
CHUNK = 64


@dataclass(frozen=True)
class DeltaNet:
    """What the operator needs to know of a model with Gated DeltaNets."""

    name: str
    heads: int
    groups: int
    width: int
    value_width: int


QWEN3_NEXT = DeltaNet("Qwen3-Next", 32, 16, 128, 128)


def linear_work(
    model: DeltaNet, batch: int, tokens: int, device: str, spread: float = SPREAD
) -> Work:
    """Prefill or a decoding step, from states of any size near those that the model comes to."""
    heads, width, columns = model.heads, model.width, model.value_width

    def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    def make() -> tuple:
        return (
            random(batch, tokens, model.groups * width),
            random(batch, tokens, model.groups * width),
            random(batch, tokens, heads * columns),
            random(batch, heads, width, columns, dtype=torch.float32),
            -F.softplus(random(batch, tokens, heads, dtype=torch.float32)) / 8,
            torch.full((batch,), tokens, device=device),
            random(batch, tokens, heads).sigmoid(),
            True,
            False,
            width**-0.5,
        )

    # Queries, keys, values and results; fp32 decays, and beta; fp32 states read and written.
    moved = batch * tokens * (4.0 * (model.groups * width + heads * columns) + (4 + 2) * heads)
    moved += 2 * 4.0 * batch * heads * width * columns + 8.0 * batch
    # What a state is read for, twice, and what is added to it: the products within chunks, which
    # are not needed, do not count.
    flops = 3 * 2.0 * batch * tokens * heads * width * columns
    calls = copies(make, moved, spread)
    places = batch * tokens
    return Work("linear_attention", model.name, places, calls, moved, flops, state=3)


def linear_works(device: str) -> Iterator[Work]:
    for batch, tokens in (*((batch, 1) for batch in BATCHES), *((1, n) for n in LENGTHS)):
        torch.manual_seed(0)
        yield linear_work(QWEN3_NEXT, batch, tokens, device)


def inverted(lower: Tensor) -> Tensor:
    """Return the inverse of 1 + lower, which is strictly lower, by blocks along the diagonal."""
    size = lower.shape[-1]
    row = torch.arange(size, device=lower.device)
    inverse = torch.eye(size, device=lower.device)
    for level in range((size - 1).bit_length()):
        half = row >> level
        below = (half[:, None] == half + 1) & (half[:, None] % 2 == 1)
        inverse = inverse - inverse @ (lower * below) @ inverse
    return inverse


def split(x: Tensor, size: int, heads: int, chunk: int) -> Tensor:
    """B,T,?*size -> B,H,N,C,size in fp32, with zeros behind the last token."""
    x = F.pad(x.float(), (0, 0, 0, -x.shape[1] % chunk)).unflatten(-1, (-1, size))
    x = x.unflatten(1, (-1, chunk)).repeat_interleave(heads // x.shape[2], 3)
    return x.permute(0, 3, 1, 2, 4)


def chunked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor,
    decay: Tensor,
    token_counts: Tensor,
    beta: Tensor,
    normalize: bool,
    channels: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """linear_attention in plain torch by chunks, in fp32: with beta, and a decay for each head."""
    heads, width, columns = past.shape[1:]
    tokens = value.shape[1]
    chunk = min(tokens, CHUNK)
    padding = torch.arange(tokens, device=value.device) >= token_counts[:, None]
    decay, beta = (x.masked_fill(padding[..., None], 0) for x in (decay, beta))
    q, k = (split(x, width, heads, chunk) for x in (query, key))
    if normalize:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    run = split(decay, 1, heads, chunk).cumsum(-2)
    pairs = (run - run.mT).tril().exp().tril()
    strength = split(beta, 1, heads, chunk)
    inverse = inverted((k * strength @ k.mT * pairs).tril(-1))
    news = inverse @ (split(value, columns, heads, chunk) * strength)
    known = inverse @ (k * strength * run.exp())
    look, left = q @ k.mT * pairs, q * run.exp()
    total = run[..., -1:, :]
    behind, kept = (k * (total - run).exp()).mT, total.exp()
    state, outs = past.float(), []
    for n in range(run.shape[2]):
        new = news[:, :, n] - known[:, :, n] @ state
        outs.append(left[:, :, n] @ state + look[:, :, n] @ new)
        state = state * kept[:, :, n] + behind[:, :, n] @ new
    out = torch.cat(outs, 2)[:, :, :tokens].transpose(1, 2).flatten(2) * scale
    return out.to(value.dtype), state
