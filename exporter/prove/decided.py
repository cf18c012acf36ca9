"""Rows of tokens that a model is sure about: rounding decides little of what it computes of them.

Routers take the best experts, and indexers the best positions. Of two that are nearly equal
rounding takes either, and all behind that is another number: neither is wrong, and a bound that
allows for it allows anything. In 16 bits that is most rows of a small model with random weights, as
some token in some layer is near such a tie, or near a norm of almost nothing. So rows are made of
tokens that are not, each the best of several draws.

Letters: B rows, T tokens, N draws, V vocabulary.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.prove.eager_pass import Batch, Pass
from lmcast.exporter.prove.parity_report import TIMES
from lmcast.graphs import Definition
from lmcast.plugins.plugin import DOMAIN, REGISTRY, Selection

DRAWS = 64  # of each token
# Of a gap between what is taken and what is not, in units of the median rounding of both: the
# largest roundings are some medians, and an engine's may be TIMES eager's, of either.
SURE = 4 * TIMES
# Products of a weight and a token that a search may take: a minute. Models whose rows would take
# more have so many layers and experts that one more or less is little of a logit.
MOST_PRODUCTS = 3e11


def decided_rows(
    definitions: tuple[Definition, Definition],
    source: Checkpoint,
    rows: list[list[int]],
    vocab: int,
    dtype: torch.dtype,
) -> list[list[int]]:
    """Return rows as long as these, of which rounding to `dtype` decides as little as was found.

    definitions: what fp64 computes, and what eager does in `dtype`.
    """
    tokens = sum(len(row) * (len(row) / 2 + DRAWS) for row in rows)
    if tokens * sum(p.numel() for p in definitions[0].model.parameters()) > MOST_PRODUCTS:
        return rows
    random, read = np.random.Generator(np.random.PCG64(0)), cache(source.read)
    found: list[list[int]] = [[] for _ in rows]
    for place in range(max(map(len, rows))):
        longer = [r for r, row in enumerate(rows) if len(row) > place]
        draws = random.integers(0, vocab, (len(longer), DRAWS))
        worth = _worth(definitions, source, read, [found[r] for r in longer], draws, dtype)
        for r, drawn, best in zip(longer, draws, worth.argmax(-1).tolist(), strict=True):
            found[r].append(int(drawn[best]))
    return found


def _worth(
    definitions: tuple[Definition, Definition],
    source: Checkpoint,
    read: Callable[[str], Tensor],
    held: list[list[int]],
    draws: np.ndarray,
    dtype: torch.dtype,
) -> Tensor:
    """Return how sure the model is about each token B,N behind rows: the larger the better."""
    ids = torch.tensor(held)  # B,T
    new = torch.from_numpy(draws.reshape(-1, 1))
    one = Batch(new, torch.ones(len(new), dtype=torch.int64), continues=ids.numel() > 0)
    none = torch.empty(len(ids), 0, dtype=torch.int64)
    full = torch.full((len(ids),), ids.shape[1])
    before = [Batch(ids, full, wanted=none)] if one.continues else []
    (want, exact), (near, rough) = (
        _run(found, source, read, [*before, one], kind)
        for found, kind in zip(definitions, (torch.float64, dtype), strict=True)
    )
    sure = torch.full((len(new),), SURE, dtype=torch.float64)
    for (scores, count), (rounded, _) in zip(exact, rough, strict=True):
        seen = scores > torch.finfo(torch.float32).min
        rounding = (rounded - scores).abs()[seen & seen.isfinite()].median()
        sure = torch.minimum(sure, _gap(scores, count) / rounding.clamp(min=1e-300))
    # Of those that are sure enough, the one with the least error.
    return (sure + 1 / (1 + (near - want).abs().amax(-1))).view(draws.shape)


def _gap(scores: Tensor, count: int) -> Tensor:
    """Return by how much the last that is taken is better than the first that is not, of a token N
    by its scores N,1,...; the least of all axes."""
    if scores.shape[-1] <= count:
        return torch.full((len(scores),), torch.inf, dtype=torch.float64)
    best = scores.topk(count + 1, -1).values
    gap = best[..., -2] - best[..., -1]
    # Equal ones are equal in any arithmetic: the first is taken.
    return gap.where(gap > 0, torch.inf).flatten(1).amin(1)


def _run(
    found: Definition,
    source: Checkpoint,
    read: Callable[[str], Tensor],
    batches: list[Batch],
    dtype: torch.dtype,
) -> tuple[Tensor, list[Selection]]:
    """Return of the last batch the logits N,V, and what was selected by, both in fp64."""
    one = Pass(found, source, batches, dtype, read)
    mode: Callable[[], _Watching] = _Watching  # whose base class has no types
    watched = mode()
    watched.taken = []
    with watched:
        for index in range(len(found.model.layers)):
            one.hidden = one.layer(index, one.hidden)
    logits = one.logits()[-1][:, 0]
    own = [
        (scores.double(), count) for scores, count in watched.taken if len(scores) == len(logits)
    ]
    return logits.double(), own


class _Watching(TorchDispatchMode):
    """While active, collects what operators select by."""

    taken: list[Selection]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == DOMAIN:
            selections = REGISTRY[func._opname].selections
            self.taken.extend(selections(*args) if selections is not None else ())
        return func(*args, **(kwargs or {}))
