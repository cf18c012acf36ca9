"""What triton_kernels.py measures: calls of operators at sizes of released models, and what each
must move and multiply at least. Letters as in the operators."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PLACES = (1, 16, 64, 4096)  # decode of three batches, and a prefill
BATCHES = (1, 16, 64)  # of a decoding step with a long context
SPREAD = 250e6  # bytes of all calls together, five times the L2 cache of an H100


@dataclass(frozen=True)
class Model:
    """What the operators of experts need to know of a model."""

    name: str
    experts: int
    routes: int
    width: int
    inner: int
    activation: str = "silu"
    biased: bool = False


@dataclass(frozen=True)
class Latent:
    """What the operators of latents need to know of a model; index_heads 0: it attends to all."""

    name: str
    heads: int
    width: int
    value_width: int
    index_heads: int = 0
    index_width: int = 128
    chosen: int = 2048
    rank: int = 512
    turned_width: int = 64
    context: int = 32768


MODELS = (
    Model("Qwen3-30B-A3B", 128, 8, 2048, 768),
    Model("gpt-oss-20b", 32, 4, 2880, 2880, "clipped_swish", biased=True),
)
LATENTS = (
    Latent("DeepSeek-V3", 128, 128, 128),
    Latent("DeepSeek-V3.2", 128, 128, 128, index_heads=64),
    Latent("GLM-5", 64, 192, 256, index_heads=32),
)


@dataclass(frozen=True)
class Work:
    """Calls of an operator, and what one must move and multiply at least.

    Several calls read different bytes, so that no call finds its own in the L2 cache.
    """

    operator: str
    model: str
    places: int
    calls: list[tuple]
    moved: float  # bytes
    flops: float
    state: int | None = None  # which argument a kernel changes, if what it gives depends on it


def nbytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def route_work(model: Model, places: int, device: str) -> Work:
    args = (None, model.routes, "softmax", 1, 1, 0.0, 1.0)
    logits = torch.randn(places, model.experts, device=device, dtype=torch.bfloat16)
    moved = nbytes(logits) + places * model.routes * (4 + 8)  # fp32 weights, int64 experts
    return Work("moe_route", model.name, places, [(logits, *args)], moved, 0.0)


def experts_work(model: Model, places: int, device: str) -> Work:
    count, routes, width, inner = model.experts, model.routes, model.width, model.inner

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    both = random(count, 2 * inner, width).div_(width**0.5)  # one stack, as vLLM wants it
    gate, up = both[:, :inner], both[:, inner:]
    down = random(count, width, inner).div_(inner**0.5)
    sizes = (inner, inner, width)
    biases = [random(count, n) if model.biased else None for n in sizes]
    x = random(places, width)
    shares = torch.rand(places, routes, device=device)
    # Of one order of all experts for each place, every call takes the next few.
    order = torch.rand(places, count, device=device).argsort(-1)
    choices = order[:, : count // routes * routes].split(routes, -1) if places < 64 else [order]
    calls: list[tuple] = []
    moved = 0.0
    for choice in choices:
        chosen = choice[:, :routes].contiguous()
        rest = (model.activation, 1.702, 7.0, False)
        calls.append((x, shares, chosen, gate, up, down, *biases, *rest))
        active = int(chosen.unique().numel()) / count
        moved += active * nbytes(both, down, *biases) + nbytes(x, shares, chosen) + nbytes(x)
    flops = 6.0 * places * routes * width * inner
    return Work("moe_experts", model.name, places, calls, moved / len(calls), flops)


def copies(make: Callable[[], tuple], moved: float, spread: float) -> list[tuple]:
    """Return as many calls as read `spread` bytes together, each with tensors of its own."""
    return [make() for _ in range(max(1, -int(-spread // moved)))]


def counts(model: Latent, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Return lengths before a decoding step that fills the context, and one new token for each."""
    lengths = torch.full((batch,), model.context - 1, device=device)
    return lengths, torch.ones_like(lengths)


def attention_work(model: Latent, batch: int, device: str, spread: float = SPREAD) -> Work:
    """One decoding step: of mla_attention, or of sparse_attention where the model has an index."""
    heads, rank, row = model.heads, model.rank, model.rank + model.turned_width
    sparse = bool(model.index_heads)
    read = model.chosen if sparse else model.context

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    def choice() -> Tensor:
        spaced = torch.rand(batch, 1, model.context, device=device)
        spaced[:, :, -1] = 2  # the token itself is always chosen
        return spaced.topk(model.chosen).indices.sort(-1).values

    def make() -> tuple:
        return (
            random(batch, 1, heads, model.width),
            random(batch, 1, heads, model.turned_width),
            random(batch, 1, row),
            random(batch, model.context, row),
            *counts(model, batch, device),
            *([choice()] if sparse else []),
            random(heads, model.width, rank).div_(rank**0.5),
            random(heads, model.value_width, rank).div_(rank**0.5),
            (model.width + model.turned_width) ** -0.5,
        )

    # Rows that are read, and the new one that is read and written; queries, results, both matrices.
    moved = 2.0 * batch * (read + 2) * row
    moved += 2.0 * batch * heads * (model.width + model.turned_width + model.value_width)
    moved += 2.0 * heads * rank * (model.width + model.value_width)
    moved += 8.0 * batch * read if sparse else 0.0
    scores = read * (2 * rank + model.turned_width)
    flops = 2.0 * batch * heads * (scores + rank * (model.width + model.value_width))
    name = "sparse_attention" if sparse else "mla_attention"
    return Work(name, model.name, batch, copies(make, moved, spread), moved, flops)


def index_work(model: Latent, batch: int, device: str, spread: float = SPREAD) -> Work:
    """One decoding step of sparse_index; scores are whole numbers, so all ways choose the same."""
    heads, width, context = model.index_heads, model.index_width, model.context

    def whole(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randint(-3, 4, shape, device=device).to(dtype)

    def make() -> tuple:
        return (
            whole(batch, 1, heads, width),
            whole(batch, 1, heads, dtype=torch.float32),
            whole(batch, 1, width),
            whole(batch, context, width),
            *counts(model, batch, device),
            model.chosen,
        )

    # Keys, and the new one that is read and written; queries, fp32 weights, int64 positions.
    moved = 2.0 * batch * (context + 2 + heads) * width + batch * (4.0 * heads + 8 * model.chosen)
    flops = 2.0 * batch * heads * width * context
    calls = copies(make, moved, spread)
    return Work("sparse_index", model.name, batch, calls, moved, flops)


def works(device: str) -> Iterator[Work]:
    for model in MODELS:
        for make in (route_work, experts_work):
            for places in PLACES:
                torch.manual_seed(0)
                yield make(model, places, device)
    for latent in LATENTS:
        for batch in BATCHES:
            torch.manual_seed(0)
            yield attention_work(latent, batch, device)
            if latent.index_heads:
                yield index_work(latent, batch, device)


def absorbed(
    query: Tensor,
    turned: Tensor,
    latent: Tensor,
    past: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    scale: float,
    chosen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """mla_attention in plain torch where eager does not fit: no head's keys and values are made,
    and the cache is written in place. Chosen B,T,K: as sparse_attention, of gathered rows."""
    position = put(latent, past, cache_lengths)[..., None]  # B,T,1
    whole = torch.cat([torch.einsum("bthn,hnl->bthl", query, key_up), turned], -1)  # B,T,H,W
    if chosen is None:
        slots = torch.arange(past.shape[1], device=past.device)
        rows = past[:, None].expand(-1, query.shape[1], -1, -1)  # B,T,C,W
    else:
        slots = chosen
        rows = past[torch.arange(len(past), device=past.device)[:, None, None], chosen]  # B,T,K,W
    score = (whole @ rows.mT).float() * scale
    score = score.masked_fill(~(slots <= position)[:, :, None], float("-inf"))
    taken = score.softmax(-1).to(query.dtype) @ rows[..., : key_up.shape[2]]
    return torch.einsum("bthl,hvl->bthv", taken, value_up), past


def gathered(*args: object) -> tuple[Tensor, Tensor]:
    """sparse_attention in plain torch where eager does not fit."""
    *before, chosen, key_up, value_up, scale = args
    return absorbed(*before, key_up, value_up, scale, chosen)


def put(latent: Tensor, past: Tensor, cache_lengths: Tensor) -> Tensor:
    """Write new rows into the cache, in place; return the position of each, B,T."""
    position = cache_lengths[:, None] + torch.arange(latent.shape[1], device=past.device)
    past.scatter_(1, position[..., None].expand_as(latent), latent)
    return position
